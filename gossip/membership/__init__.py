"""Who takes part and who is gone: SWIM with Lifeguard's self-doubt.

`swim` is the sans-IO core; `looks` (probes and verdicts), `relay` (probes for others), `suspicion`, `local_health` and `dissemination` are its rules, `table` and
`state` what it remembers, `messages` the wire, `settings` the numbers. `service` is the driver on a live endpoint.
"""
