"""MoDeST: rounds of federated averaging with no server (`protocol` says how, `settings` what can be chosen).

Who is there: `view` (joined by everybody, ordered by hash), `membership` (one node's part in it), `sampling` (who of an order is
alive). Models: `errand` (on their way to those who are), `inbox` (waiting for others of their round), `aggregator` (enough of them make an average), `averages` (what it makes of
them), `votes` (several aggregators, none of them trusted alone). `stall`: who looks after a run that stands still. On the wire: `messages`.
"""
