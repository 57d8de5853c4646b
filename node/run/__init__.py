"""One run at one node, the daemon's side: found, joined, trained, checkpointed.

`run` is its life; `finder` finds it by name, `manifest` says what it is, `state` and `sequence` are its shared document, `trainer` (with `trainer_link` and `launch`)
holds the training process, `checkpoint` (with `layout` and `tensor_file`) what survives.
"""
