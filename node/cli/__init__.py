"""The `noded` command; it talks to the daemon through `client`, with no event loop.

Verbs: `main` (and where errors become exit codes), `joining`, `network`, `simulate`, `plot`, `state`, `top`, `blocks`, `trust`; `base` is what they share. Text: `render`,
`render_joining`, `render_network`, `render_state`, `render_top`, `text`.
"""
