"""Artefacts at one node: kept on its disk, given to others, fetched, and, if they are code, approved by its operator.

`store` is the disk, `files` turns files into an artefact and back, `library` is all that this node can give, `service` is the driver that the daemon runs,
`routes` is its part of the control API. `tasks` names the code of a task by its content, `approvals` remembers what the operator allowed.
Core of it all: `gossip.blocks`.
"""
