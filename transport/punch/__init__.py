"""From a relayed connection to a direct one: TCP hole punching by simultaneous open.

`agreement` is what the two sides say and when they dial (sans-IO), `attempt` one side of one punch with sockets and time, `puncher` the service of
an endpoint, `upgrader` what keeps trying for as long as a peer is relayed.
"""
