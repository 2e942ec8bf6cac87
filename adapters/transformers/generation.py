"""Batched generation with transformers: the weights, the batches, and `generate()`. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from trim_graph.adapters.hub import hub_options
from trim_graph.adapters.model_source import load_tokenizer, max_positions
from trim_graph.adapters.tokenization import SpecialTokenGuard, encode_chat, template_opens_reasoning

from .batching import BatchWorker, GenerationJob, Row

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

_PADDING_TOKENS = 1024
"""Padding a batch may always hold; beyond it, prompts of very different length go into separate batches."""
_LEAST_TEMPERATURE = 1e-6
"""Temperature that a lower one counts as: logits divided by it would exceed float32."""


class GenerationEngine:
    """A causal language model in this process, and the worker that batches the calls to it.

    Args:
        model: Folder or hub id.
        device: Device of the weights.
        dtype: ``auto`` or the name of a torch dtype.
    """

    def __init__(self, model: str, device: torch.device, dtype: str) -> None:
        self.tokenizer = load_tokenizer(model)
        self.guard = SpecialTokenGuard(self.tokenizer)
        self._backend = self.tokenizer.backend_tokenizer
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, trust_remote_code=False, **hub_options(model)
        )
        self._model = loaded.to(device).eval()
        self._device = device
        self.max_positions = max_positions(self._model)
        self.end_ids = _end_ids(self._model, self.tokenizer)
        self._pad_id = _pad_id(self.tokenizer, self.end_ids)
        # A model's own sampling defaults (top_k, repetition_penalty) would be mixed into every call.
        self._model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self.worker: BatchWorker[GenerationJob] = BatchWorker(
            self._run, fits=self._fits, name=f"trim-graph generate {model}"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> GenerationEngine:
        """Copies of an adapter share the weights."""
        return self

    @cached_property
    def starts_in_reasoning(self) -> bool:
        """Whether the chat template opens reasoning before the model writes."""
        return template_opens_reasoning(self.tokenizer, {})

    def encode(self, messages: Sequence[BaseMessage]) -> list[int]:
        """Returns token ids of the prompt for a conversation."""
        return encode_chat(messages, self.tokenizer, self.guard)

    def label_ids(self, labels: Sequence[str]) -> dict[int, str]:
        """Returns the tokens that spell a label, alone or behind a space, with the label."""
        found = dict[int, str]()
        for label in labels:
            for text in (label, f" {label}"):
                # Behind a sign, no tokenizer takes a label for the beginning of a text.
                token = self.guard.encode("", f":{text}")[-1]
                if self._backend.decode([token]).strip() == label:
                    found[token] = label
        return found

    def _fits(self, batch: list[GenerationJob], job: GenerationJob) -> bool:
        jobs = [*batch, job]
        lengths = [len(one.prompt) for one in jobs]
        longest, total = max(lengths), sum(lengths)
        if longest * len(jobs) - total > max(_PADDING_TOKENS, total):
            return False
        # Finished rows run on until the batch ends and must not leave the positions the model knows.
        new_tokens = max(one.settings.max_tokens for one in jobs)
        return self.max_positions is None or longest + new_tokens <= self.max_positions

    def _run(self, jobs: list[GenerationJob]) -> None:
        rows = [Row(job, self._backend, self.end_ids) for job in jobs]
        longest = max(len(job.prompt) for job in jobs)
        ids = torch.full((len(jobs), longest), self._pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, job in enumerate(jobs):
            ids[i, longest - len(job.prompt) :] = torch.tensor(job.prompt)
            mask[i, longest - len(job.prompt) :] = 1
        chooser = _Chooser(rows, self._device)
        self._model.generate(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False,  # the chooser samples
                max_new_tokens=max(job.settings.max_tokens for job in jobs),
                pad_token_id=self._pad_id,
            ),
            logits_processor=LogitsProcessorList([chooser]),
            stopping_criteria=StoppingCriteriaList([_RowsDone(rows, chooser, self.worker.drop_waiting)]),
        )


class _Chooser(LogitsProcessor):
    """Chooses every row's next token under the row's own temperature, top_p and seed.

    It leaves the choice as the only finite logit, so that greedy `generate` takes it. Greedy and sampled rows
    thus share a batch, and a seed gives the same answer whoever else is in it.
    """

    def __init__(self, rows: list[Row], device: torch.device) -> None:
        self.probabilities: list[float] | None = None
        self._rows = rows
        self._wants_probability = any(row.job.settings.logprobs for row in rows)
        self._entropies_wanted = [row for row in rows if row.job.settings.first_token_entropy]
        self._labels_wanted = [(i, row) for i, row in enumerate(rows) if row.job.labels is not None]
        self._generators = {
            i: _generator(row.job.settings.seed, device)
            for i, row in enumerate(rows)
            if row.job.settings.temperature > 0
        }

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._entropies_wanted:
            self._record_entropies(scores)
        if self._labels_wanted:
            self._record_labels(scores)
        if not self._generators and not self._wants_probability:
            return scores
        choice = scores.argmax(dim=-1)
        for i, generator in self._generators.items():
            if not self._rows[i].done:
                settings = self._rows[i].job.settings
                choice[i] = _draw(scores[i], settings.temperature, settings.top_p, generator)
        chosen = choice.unsqueeze(-1)
        if self._wants_probability:
            log_p = scores.gather(-1, chosen).squeeze(-1) - scores.logsumexp(dim=-1)
            self.probabilities = log_p.exp().tolist()
        only: Any = torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)
        return only  # type: ignore[no-any-return]

    def _record_entropies(self, scores: torch.Tensor) -> None:
        """Records the entropy of the first token for the rows that want it; a batch's rows begin together."""
        entropies = torch.special.entr(scores.float().softmax(dim=-1)).sum(dim=-1).tolist()
        for row, entropy in zip(self._rows, entropies, strict=True):
            if row in self._entropies_wanted:
                row.first_token_entropy = entropy
        self._entropies_wanted = []

    def _record_labels(self, scores: torch.Tensor) -> None:
        """Records the probability of each label as the first token, that of all its tokens together."""
        for i, row in self._labels_wanted:
            labels = row.job.labels or {}
            seen = scores[i].float().softmax(dim=-1)[list(labels)].tolist()
            row.label_probabilities = dict.fromkeys(labels.values(), 0.0)
            for label, probability in zip(labels.values(), seen, strict=True):
                row.label_probabilities[label] += probability
        self._labels_wanted = []


