"""What anybody may cost us: reserved before it is allocated, refused before it is read.

`admission` decides who may start a handshake, `scopes` nests budgets of memory, streams and connections, `rates` are token buckets, `accounts` a
bounded table of them by key (all sans-IO);
`pacing` holds raw streams to their rate caps. The figures are in `transport.limits`.
"""
