"""One run at one node, the daemon's side: found, joined, trained, checkpointed.

`run` is its life from the daemon's start to its end; what exists while this node takes part is `participation` for protocols of certified collectives and `decentralized` for the others, over
`taking_part`, which they have in common: `presence` (what it says in the
shared document, which `state` and `sequence` make), `journal` and `figures` (what is reported), `measured` (whose links and beginnings are slow), `stragglers`, `trainer` (with `launch`: the training process;
`trainer_connection`: the socket to it, on which `trainer_link` has rounds and `leg_link` legs). `collectives` serves a user's process that wants operations of its own. `finder` finds the run by name, `manifest` says what it is; `saves`, `checkpoint`, `layout`,
`tensor_file` and `epoch_file` are what survives.
"""
