"""Self-repellent random-walk SGD: one token carries the only model from neighbour to neighbour (`protocol` says how, `settings` what can be chosen).

`kernel`: where the token goes next. `lease`: which token counts, and who notices that it is lost. `search`: who has its newest state.
`phases`: what its holder waits for. On the wire: `messages`.
"""
