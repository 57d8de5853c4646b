"""From a relayed connection to a direct one: TCP hole punching by simultaneous open.

Sans-IO: `messages` is what the two sides say, `agreement` who says what when and when they dial, `targets` whom they dial, `report` what came of it.
Drivers: `attempt` is one side of one punch with sockets and time, `puncher` the service of an endpoint, `upgrader` what keeps trying for as long
as a peer is relayed.
"""