class _RowsDone(StoppingCriteria):
    """Passes each new token to its row and reports to `generate` which rows are done."""

    def __init__(self, rows: list[Row], chooser: _Chooser, each_step: Callable[[], None]) -> None:
        self._rows = rows
        self._chooser = chooser
        self._each_step = each_step

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        probabilities = self._chooser.probabilities
        for i, token in enumerate(input_ids[:, -1].tolist()):
            row = self._rows[i]
            wanted = probabilities is not None and row.job.settings.logprobs
            row.push(token, probabilities[i] if wanted and probabilities is not None else None)
        self._each_step()
        done: Any = torch.tensor([row.done for row in self._rows], device=input_ids.device)
        return done  # type: ignore[no-any-return]


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _draw(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> torch.Tensor:
    probabilities = torch.softmax(logits / max(temperature, _LEAST_TEMPERATURE), dim=-1)
    if top_p < 1:
        ordered, places = probabilities.sort(descending=True)
        # A token stays while those before it have not reached top_p, so the likeliest always does.
        ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0.0
        probabilities = torch.zeros_like(probabilities).scatter_(-1, places, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)[0]


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Returns end-of-sequence ids that the generation config, the model config or the tokenizer name."""
    found: set[int] = set()
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(found)


def _pad_id(tokenizer: Any, end_ids: frozenset[int]) -> int:
    """Returns the id for padding; any will do, because padding is masked."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return min(end_ids, default=0)
