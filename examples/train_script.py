"""An ordinary PyTorch training loop that takes part in a swarm: one import, one `with`.

Start a node whose configuration names the run and leaves training to you, then this script:

    noded init --run sines --create --set trainer.auto=false     # on one node; others: without --create
    noded run
    python examples/train_script.py       # NODED_TRAINER_SOCKET names the socket if it is not the default

Alone it trains bit for bit as it would without the `with`; every further node that joins the run
takes part in the next round. Without a running daemon it says so and ends.
"""

import math

import torch
from torch import nn

import node

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

with node.join("sines", model, optimizer, every=32) as run:
    for step in range(2000):
        x = torch.rand(256, 1) * 2 * math.pi
        loss = nn.functional.mse_loss(model(x), torch.sin(3 * x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss, tokens=len(x))  # optional: for `noded status` and the weight in the mean
        if step % 200 == 0:
            print(f"step {run.global_step}  round {run.round}  peers {run.peers}  {loss:.4f}")
