"""What differs between servers that speak OpenAI's protocol: vLLM, SGLang and llama.cpp's server.

All three answer ``/v1/chat/completions`` and ``/v1/completions``. They differ in how they count and render a
prompt without answering it, and in where they report why they stopped (see `vllm_wire`).

Sources: vLLM 0.32, ``entrypoints/serve/tokenize``; SGLang, ``srt/entrypoints/openai/serving_tokenize.py`` and
``serving_chat.py``; llama.cpp, ``tools/server/README.md`` and ``server-context.cpp``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from trim_graph.errors import ModelServerError

Post = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Posts a document to a path of the server, and returns the answer."""


class Dialect:
    """vLLM's, which is taken where a server does not name another one.

    Attributes:
        name: Of the server.
        renders: Whether the server returns the tokens of a conversation without answering it. Where it does
            not, its chat endpoint must continue a text exactly by itself.
        takes_text: Whether a completion's prompt may be a text that is tokenised as it is; else ids are sent.
    """

    name = "vLLM"
    renders = True
    takes_text = True

    def max_model_len(self, entry: Mapping[str, Any]) -> int | None:
        """Longest sequence in tokens, from the model's entry in ``/v1/models``."""
        length = entry.get("max_model_len")
        return length if isinstance(length, int) else None

    def adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """The sampling part of a generation request in this dialect."""
        return body

    async def tokens(self, post: Post, body: dict[str, Any]) -> list[int]:
        """Token ids of a text (``prompt``) or of a conversation (``messages``)."""
        return [int(token) for token in await _asked(post, "/tokenize", body, "tokens")]

    async def text(self, post: Post, tokens: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(await _asked(post, "/detokenize", {"tokens": tokens}, "prompt"))


class SGLang(Dialect):
    """SGLang: its chat endpoint appends the text to be continued to the rendered prompt, byte for byte."""

    name = "SGLang"
    renders = False

    async def tokens(self, post: Post, body: dict[str, Any]) -> list[int]:
        """Token ids of a text; of a conversation SGLang returns none."""
        if "messages" in body:
            raise ModelServerError(
                "a SGLang server does not return the tokens of a conversation, so prompts cannot be counted: "
                "limit large_tokens or large_calls, not large_cost"
            )
        return await super().tokens(post, body)

    async def text(self, post: Post, tokens: list[int]) -> str:
        """The text of token ids, special tokens included."""
        asked = {"tokens": tokens, "skip_special_tokens": False}
        return str(await _asked(post, "/detokenize", asked, "text"))


class LlamaCpp(Dialect):
    """llama.cpp's server: a text prompt would get a second token of beginning, so ids are sent."""

    name = "llama.cpp"
    takes_text = False

    def max_model_len(self, entry: Mapping[str, Any]) -> int | None:
        """Longest sequence of one slot in tokens, where the server names it."""
        length = (entry.get("meta") or {}).get("n_ctx")
        return length if isinstance(length, int) else None

    def adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """The sampling part of a generation request in this dialect."""
        if (
            "logprobs" in body
        ):  # as many as alternatives: with none of them it tells nothing of the token itself
            body = {**body, "logprobs": max(1, body["logprobs"])}
        return {**body, "verbose": True, "response_fields": ["stop_type", "stopping_word"]}

    async def tokens(self, post: Post, body: dict[str, Any]) -> list[int]:
        """Token ids of a text or of a conversation."""
        content, begins = body.get("prompt"), False
        if content is None:
            content, begins = await self._rendered(post, body), True
        asked = {"content": content, "add_special": begins, "parse_special": True}
        return [int(token) for token in await _asked(post, "/tokenize", asked, "tokens")]

    async def text(self, post: Post, tokens: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(await _asked(post, "/detokenize", {"tokens": tokens}, "content"))

    @staticmethod
    async def _rendered(post: Post, body: dict[str, Any]) -> str:
        try:
            return str(await _asked(post, "/apply-template", body, "prompt"))
        except ModelServerError as error:
            if error.status != 500:
                raise
            raise ModelServerError(
                str(error), 400
            ) from error  # what a chat template refuses is no fault of its server


async def _asked(post: Post, path: str, body: dict[str, Any], field: str) -> Any:
    """A field of an answer; without it the answer is another endpoint's: a gateway has none of that name."""
    answer = await post(path, body)
    if field not in answer:
        said = f"the answer of {path} could not be read: it has no {field!r}"
        raise ModelServerError(f"{said}; a gateway must pass it on as it is", 404)
    return answer[field]


_BY_OWNER = {"sglang": SGLang(), "llamacpp": LlamaCpp()}
_VLLM = Dialect()


def dialect_of(entry: Mapping[str, Any]) -> Dialect:
    """Return the dialect of a server by the ``owned_by`` of the model's entry in ``/v1/models``."""
    return _BY_OWNER.get(str(entry.get("owned_by")), _VLLM)
