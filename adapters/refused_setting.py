"""A server's refusal of a setting of the call: which setting it is, and the remedy."""

from __future__ import annotations

import re

LOGPROBS = ("logprobs", "top_logprobs")

_REMEDIES = {
    "top_logprobs": "choose a model that tells log-probabilities, or do without them",
    "logprobs": "choose a model that tells log-probabilities, or do without them",
    "stop": "leave out stop strings: ContinueByPrompt sends them with send_stop=True only",
    "temperature": "build the model without temperature",
    "max_completion_tokens": "for a writer ContinueByPrompt(model, max_tokens_name=...) names it otherwise",
    "max_tokens": "for a writer ContinueByPrompt(model, max_tokens_name=...) names it otherwise",
    "timeout": "ContinueByPrompt(model, timeout_name=None) does not send it",
}
"""Settings that hosted models are known to refuse. Of two in one text the first here is the one refused."""

_REFUSES = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra (?:inputs|fields)"
    r"|not (?:allowed|permitted)",
    re.IGNORECASE,
)
_OTHER_REASONS = {401, 402, 404, 408, 409, 413, 429}
"""HTTP statuses that say nothing of a setting: the key, the address, the size, the rate."""


def refused_setting(error: BaseException) -> str | None:
    """Return the name of the setting that a call failed for; None where it failed for another reason.

    Source: OpenAI's errors have ``param`` and a code such as ``unsupported_parameter``; other servers and
    gateways name the setting in their text.

    Args:
        error: Of the model's client, or a TypeError of a model that does not know the setting.
    """
    status = _status(error)
    refusable = status is not None and 400 <= status < 500 and status not in _OTHER_REASONS
    text = str(error)
    if not refusable and not (isinstance(error, TypeError) and "unexpected keyword" in text):
        return None
    refuses = bool(_REFUSES.search(f"{getattr(error, 'code', '')} {text}"))
    if refuses and (named := getattr(error, "param", None)) in _REMEDIES:
        return str(named)
    found = re.findall(r"['\"`](\w+)['\"`]|\b(\w*logprobs)\b", text)
    names = {one for pair in found for one in pair if one}
    # A number of log-probabilities that a server does not give is refused by its value.
    return next((name for name in _REMEDIES if name in names and (refuses or name in LOGPROBS)), None)


def remedy(error: BaseException) -> str | None:
    """Say which setting a model refuses, and what to do; None where the error has another reason."""
    name = refused_setting(error)
    return None if name is None else f"the model refuses the setting {name}: {_REMEDIES[name]}"


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    told = (getattr(error, "status_code", None), getattr(error, "status", None))
    given = (*told, getattr(response, "status_code", None))
    return next((value for value in given if isinstance(value, int)), None)
