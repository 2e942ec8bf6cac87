"""Text that UTF-8 can hold: what tokenizers and HTTP bodies need, and what a Python string need not be."""

from __future__ import annotations

import json
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """Put U+FFFD in place of each lone surrogate, as decoders do; the length stays."""
    return _SURROGATE.sub("\ufffd", text)


def json_body(payload: Any) -> bytes:
    """Write a payload as JSON in UTF-8; lone surrogates in its texts become U+FFFD.

    Raises:
        ValueError: It holds a number that is none (NaN, infinity).
    """
    return well_formed(json.dumps(payload, ensure_ascii=False, allow_nan=False)).encode()
