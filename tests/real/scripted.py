"""A user's training script: the same loop as plain torch, and with `node.join` around it.

scripted.py RESULT STEPS SOCKET STREAM     trains on batches of that number, writes the final parameters, and what was seen, to RESULT
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

import node

torch.set_num_threads(1)
result, steps, socket, stream = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])


def build():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 17), nn.GELU(), nn.LayerNorm(17), nn.Linear(17, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(model, optimizer, run=None):
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * stream + step)
        x = torch.randn(8, 5, generator=generator)
        loss = (model(x) - x[:, :3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.log(loss=loss, tokens=8)


def values(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}


seen = {"fresh": values(build()[0])}
if steps < 1000:
    model, optimizer = build()
    train(model, optimizer)
    seen["plain"] = values(model)
model, optimizer = build()
with node.join("demo", model, optimizer, every=4, socket=socket, strict=True) as run:
    train(model, optimizer, run)
    seen.update(round=run.round, peers=run.peers, node=run.node)
seen["joined"] = values(model)
Path(result).write_text(json.dumps(seen), encoding="utf-8")
