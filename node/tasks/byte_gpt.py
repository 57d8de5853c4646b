"""A small language model over bytes: the task of the demonstration.

A pre-norm causal transformer (Vaswani et al. 2017; GPT-2's layout) over the 256 byte values, with
learned positions and an output head tied to the embedding. It is small on purpose: four trainers on
two cores take it from 5.55 nats per byte (the uniform guess, ln 256) to legible code in minutes.

Shape legend: B windows per batch, T bytes per window, D width, H heads.

What makes it quick on a CPU: one matrix for query, key and value; torch's fused attention; batches
gathered by one numpy index from the corpus; the fused AdamW, one call for all parameters; gradients
clipped by the foreach kernels.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final, cast

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from node.task import Evaluation, Task, TaskContext
from node.tasks.settings import ByteGPTSettings
from node.training.corpus import load_corpus

__all__ = ["ByteGPT", "Transformer"]

BYTE_VALUES: Final = 256
_EVALUATION_SEED: Final = 20_231_114
"""Fixed, so that validation losses of different runs on the same corpus can be compared."""

Batch = tuple[Tensor, Tensor]
"""(input, target), int64, both B x T; the target is the input one byte later."""


class _Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_btd: Tensor) -> Tensor:
        b, t, d = x_btd.shape
        qkv = self.qkv(self.attention_norm(x_btd)).view(b, t, 3, self.heads, d // self.heads)
        q_bhtk, k_bhtk, v_bhtk = qkv.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q_bhtk, k_bhtk, v_bhtk, is_causal=True)
        x_btd = x_btd + self.mix(seen.transpose(1, 2).reshape(b, t, d))
        hidden = functional.gelu(self.up(self.feed_norm(x_btd)))
        return x_btd + cast("Tensor", self.down(hidden))


class Transformer(nn.Module):
    """The model: bytes in, logits over the next byte out."""

    def __init__(self, settings: ByteGPTSettings) -> None:
        super().__init__()
        width = settings.width
        self.embedding = nn.Embedding(BYTE_VALUES, width)
        self.position = nn.Embedding(settings.context, width)
        self.blocks = nn.ModuleList(_Block(width, settings.heads) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        # What is added to the residual stream 2L times starts smaller (GPT-2).
        for name, parameter in self.named_parameters():
            if name.endswith(("mix.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * settings.layers))

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """Logits, B x T x 256."""
        x_btd = self.embedding(tokens_bt) + self.position.weight[: tokens_bt.shape[1]]
        for block in self.blocks:
            x_btd = block(x_btd)
        return functional.linear(self.norm(x_btd), self.embedding.weight)


class ByteGPT(Task):
    """Next-byte prediction on any text."""

    name: ClassVar[str] = "byte-gpt"
    Settings: ClassVar[type[msgspec.Struct]] = ByteGPTSettings
    parsed: ByteGPTSettings

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        self.corpus = load_corpus(context.data)
        self._offsets = np.arange(self.parsed.context + 1)

    def build_model(self) -> Transformer:
        """A transformer with GPT-2's initialisation."""
        return Transformer(self.parsed)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW; weight decay on matrices only."""
        decayed = [p for p in model.parameters() if p.dim() >= 2]
        plain = [p for p in model.parameters() if p.dim() < 2]
        return torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.parsed.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=self.parsed.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )

    def batch(self, index: int) -> Batch:
        """Windows at random places of the training text."""
        # A counter-based generator: batch i needs no history.
        rng = np.random.Generator(
            np.random.Philox(key=self.context.stream, counter=[0, 0, self.context.seed, index])
        )
        text = self.corpus.train
        starts = rng.integers(0, text.size - self.parsed.context, self.parsed.batch)
        return self._windows(text, starts)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats per byte."""
        inputs, targets = batch
        logits = model(inputs)
        return functional.cross_entropy(logits.view(-1, BYTE_VALUES), targets.reshape(-1))

    def tokens(self, batch: Batch) -> int:
        """Bytes predicted."""
        return batch[0].numel()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a tenth of the peak."""
        peak, warmup, steps = self.parsed.learning_rate, self.parsed.warmup, self.context.steps
        if step < warmup:
            return peak * (step + 1) / warmup
        if not steps or steps <= warmup:
            return peak
        progress = min((step - warmup) / (steps - warmup), 1.0)
        return peak * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * progress)))

    def before_step(self, model: nn.Module) -> None:
        """Clip the gradient to the largest allowed norm."""
        nn.utils.clip_grad_norm_(model.parameters(), self.parsed.clip, foreach=True)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Nats per byte over fixed windows of the held-out text."""
        text, settings = self.corpus.validation, self.parsed
        rng = np.random.Generator(np.random.Philox(key=_EVALUATION_SEED))
        starts = rng.integers(0, text.size - settings.context, settings.evaluation_windows)
        total, tokens, training = 0.0, 0, model.training
        model.eval()
        with torch.inference_mode():
            for first in range(0, len(starts), 32):
                batch = self._windows(text, starts[first : first + 32])
                count = self.tokens(batch)
                total += float(self.loss(model, batch)) * count
                tokens += count
        model.train(training)
        return Evaluation(total / tokens, tokens)

    def sample(self, model: nn.Module) -> str:
        """Text written by the model after "def ", at temperature 0.7."""
        if not self.parsed.sample_bytes:
            return ""
        context, training = self.parsed.context, model.training
        generator = torch.Generator().manual_seed(self.context.seed)
        data = list(b"def ")
        model.eval()
        with torch.inference_mode():
            for _ in range(self.parsed.sample_bytes):
                window = torch.tensor([data[-context:]], device=self.context.device)
                logits = model(window)[0, -1].float().cpu()
                chances = functional.softmax(logits / 0.7, dim=-1)
                data.append(int(torch.multinomial(chances, 1, generator=generator)))
        model.train(training)
        return _printable(bytes(data))

    def describe(self) -> str:
        """Source and size of the corpus."""
        return self.corpus.describe()

    def _windows(self, text: np.ndarray, starts: np.ndarray) -> Batch:
        windows = torch.from_numpy(text[starts[:, None] + self._offsets].astype(np.int64))
        if self.context.device != "cpu":
            windows = windows.to(self.context.device, non_blocking=True)
        return windows[:, :-1], windows[:, 1:]


def _printable(data: bytes) -> str:
    """Text that is safe on a terminal: a model may well write escape sequences."""
    text = data.decode("utf-8", "replace")
    return "".join(
        c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
