"""Many streams over one sealed link, with credit, two priorities and cancellation.

`frames` is the layout, `mux` (with `mux_events` and `mux_state`) the sans-IO core, `stream` the trio stream that protocols use, and `raw`
the same bytes as a connection of its own, for relay circuits and for bulk links without a second TCP connection.
"""
