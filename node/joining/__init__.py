"""Joining a swarm: invites, who redeems them, and how nodes of one network find each other.

What it is for: a person pastes one code and the node is a member. The node that issued the code decides, in one place and
durably, however many members the request came through.

Cores: `code` (the pasted line), `request` and `answer` (what travels, forwardable by anybody), `ledger` (what was promised and
what was given), `issuer` (decides), `redeemer` (asks), `forwarder` (passes on), `beacon` (a datagram that says where a member is).
Drivers: `ledger_file` (the ledger on disk), `service` (all of it in a daemon), `asking` (in `noded join`), `lan` (the beacon's sockets).

Errors: `node.errors.NodedError`; a refusal carries its `Reason`.
"""
