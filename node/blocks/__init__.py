"""Artefacts at one node: kept on its disk, given to others, fetched, and, if they are code, approved by its operator.

`store` is the disk, `files` turns files into an artefact and back, `library` is all that this node can give, `service` is the driver that the daemon runs,
`jobs` what it does for somebody who waits, `routes` is its part of the control API, `reader` reads the store beside a daemon. `tasks` names the code of a
task by its content, `approvals` remembers what the operator allowed, and `gate` decides whether code may run here.
Core of it all: `gossip.blocks`.
"""
