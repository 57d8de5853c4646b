"""A small model and loop that several tests train."""

from __future__ import annotations

import torch
from torch import nn

from node.run.manifest import RunManifest

MANIFEST = RunManifest(name="demo", task="byte-gpt", every=4)


def build(seed=0, optimizer="adamw"):
    torch.manual_seed(seed)
    # Odd sizes on purpose: without aligned views matrix kernels may add in another order.
    model = nn.Sequential(
        nn.Linear(13, 37),
        nn.GELU(),
        nn.BatchNorm1d(37),
        nn.Linear(37, 7, bias=False),
        nn.LayerNorm(7),
    )
    if optimizer == "adamw":
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    return model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)


def train(model, optimizer, steps, first=0, run=None, each=lambda _step: None):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 13, generator=generator)
        optimizer.zero_grad()
        # Random state is part of what a restart has to bring back.
        noise = 0.01 * torch.randn(8, 7)
        loss = (model(x) - x[:, :7] + noise).square().mean()
        loss.backward()
        if run is not None:
            run.log(loss=loss, tokens=8)
        optimizer.step()
        each(step)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(one, two):
    assert set(one) == set(two)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def flat_of(model):
    return torch.cat([p.detach().reshape(-1) for _, p in sorted(model.named_parameters())]).numpy()
