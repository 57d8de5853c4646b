"""How a raw connection becomes a peer, stays one, and moves to a better path.

In: `listener`, `inbound`. Out: `dialer` (races addresses), `outbound`, `source` and `dialed` (which local port). Live: `connection` and `outlet` run
one control connection, `migration` moves it to another link, `registry` holds who is connected, `announce` tells peers our new addresses,
`context` is what all of them share. `door` is beside all that: one question and one answer for somebody who is no member yet.
"""
