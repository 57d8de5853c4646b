"""DDP with the hook that averages over sites, under torchrun.

hooked.py SOCKET SITE STEPS RESULT     local rank 0 writes the parameters of all local ranks after so many steps
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import node
from node.training.collectives import ddp_hook

socket, site, steps, result = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])


def batch(where, step):
    generator = torch.Generator().manual_seed(100 * where + step)
    return torch.randn(16, 5, generator=generator)


def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))


def loss_of(model, x):
    return (model(x).squeeze(-1) - x.sum(-1).sin()).square().mean()


def alone(places):
    """The same by one process that sees every place's batch."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        (sum(loss_of(model, batch(where, step)) for where in range(places)) / places).backward()
        optimizer.step()
    return flat(model)


def flat(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def hooked(run):
    # Buckets of a few values each, so that several travel.
    model = DistributedDataParallel(build(), bucket_cap_mb=0.0002)
    model.register_comm_hook(None, ddp_hook(run))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch(2 * site + dist.get_rank(), step)).backward()
        optimizer.step()
    mine = flat(model)
    theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(theirs, mine)
    return theirs


dist.init_process_group("gloo")
torch.set_num_threads(1)
first = dist.get_rank() == 0
with node.collectives("demo", socket=socket) if first else contextlib.nullcontext() as run:
    found = hooked(run)
if first:
    places = 2 * dist.get_world_size()
    worst = float((found[0] - alone(places)).abs().max())
    result.write_text(json.dumps({"found": [one.tolist() for one in found], "worst": worst}))
dist.barrier()
dist.destroy_process_group()
