"""Tasks that come with noded; trainer-side code, the only one beside the session that sees torch.

`byte_gpt` predicts bytes of text, `digits` and `images` tell classes apart (what they share is in `classification`), `ratings` guesses how people
like films. Free of torch: `settings` (what may be set of each) and, shared with the simulator, `perceptron` (a model as a recipe) and `portion` (which examples a node trains on).
"""
