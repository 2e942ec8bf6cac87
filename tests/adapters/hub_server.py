"""The Hugging Face hub as its client sees it: answers over HTTP, without a socket."""

from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import _http

ERRORS = {
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}),
    "gated, no token": (
        401,
        {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."},
    ),
    "not found": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "not found, no token": (401, {"X-Error-Message": "Invalid username or password."}),
    "token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "no config": (404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}),
    "busy": (503, {}),
}
"""Status and headers by which the hub says what is wrong, as `hf_raise_for_status` reads them."""


def serve(monkeypatch, answer, *, token=None, cache=None):
    """Has the hub's client talk to ``answer``, a name in `ERRORS`, ``ok``, or ``unreachable``.

    Returns:
        The requests for files that were made, as they come.
    """
    library: Any = vars(_http).get("httpx2") or _http.httpx  # by the release of the client
    requests = []

    def handle(request):
        if "/resolve/" in str(request.url):  # the client asks for other things too
            requests.append(request)
        if answer == "unreachable":
            raise library.ConnectError("[Errno -2] Name or service not known", request=request)
        if answer == "ok":
            headers = {"ETag": '"1"', "X-Repo-Commit": "0" * 40, "Content-Length": "2"}
            return library.Response(200, headers=headers, request=request)
        status, headers = ERRORS[answer]
        return library.Response(status, headers=headers, request=request)

    def client():
        return library.Client(transport=library.MockTransport(handle))

    monkeypatch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", client)
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    if cache is not None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert huggingface_hub.get_token() == token
    return requests
