"""Who may be a member: certificates, the chains they form, revocations, and the one object that is asked.

`certificate` is one signed value (`raw` is what such values have in common), `chain` how several lead from the swarm's root key to a member and how new
ones are issued, `revocation` says that a node is out, `statement` is a chain or a revocation as the swarm's document holds it, `refusal` why a chain
was not accepted. `trust` is what handshakes ask.
All sans-IO: the time is an argument, in milliseconds since 1970.
"""
