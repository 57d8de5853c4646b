"""The trainer's side: what runs in the trainer process or in a user's own script, and the only place that meets torch.

`session` is the API (`node.join`). What it does between steps is its `work`, which depends on the run's protocol: `rounds` of certified collectives, or `legs` of a
decentralized one; both over an `attachment` to the daemon: `daemon_link` (messages), `binding` (a model as flat vectors), `meter` (loss and speed), `snapshot` (what a checkpoint holds).
`collectives` (`node.collectives`) is the other API: operations on tensors between nodes, over `collective_link`.
`worker` is the process that the daemon starts, `task_loop` and `leg` its steps, `corpus` the text it reads, `solo` the same alone.
"""
