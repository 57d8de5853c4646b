"""Large regions of bytes between two peers, over as many connections as pay.

`link` is one bulk connection (`in_stream`: without a second TCP connection; `shared`: through shared memory within one machine), `door` and
`rendezvous` get it to the right task. `striped` links are several used as one. `pool` sends and receives over several; its cores are `chunks` (what goes where), `transfers` (who
expects what), `parallel` (how many pay), `messages` (the wire).
"""
