"""The file `trim_scorer.json` of a trained scorer's folder, and what a reward model takes from it.

Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trim_graph.adapters.base import ScorableStep
from trim_graph.adapters.hub import hub_options
from trim_graph.adapters.model_source import import_transformers, local_file

from .formats import FormatName, PRMFormat, is_chat, prm_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trim_graph.adapters.settings import PRMSettings

SCORER_FILE = "trim_scorer.json"
LEAST_SCORE = 1e-6
LEAST_TOKEN_PROBABILITY = 1e-3
"""Distances that a score and a token probability keep from 0 and 1 before their log-odds are taken. Greedy
steps often have a token probability near 1, which is not to outweigh any score."""


def log_odds(probability: float, least: float) -> float:
    """Returns the logarithm of the odds of a probability.

    Args:
        probability: In [0, 1].
        least: Distance that it keeps from 0 and 1.
    """
    inside = min(max(probability, least), 1 - least)
    return math.log(inside / (1 - inside))


class Stacking(BaseModel):
    """A logistic regression of a step's label on the head's score and the mean token probability.

    Both enter by their log-odds. Source: stacked generalization (Wolpert 1992), fitted on the questions on
    which the scorer is calibrated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    intercept: float
    """Constant term."""
    score: float = Field(ge=0)
    """Weight of the head's score."""
    token_probability: float = Field(gt=0)
    """Weight of the mean token probability."""

    def scores(self, scores: Sequence[float], steps: Sequence[str]) -> list[float]:
        """Returns the scores of steps from those of the head.

        A step of another writer keeps the head's score, which is calibrated by itself; so does a step whose
        token probability is not known.

        Args:
            scores: Scores of the head in [0, 1], one a step.
            steps: The steps.
        """
        return [self._score(score, step) for score, step in zip(scores, steps, strict=True)]

    def _score(self, score: float, step: str) -> float:
        if not isinstance(step, ScorableStep) or step.writer != "small":
            return score
        if step.mean_token_probability is None:
            return score
        value = self.intercept + self.score * log_odds(score, LEAST_SCORE)
        value += self.token_probability * log_odds(step.mean_token_probability, LEAST_TOKEN_PROBABILITY)
        return 1 / (1 + math.exp(-max(value, -700.0)))


class ScorerFile(BaseModel):
    """Content of `trim_scorer.json`: how a trained scorer reads a solution, and where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    """Version of this file's layout."""
    format: Literal["trim"] = "trim"
    """Format of the input; see `trim_graph.adapters.prm.formats.TrimPRMFormat`."""
    step_token: str = Field(min_length=1)
    """The token after each step."""
    system_prompt: str | None = None
    """First turn of the chat; None leaves it to the chat template."""
    base: str
    """Model that was trained, by its hub id or the name of its folder."""
    tuning: Literal["head", "lora", "full"]
    """Weights that were trained: the head alone, LoRA adapters (merged), or all."""
    method: str
    """Method of the step labels."""
    stacking: Stacking | None = None
    """How the score of a small model's step is combined with its token probability; None: it is not."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Figures of the model card, measured on held-out questions."""

    def write(self, folder: Path) -> None:
        """Writes the file into a folder."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (folder / SCORER_FILE).write_text(text + "\n", "utf-8")


def read_scorer_file(place: str, *, download: bool = True) -> ScorerFile | None:
    """Reads the file of a model.

    Args:
        place: Folder or hub id.
        download: Whether the file of a hub id is downloaded if the repository has one; else it is read where
            the hub's cache has it.

    Returns:
        The content; None for a model without the file.

    Raises:
        ValueError: The file is not a trained scorer's, or the hub does not give the model.
    """
    file = local_file(place, SCORER_FILE)
    if file is None and download and not Path(place).is_dir():
        import_transformers()
        from transformers.utils.hub import cached_file

        found = cached_file(
            place,
            SCORER_FILE,
            _raise_exceptions_for_missing_entries=False,
            **hub_options(place),
        )
        file = None if found is None else Path(found)
    if file is None:
        return None
    state = file.stat()
    try:
        return _parsed(file, state.st_mtime_ns, state.st_size)
    except (ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{SCORER_FILE} of {place} is not a trained scorer's: {error}") from error


@lru_cache(maxsize=64)
def _parsed(file: Path, changed_ns: int, size: int) -> ScorerFile:
    """Reads a file; one that has not changed is read once, since each score depends on what it says."""
    return ScorerFile.model_validate_json(file.read_text("utf-8"))


class FormatChoice(NamedTuple):
    """Format of a reward model with its settings, none of them left open."""

    name: FormatName
    step_token: str | None
    system_prompt: str | None
    stacking: Stacking | None = None

    def stacked(self, scores: Sequence[float], steps: Sequence[str]) -> Sequence[float]:
        """Returns the scores of steps from those of the head; see `Stacking.scores`."""
        return scores if self.stacking is None else self.stacking.scores(scores, steps)

    @property
    def needs_chat_template(self) -> bool:
        """Whether the PRM's tokenizer must have a chat template."""
        return is_chat(self.name)

    def layout(self, tokenizer: PreTrainedTokenizerBase) -> PRMFormat:
        """Makes the format; see `prm_format`."""
        return prm_format(self.name, tokenizer, step_token=self.step_token, system_prompt=self.system_prompt)


def chosen_format(settings: PRMSettings, place: str, *, download: bool = True) -> FormatChoice:
    """Returns the format of a reward model.

    A setting that is given decides. What is left open, ``auto`` or None, a trained scorer's file answers; a
    model without one has the format ``qwen`` where ``format`` is ``auto``.

    Args:
        settings: Settings of the reward model.
        place: Folder or hub id of its tokenizer.
        download: See `read_scorer_file`.

    Raises:
        ValueError: The model's `trim_scorer.json` cannot be read.
    """
    token, prompt = settings.step_token, settings.system_prompt
    file = read_scorer_file(place, download=download) if settings.format in ("auto", "trim") else None
    if file is None:
        return FormatChoice("qwen" if settings.format == "auto" else settings.format, token, prompt)
    return FormatChoice(
        file.format,
        token or file.step_token,
        file.system_prompt if prompt == "auto" else prompt,
        file.stacking,
    )


class StackedReward:
    """A reward model whose `trim_scorer.json` may combine its scores with token probabilities."""

    if TYPE_CHECKING:
        format: Any
        model: Any

    @property
    def reads_token_probability(self) -> bool:
        """Whether scores depend on the small model's token probabilities, as far as the file is here."""
        if self.format not in ("auto", "trim"):
            return False
        file = read_scorer_file(getattr(self, "tokenizer", None) or self.model, download=False)
        return file is not None and file.stacking is not None

    @property
    def reads_reports(self) -> bool:
        """Whether a score depends on more of a step than its text."""
        return self.reads_token_probability
