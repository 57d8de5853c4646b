"""A user's training script: plain torch, or the same loop with `node.join` around it.

scripted.py RESULT STEPS [SOCKET]     writes the final parameters, and what was seen, to RESULT
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
from torch import nn

import node

torch.set_num_threads(1)
result, steps = sys.argv[1], int(sys.argv[2])
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(5, 17), nn.GELU(), nn.LayerNorm(17), nn.Linear(17, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
joined = (
    node.join("demo", model, optimizer, every=4, socket=sys.argv[3], strict=True)
    if len(sys.argv) > 3
    else contextlib.nullcontext()
)
seen = {}
with joined as run:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 5, generator=generator)
        loss = (model(x) - x[:, :3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.log(loss=loss, tokens=8)
    if run is not None:
        seen = {"round": run.round, "peers": run.peers, "node": run.node}
parameters = {name: value.tolist() for name, value in model.state_dict().items()}
Path(result).write_text(json.dumps({"parameters": parameters, **seen}), encoding="utf-8")
