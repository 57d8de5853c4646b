"""Sites that train one model: FSDP or DDP inside each site, one exchange a round between them.

A site is what `torchrun` starts: some processes with fast links between them. A node of the swarm is a site, and local
rank 0 alone talks to its daemon. Each round every site trains `--every` steps on its own data; then rank 0 gathers the whole
model *by name*, averages what the sites have changed over the wide network, takes an outer Nesterov step (DiLoCo), and hands
the result back to its site. Nothing that leaves a site knows how it is sharded, so sites may differ: two processes
with FSDP here, eight with DDP there, and another number after a restart.

    noded init --run sites --create --set trainer.auto=false     # on one site; others: without --create
    noded run
    torchrun --standalone --nproc-per-node 2 examples/sites.py sites --inside fsdp

Every round begins with `sync_state`: a site that came late, or lost its memory, receives from the others what it
lacks, and only that. What follows is bound to the same members (`within`): if one joins or is lost in between, nothing is
averaged with somebody else's start, and the round's exchange is done again from the work that is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import node
from gossip.errors import EpochChanged
from node.training.collectives import Collectives

State = dict[str, torch.Tensor]


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1)
    )


def spread(model: nn.Module, inside: str) -> nn.Module:
    """The model as this site trains it."""
    if inside == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by the names that they have in every site, whatever wraps the model there."""
    for name, parameter in sorted(model.named_parameters()):
        yield name.removeprefix("module."), parameter


def gather(model: nn.Module) -> State:
    """The whole model by name at rank 0; nothing at the others."""
    whole = {}
    for name, parameter in named(model):
        value = parameter.detach()
        whole[name] = value.full_tensor() if isinstance(value, DTensor) else value.clone()
    return whole if dist.get_rank() == 0 else {}


def scatter(model: nn.Module, state: State) -> None:
    """Rank 0's whole model into every process's part of it."""
    for name, parameter in named(model):
        whole = state[name].clone() if dist.get_rank() == 0 else torch.empty(parameter.shape)
        dist.broadcast(whole, 0)
        if isinstance(parameter, DTensor):
            whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
        with torch.no_grad():
            parameter.copy_(whole)


class Outer:
    """What is the same at all sites: the start of the round, the outer momentum, and how many rounds are done."""

    def __init__(self, start: State) -> None:
        self.start = start
        self.momentum = {name: torch.zeros_like(value) for name, value in start.items()}
        self.round = torch.zeros((), dtype=torch.int64)

    def declared(self) -> State:
        return {
            **{f"start.{name}": value for name, value in self.start.items()},
            **{f"momentum.{name}": value for name, value in self.momentum.items()},
            "round": self.round,
        }

    def step(self, run: Collectives, trained: State, epoch: bytes, steps: int) -> None:
        """Average what the sites changed and move the start by it; raises EpochChanged, and then has done nothing."""
        names = sorted(self.start)
        change = torch.cat([(self.start[name] - trained[name]).reshape(-1) for name in names])
        run.all_reduce(
            change, "mean", weight=float(steps), within=epoch, label=f"round {int(self.round)}"
        )
        at = 0
        for name in names:
            value, momentum = self.start[name], self.momentum[name]
            part = change[at : at + value.numel()].view_as(value)
            at += value.numel()
            momentum.mul_(0.9).add_(part)
            value.sub_(part + 0.9 * momentum, alpha=0.7)
        self.round += 1

    def digest(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.declared().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: torch.Generator, every: int
) -> float:
    loss = torch.zeros(())
    for _ in range(every):
        x = torch.randn(32, 8, generator=data)
        loss = (model(x).squeeze(-1) - x.sin().sum(-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def told(values: list[int]) -> list[int]:
    """Rank 0's numbers, at every process of the site."""
    tensor = torch.tensor(values)
    dist.broadcast(tensor, 0)
    return [int(value) for value in tensor]


@contextlib.contextmanager
def connected(arguments: argparse.Namespace) -> Iterator[Collectives | None]:
    """The swarm, for rank 0."""
    if dist.get_rank() != 0:
        yield None
        return
    with node.collectives(arguments.run, model=build(), socket=arguments.socket) as run:
        yield run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", help="name of the run")
    parser.add_argument("--inside", choices=["fsdp", "ddp"], default="fsdp")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--every", type=int, default=16)
    parser.add_argument("--site", type=int, default=0, help="which data this site has")
    parser.add_argument("--socket", help="trainer socket of this site's daemon")
    parser.add_argument("--result", type=Path, help="where rank 0 writes how it ended")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    work(arguments)
    dist.barrier()  # nobody takes the group away while another still speaks
    dist.destroy_process_group()


def work(arguments: argparse.Namespace) -> None:
    """Rounds to the end; the model is gone when this returns, which DDP wants before its group is."""
    model = spread(build(), arguments.inside)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.Generator().manual_seed(1000 * arguments.site + dist.get_rank())
    outer, losses, trained = Outer(gather(model)), [], None
    seen = {"sites": 0, "fetched": 0}
    with connected(arguments) as run:
        while True:
            epoch, fetched = b"", 0
            if run is not None:
                parity = run.sync_state(outer.declared(), revision=int(outer.round))
                epoch, fetched = parity.epoch, parity.fetched_blocks
                seen["sites"] = max(seen["sites"], parity.world)
                seen["fetched"] += fetched
            fetched, rounds = told([fetched, int(outer.round)])
            if fetched or trained is None:
                scatter(model, outer.start)
                trained = None
            if rounds >= arguments.rounds:
                break
            if trained is None:
                losses.append(train(model, optimizer, data, arguments.every))
                trained = gather(model)
            done = 0
            if run is not None:
                with contextlib.suppress(EpochChanged):
                    outer.step(run, trained, epoch, arguments.every * dist.get_world_size())
                    done = 1
            if told([done])[0]:
                trained = None
    if dist.get_rank() == 0:
        print(f"{int(outer.round)} rounds with {seen['sites']} sites, loss {losses[-1]:.4f}")
        if arguments.result is not None:
            ended = {"digest": outer.digest(), "losses": losses, **seen}
            arguments.result.write_text(json.dumps(ended), encoding="utf-8")


if __name__ == "__main__":
    main()
