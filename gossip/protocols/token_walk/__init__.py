"""Self-repellent random-walk SGD: one token carries the only model from neighbour to neighbour (`protocol` says how, `settings` what can be chosen).

`kernel`: where the token goes next. `lease`: which token counts, and who notices that it is lost. `search`: who has its newest state.
`silence`: when one that
hears nothing of it asks. `phases`: what its holder waits for. `step`: what a visit does to the model. On the wire: `messages`.
"""
