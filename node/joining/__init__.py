"""Joining a swarm: invites, who redeems them, and how nodes of one network find each other.

What it is for: a person pastes one code and the node is a member. The node that issued the code decides, in one place and
durably, however many members the request came through.

Cores: `code` (the pasted line), `request` and `answer` (what travels, forwardable by anybody; `reasons` why not), `ledger` (what was promised and
what was given), `issuer` (decides), `redeemer` (asks), `forwarder` (passes on), `source_budget` (how often a source may ask), `places` (which addresses are told), `beacon` (a datagram that
says where a member is), `book` (members and history as people read them).
Drivers in a daemon: `ledger_file` (the ledger on disk), `service` (answers newcomers), `lan` (the beacon's sockets), `belonging` (all of it together).
Drivers of commands: `asking` and `enter` (`noded join`; `facts` is what it leaves for the daemon), `renewing` (`noded renew`), `depart` (`noded leave`).

Errors: `node.errors.NodedError`; a refusal carries its `Reason`.
"""
