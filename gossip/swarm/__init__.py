"""The swarm's own document, which every member holds: who was made a member by whom, who was revoked by whom and why.

`document` is the core: statements that prove themselves (`crdt.statements`, `transport.trust.statement`), read and written. `service` is the driver: it keeps
the document equal with all peers, disconnects who is no member any more, and lets members renew their certificates (`renewal`, a core).
"""
