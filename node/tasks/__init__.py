"""Tasks that come with noded; trainer-side code, the only one beside the session that sees torch.

`byte_gpt` predicts bytes of text, `digits` recognises handwritten digits. Free of torch, and shared with the simulator: `perceptron` (the model
of `digits` as a recipe) and `portion` (which examples a node trains on).
"""
