"""What a vLLM server has to be started with so that it serves a process reward model (PRM)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .prm_formats import prm_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def serve_options(
    format: str, *, tokenizer: PreTrainedTokenizerBase, step_token: str | None = None
) -> list[str]:
    """The arguments after ``vllm serve MODEL`` for a PRM of this format.

    A language model that answers + or - is served as a classifier of one label, whose weights vLLM takes from
    the two rows of the output matrix (``method: from_2_way_softmax``): the sigmoid of their difference is the
    probability of + against -. The pooler answers for tokens with the id of a step's position only; which of
    them are steps the client knows. Needs vLLM 0.32 or later; loads neither torch nor vllm.

    A checkpoint with a value head is not in a layout that vLLM serves; ``trim-graph convert-prm`` writes one
    (`trim_graph.adapters.prm_convert`), and these are the arguments for that.

    Args:
        format: ``qwen``, ``math_shepherd``, ``skywork`` or ``rlhflow``.
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
