"""One optimisation loop for all three models: Muon on matrices, AdamW on the rest, a late linear decay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .corpus import Batch


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length and learning rates of a training.

    Attributes:
        steps: Optimiser steps; steps, not seconds, so that weights reproduce.
        rows: Sequences a step.
        matrix_rate: Muon's learning rate (scaled to match AdamW's update size).
        rate: AdamW's learning rate.
        decay_from: Share of the steps after which the rate falls linearly to zero.
    """

    steps: int
    rows: int = 128
    matrix_rate: float = 0.02
    rate: float = 0.003
    decay_from: float = 0.5


def optimise(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[Batch], torch.Tensor],
    schedule: Schedule,
    *,
    device: str,
    log: Callable[[str], None],
    at: Mapping[int, Callable[[], None]] | None = None,
) -> None:
    """Trains ``model`` in place on ``batches``.

    Args:
        model: Of its parameters those that want a gradient are trained; those of two dimensions, embeddings
            aside, by Muon (Jordan et al. 2024).
        batches: Yields at least ``schedule.steps`` batches.
        loss: Mean loss of a batch.
        schedule: Steps and rates.
        device: Where the batches are sent.
        log: Called about every hundredth of the way.
        at: What else to do after a given number of steps.
    """
    import torch

    from .corpus import Batch

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = [p for n, p in trained.items() if p.ndim == 2 and "embed" not in n and "score.2" not in n]
    chosen = {id(p) for p in hidden}
    rest = [p for p in trained.values() if id(p) not in chosen]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=schedule.matrix_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(rest, lr=schedule.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    rates = [schedule.matrix_rate, schedule.rate]
    warm = max(1, schedule.steps // 50)
    every = max(1, schedule.steps // 100)
    begun, running = time.perf_counter(), torch.zeros((), device=device)
    model.train()
    for step, batch in enumerate(batches):
        left = (schedule.steps - step) / (schedule.steps * (1 - schedule.decay_from))
        factor = min(1.0, (step + 1) / warm, left)
        value = loss(Batch(batch.ids.to(device), batch.targets.to(device)))
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, rate in zip(optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        running += value.detach()
        if (step + 1) % every == 0:
            spent = time.perf_counter() - begun
            log(f"step {step + 1}/{schedule.steps} loss {running.item() / every:.4f} {spent:.0f} s")
            running.zero_()
        if at and step + 1 in at:
            at[step + 1]()
    model.eval()
