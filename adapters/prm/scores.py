"""Step scores from the output of a process reward model (PRM), and its vLLM server options.

Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trim_graph.errors import ScorerError

from .formats import Head, PRMInput, prm_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLUGIN_ARCHITECTURE = "TrimQwen2ForProcessReward"
"""Name of the model class that the plugin for vLLM registers (`trim_graph.adapters.vllm.plugin`)."""

_SUM = 1e-2
"""Tolerance of the sum of two labels' probabilities: bfloat16 has three digits."""


def probability(outputs: Sequence[float]) -> float:
    """Returns the score of a step from the outputs of the PRM's head there, before any activation.

    Args:
        outputs: Two logits (wrong, right): the softmax of the second; or one value: its sigmoid.

    Returns:
        A probability in [0, 1]; NaN where an output is not finite.
    """
    if not all(map(math.isfinite, outputs)):
        return math.nan
    value = outputs[1] - outputs[0] if len(outputs) == 2 else outputs[0]
    small = math.exp(-abs(value))
    return 1 / (1 + small) if value >= 0 else small / (1 + small)


def read_pooled(rows: Any, asked: PRMInput, head: Head, *, at: str, fix: str) -> list[float]:
    """Reads a vLLM pooler's answer for one solution.

    vLLM gives a row for every token (pooling type ALL), or for every token with the id of a step's position
    (STEP), and applies the activation itself. The number of rows shows which.

    Args:
        rows: One row per token: the probabilities (wrong, right), or the probability of right alone.
        asked: Input of the PRM.
        head: Kind of head that the format is read from.
        at: Name of the PRM, for errors.
        fix: Remedy, for errors about the number of rows.

    Returns:
        One probability per step.

    Raises:
        ScorerError: The answer is anything else.
    """
    chosen = _rows_of_steps(rows if isinstance(rows, list) else [], asked, at, fix)
    return [_score(row, number, len(chosen), head, at) for number, row in enumerate(chosen, start=1)]


def read_classified(
    rows: Sequence[Any], steps: Sequence[int], count: int, head: Head, *, at: str
) -> list[float]:
    """Reads a vLLM pooler's answers to inputs of which each ends at a step (pooling type LAST).

    Args:
        rows: One for each input: the probabilities (wrong, right), or the probability of right alone.
        steps: Number of the step that each input ends at, from 1.
        count: Number of steps of the solution.
        head: Kind of head that the format is read from.
        at: Name of the PRM, for errors.

    Returns:
        One probability per input.

    Raises:
        ScorerError: An answer is anything else.
    """
    return [_score(row, step, count, head, at) for row, step in zip(rows, steps, strict=True)]


def _rows_of_steps(rows: list[Any], asked: PRMInput, at: str, fix: str) -> list[Any]:
    ids, positions = asked.ids, asked.step_positions
    if len(rows) == len(ids):
        return [rows[position] for position in positions]
    tag = ids[positions[0]]
    tagged = [position for position, token in enumerate(ids) if token == tag]
    if len(rows) != len(tagged) or any(ids[position] != tag for position in positions):
        raise ScorerError(f"the PRM at {at} gave {len(rows)} scores for {len(positions)} steps; {fix}")
    by_position = dict(zip(tagged, rows, strict=True))
    return [by_position[position] for position in positions]


def _score(row: Any, number: int, count: int, head: Head, at: str) -> float:
    values = row if isinstance(row, list) else [row]
    widths = {"labels": (2,), "value": (1,), "tokens": (1, 2)}[head]
    if len(values) not in widths:
        expected = "[wrong, right]" if head == "labels" else "one probability"
        raise ScorerError(f"the PRM at {at} gave {row!r} for step {number}; expected {expected}")
    score = values[-1]
    if not isinstance(score, int | float) or not (math.isfinite(score) and 0.0 <= score <= 1.0):
        raise ScorerError(
            f"the PRM at {at} gave {score} for step {number} of {count}, not a probability in [0, 1]"
        )
    if len(values) == 2 and not (isinstance(values[0], int | float) and abs(sum(values) - 1) <= _SUM):
        raise ScorerError(
            f"the PRM at {at} gave {row!r} for step {number} of {count}, which are not the probabilities of "
            "wrong and right"
        )
    return float(score)


def serve_options(
    format: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    step_token: str | None = None,
    plugin: bool = False,
) -> list[str]:
    """Returns the arguments after ``vllm serve MODEL`` for a PRM of this format.

    The server classifies an input at its last token (pooling type LAST), which is where the score of its last
    step is, and vLLM takes the tokens before from its prefix cache. The cache is on by default for this
    pooling type. A language model that answers + or - is served as a classifier of one label, whose weights
    vLLM takes from the two rows of the output matrix (``method: from_2_way_softmax``): the sigmoid of their
    difference is the probability of + against -.

    The two-layer head of the format ``qwen`` is none that vLLM classifies inputs with. The plugin of this
    package has a model class that does (`trim_graph.adapters.vllm.plugin`). Without it the pooler answers for
    tokens with the id of the step token (STEP), which reads the whole input at each pass.

    A checkpoint with a value head is not in a layout that vLLM serves; ``trim-graph convert-prm`` writes one
    (`trim_graph.adapters.prm.convert`), and these are the arguments for that. Needs vLLM 0.32 or later; loads
    neither torch nor vllm.

    Args:
        format: ``qwen``, ``math_shepherd``, ``skywork``, ``rlhflow`` or ``trim``.
        tokenizer: The PRM's tokenizer.
        step_token: The token after each step; None: the format's own.
        plugin: Whether the vLLM loads this package's plugin, and the PRM is of a layout that this serves; see
            `trim_graph.adapters.vllm.plugin.serves`.

    Returns:
        Arguments, one list element each, unquoted: ready for `subprocess`, to be quoted for a shell.

    Raises:
        ValueError: The format is not known, or the tokenizer does not fit it.
    """
    layout = prm_format(format, tokenizer, step_token=step_token)
    if layout.head == "labels":
        if plugin:
            return plugin_options()
        sample = layout.encode("a", ["b"])
        step: dict[str, Any] = {"pooling_type": "STEP", "step_tag_id": sample.ids[sample.step_positions[0]]}
        return ["--runner", "pooling", "--pooler-config", json.dumps(step)]
    options = ["--runner", "pooling", "--convert", "classify", "--pooler-config", json.dumps(_LAST)]
    if layout.answer_ids is not None:
        names = tokenizer.convert_ids_to_tokens(list(layout.answer_ids))
        overrides: dict[str, Any] = {"method": "from_2_way_softmax", "classifier_from_token": names}
        options += ["--hf-overrides", json.dumps(overrides)]
    return options


_LAST = {"pooling_type": "LAST", "task": "classify"}


def plugin_options() -> list[str]:
    """Returns the arguments for a PRM that the plugin's model class serves; see `serve_options`."""
    overrides = {"architectures": [PLUGIN_ARCHITECTURE]}
    pooler = ["--pooler-config", json.dumps(_LAST)]
    return ["--runner", "pooling", *pooler, "--hf-overrides", json.dumps(overrides)]
