"""Errors in the shape of OpenAI's API, and which one an error of a run becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails

from trim_graph.errors import (
    CallTimeoutError,
    ContextLengthError,
    InputError,
    StorageError,
    TrimError,
    http_status,
)

_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
"""OpenAI's names for pydantic's types of errors; see `_code_of` for the others."""
BUSY_S = 1.0
"""Seconds after which a client may ask again where a model's server has too much to do."""


class ApiError(Exception):
    """An error that a client gets.

    Args:
        status: HTTP status.
        message: For whoever wrote the request; holds nothing of models, keys or other requests.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``.
        param: Name of the wrong part of the request.
        retry_after: Seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.code, self.param, self.retry_after = code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer that the error adds."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    def response(self) -> JSONResponse:
        """Returns the answer."""
        return JSONResponse(self.body, self.status, self.headers)


def of_validation(errors: Sequence[ErrorDetails]) -> ApiError:
    """Returns the error of a request that is not valid, by pydantic's first finding.

    Args:
        errors: What pydantic found; what was given is not repeated.
    """
    first = errors[0]
    param = _path(first["loc"]) or None
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body of the request is not JSON: {first['msg']}", code="invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "this server does not know it, and ignores nothing that could change an answer"
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code=_code_of(first))


def _code_of(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind in _CODES:
        return _CODES[kind]
    if kind.startswith("unsupported_"):
        return kind
    return "invalid_type" if kind.endswith("_type") else "invalid_value"


def _path(place: Sequence[int | str]) -> str:
    """Returns the place of a finding as ``messages[0].content``."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith("list["):  # pydantic's name for one of several types
            text += f".{part}" if text else part
    return text


def of_run(error: Exception, request_id: str) -> ApiError:
    """Returns the error that a client gets for a run that failed.

    The messages of models and their servers stay in the log, since they name addresses.

    Args:
        error: What the run raised.
        request_id: By which the log names the request.
    """
    if isinstance(error, InputError):
        return ApiError(400, str(error), param="messages", code="invalid_value")
    if isinstance(error, ContextLengthError):
        message = "the conversation does not fit into the context of a model"
        return ApiError(400, message, param="messages", code="context_length_exceeded")
    seen = f"the server's log says more of request {request_id}"
    if isinstance(error, TimeoutError | CallTimeoutError):
        return ApiError(504, f"a model did not answer in time; {seen}", kind="server_error", code="timeout")
    if isinstance(error, StorageError):
        message = f"the accounts of API keys cannot be read or written; {seen}"
        return ApiError(503, message, kind="server_error", code="ledger_unavailable", retry_after=BUSY_S)
    status = http_status(error)
    if status == 429:
        message = f"a model's server has too much to do; {seen}"
        return ApiError(503, message, kind="server_error", code="model_overloaded", retry_after=BUSY_S)
    if isinstance(error, TrimError) or status is not None:
        message = f"a model or the scorer failed; {seen}"
        return ApiError(502, message, kind="server_error", code="model_failed")
    return ApiError(500, f"internal error; {seen}", kind="server_error", code="internal_error")
