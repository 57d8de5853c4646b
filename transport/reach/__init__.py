"""Being reachable, and knowing it: our addresses, what strangers can dial, how our NAT behaves, and how to say so.

`reach` is the driver that holds it together (`log` says what changes). Evidence, together in `evidence`: `interfaces` over `netlink`, `observed`
addresses, also asked for by `outside`, `dial_back` by `dial_back_rules` for `reachability`, `openness`. Conclusions (sans-IO): `advertising`,
`diagnosis`.
"""
