"""What a vLLM server has to be started with so that it serves a process reward model (PRM)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def serve_options(
    format: str, *, tokenizer: PreTrainedTokenizerBase, step_token: str | None = None
) -> list[str]:
    """The arguments after ``vllm serve MODEL`` for a PRM of this format.

    Loads neither torch nor vllm.

    Args:
        format: ``qwen``.
        tokenizer: The PRM's tokenizer.
        step_token: The token after each step; None: the format's own.

    Returns:
        Arguments, one list element each, unquoted: ready for `subprocess`, to be quoted for a shell.

    Raises:
        ValueError: The format is not known, or the tokenizer has no such step token.
    """
    if format != "qwen":
        raise ValueError(f"format={format!r} is not known; 'qwen' is the one there is")
    token = step_token or "<extra_0>"
    added = tokenizer.get_added_vocab()
    if token not in added:
        raise ValueError(f"step_token={token!r} is not an added token of this tokenizer")
    pooler = {"pooling_type": "STEP", "step_tag_id": added[token]}
    return ["--runner", "pooling", "--pooler-config", json.dumps(pooler)]
