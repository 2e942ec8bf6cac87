"""From the output of a process reward model (PRM) to one probability per step, and its vLLM server options.

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


def read_pooled(rows: Any, asked: PRMInput, head: Head, *, at: str, hint: str) -> list[float]:
    """Reads a vLLM pooler's answer for one solution.

    vLLM gives a row for every token (pooling type ALL), or for every token with the id of a step's position
    (STEP), and applies the activation itself. The number of rows shows which.

    Args:
        rows: One row per token: the probabilities (wrong, right), or the probability of right alone.
        asked: Input of the PRM.
        head: Kind of head that the format is read from.
        at: Name of the PRM, for errors.
        hint: Remedy, for errors about the number of rows.

    Returns:
        One probability per step.

    Raises:
        ScorerError: The answer is anything else.
    """
    chosen = _rows_of_steps(rows if isinstance(rows, list) else [], asked, at, hint)
    return [_score(row, number, len(chosen), head, at) for number, row in enumerate(chosen, start=1)]


def _rows_of_steps(rows: list[Any], asked: PRMInput, at: str, hint: str) -> list[Any]:
    ids, positions = asked.ids, asked.step_positions
    if len(rows) == len(ids):
        return [rows[position] for position in positions]
    tag = ids[positions[0]]
    tagged = [position for position, token in enumerate(ids) if token == tag]
    if len(rows) != len(tagged) or any(ids[position] != tag for position in positions):
        raise ScorerError(f"the PRM at {at} gave {len(rows)} scores for {len(positions)} steps; {hint}")
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
    format: str, *, tokenizer: PreTrainedTokenizerBase, step_token: str | None = None
) -> list[str]:
    """Returns the arguments after ``vllm serve MODEL`` for a PRM of this format.

    A language model that answers + or - is served as a classifier of one label, whose weights vLLM takes from
    the two rows of the output matrix (``method: from_2_way_softmax``): the sigmoid of their difference is the
    probability of + against -. The pooler answers for tokens with the id of a step's position only; the
    client knows which of them are steps. Needs vLLM 0.32 or later; loads neither torch nor vllm.

    A checkpoint with a value head is not in a layout that vLLM serves; ``trim-graph convert-prm`` writes one
    (`trim_graph.adapters.prm.convert`), and these are the arguments for that.

    Args:
        format: ``qwen``, ``math_shepherd``, ``skywork``, ``rlhflow`` or ``trim``.
        tokenizer: The PRM's tokenizer.
        step_token: The token after each step; None: the format's own.

    Returns:
        Arguments, one list element each, unquoted: ready for `subprocess`, to be quoted for a shell.

    Raises:
        ValueError: The format is not known, or the tokenizer does not fit it.
    """
    layout = prm_format(format, tokenizer, step_token=step_token)
    sample = layout.encode("a", ["b"])
    pooler: dict[str, Any] = {"pooling_type": "STEP", "step_tag_id": sample.ids[sample.step_positions[0]]}
    convert = []
    if layout.head != "labels":
        convert = ["--convert", "classify"]
        pooler["task"] = "token_classify"  # else a classifier takes whole texts only
    options = ["--runner", "pooling", *convert, "--pooler-config", json.dumps(pooler)]
    if layout.answer_ids is not None:
        names = tokenizer.convert_ids_to_tokens(list(layout.answer_ids))
        overrides: dict[str, Any] = {"method": "from_2_way_softmax", "classifier_from_token": names}
        options += ["--hf-overrides", json.dumps(overrides)]
    return options
