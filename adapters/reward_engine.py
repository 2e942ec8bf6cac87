"""A PRM in this process and the worker that batches the calls to it. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .batching import BatchWorker
from .model_source import max_positions
from .prm_formats import Head
from .prm_head import load_network
from .prm_scores import probability

if TYPE_CHECKING:
    from .process_reward_transformers import RewardJob

_BATCH_TOKENS = 16384
"""Most tokens in a batch, padding included, that more than one solution make up."""


class RewardEngine:
    """A PRM's weights and their worker.

    Args:
        model: Folder or hub id.
        device: Where the weights go.
        dtype: ``auto`` or the name of a torch dtype.
        head: What the format is read from.
        answer_ids: The format's, where that is a language model.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        dtype: str,
        *,
        head: Head = "labels",
        answer_ids: tuple[int, int] | None = None,
    ) -> None:
        self._model = load_network(head, model, answer_ids=answer_ids, device=device, dtype=dtype)
        self._device = device
        self.max_positions = max_positions(self._model)
        self.worker: BatchWorker[RewardJob] = BatchWorker(
            self._run, fits=self._fits, name=f"trim-graph score {model}"
        )

    @staticmethod
    def _fits(batch: list[RewardJob], job: RewardJob) -> bool:
        lengths = [len(one.input.ids) for one in [*batch, job]]
        padded = max(lengths) * len(lengths)
        # A batch more than half padding costs more than two batches.
        return padded <= _BATCH_TOKENS and padded <= 2 * sum(lengths)

    @torch.inference_mode()
    def _run(self, jobs: list[RewardJob]) -> None:
        longest = max(len(job.input.ids) for job in jobs)
        ids = torch.zeros((len(jobs), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        rows: list[int] = []
        columns: list[int] = []
        for i, job in enumerate(jobs):
            # Padding on the right is never attended to by what stands before it.
            ids[i, : len(job.input.ids)] = torch.tensor(job.input.ids)
            mask[i, : len(job.input.ids)] = 1
            rows += [i] * len(job.input.step_positions)
            columns += job.input.step_positions
        positions = torch.tensor(rows, device=self._device), torch.tensor(columns, device=self._device)
        outputs = self._model(ids.to(self._device), mask.to(self._device), positions)
        scores = [probability(one) for one in outputs.float().tolist()]
        for job in jobs:
            count = len(job.input.step_positions)
            job.settle(scores[:count])
            scores = scores[count:]
