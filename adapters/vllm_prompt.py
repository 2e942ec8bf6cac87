"""How a conversation reaches a model behind a vLLM server so that its last AIMessage is continued exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.messages import BaseMessage

from trim_graph.errors import ContextLengthError, ModelServerError

from .chat_prompt import (
    SYSTEM_PROBE,
    Turns,
    acceptable_forms,
    opens_thought,
    split_continuation,
    system_texts,
)
from .learned_template import Surroundings, plain_question, surroundings
from .once import Once
from .replicas import Replicas
from .served_tokens import ServedTokens
from .server_dialects import Dialect, dialect_of
from .vllm_server import VLLMServer
from .vllm_wire import CallSettings, openai_messages, sampling

_ASKED = [{"role": "user", "content": "?"}]
_PROBE = "\n\n a:\n\n<think>\n\tb \n</think>\n\nc \n\n"
"""Begins and ends with what templates like to trim; and holds a thought, which some take out or set apart."""
_KEPT = 256
"""Rendered conversations to remember; the steps of a solution share theirs."""

KEPT = "include_stop_str_in_output"
"""vLLM's field of a request that leaves a stop string in the text."""

Continuation = Literal["auto", "chat", "raw"]


@dataclass(slots=True)
class Facts:
    """What was found out about a model.

    Attributes:
        raw: Whether prompts are rendered once and continued over ``/v1/completions``.
        max_model_len: Longest sequence in tokens; None where the server does not tell.
        opens_thought: Whether the chat template opens a thought before the model writes anything.
        dialect: Of the server.
    """

    raw: bool
    max_model_len: int | None
    opens_thought: bool = False
    dialect: Dialect = field(default_factory=Dialect)


@dataclass(eq=False)
class VLLMPrompts:
    """Makes requests from conversations; asks the server about its model at the first one.

    ``/v1/chat/completions`` with ``continue_final_message`` is exact only where the chat template leaves
    the text of the last message alone. Where it trims it, or puts a thinking block before it, the template
    is rendered up to the generation prompt and the text appended here. A conversation whose texts hold
    special tokens is rendered in that way too, and sent as token ids in which they are plain text.

    Args:
        server: Where the model is.
        model: Name that the server knows it by.
        continuation: ``chat`` or ``raw`` leave the choice out.
        template_kwargs: Further arguments of the chat template.
    """

    server: VLLMServer | Replicas
    model: str
    continuation: Continuation = "auto"
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    stop_field: str = ""
    """Where the server last reported which stop string it met; empty until then."""
    keeps_stop: bool = False
    """Whether the server keeps the stop string it met in the text, since it reports it nowhere else."""
    _rendered: dict[str, str] = field(default_factory=dict)
    _around: dict[str, tuple[str, Once[Surroundings | Literal[False]]]] = field(default_factory=dict)
    _forms: dict[str, Once[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._facts = Once(self._ask)
        self._entry: Once[dict[str, Any]] = Once(lambda: self.server.served(self.model))
        self._special = ServedTokens(self, self.model)

    def __deepcopy__(self, memo: dict[int, Any]) -> VLLMPrompts:
        """Copies of an adapter share what was found out."""
        return self

    async def facts(self) -> Facts:
        """What there is to know about the model; asked once.

        Raises:
            ModelServerError: The server does not answer, or does not serve the model.
        """
        return await self._facts.get()

    @property
    def opens_thought(self) -> bool:
        """Whether the chat template opens a thought; False until the server was asked."""
        facts = self._facts.value
        return facts is not None and facts.opens_thought

    def switch_to_raw(self) -> bool:
        """Note that the model thinks, which the chat endpoint hides. False where the choice is not ours."""
        facts = self._facts.value
        if facts is None or facts.raw or self.continuation != "auto":
            return False
        facts.raw = True
        return True

    async def request(
        self, messages: Sequence[BaseMessage], settings: CallSettings
    ) -> tuple[str, dict[str, Any]]:
        """Path and body of the request that continues a conversation.

        Raises:
            ValueError: The conversation cannot be continued.
            ModelServerError: The server refuses it.
        """
        turns, text, ids = await self._read(messages)
        facts = await self.facts()
        raw = facts.raw or ids is not None
        if facts.raw and ids is None and not facts.dialect.takes_text:
            ids = await self.tokenize(await self._render(turns) + text)
        body = {"model": self.model, **facts.dialect.adapted(sampling(settings, raw=raw))}
        if facts.max_model_len is not None:
            # vLLM cuts max_tokens to the room behind the prompt, but refuses more than its whole length.
            body["max_tokens"] = min(settings.max_tokens, facts.max_model_len)
            if ids is not None and len(ids) >= facts.max_model_len:
                raise ContextLengthError(
                    f"the prompt has {len(ids)} tokens; {self.model} takes {facts.max_model_len - 1} at most "
                    f"(max_model_len={facts.max_model_len}, and one token must fit behind it)"
                )
        if raw:
            prompt = ids or await self._render(turns) + text
            return "/v1/completions", body | {"prompt": prompt, "add_special_tokens": False}
        return "/v1/chat/completions", body | self._chat(turns, text)

    async def count(self, messages: Sequence[BaseMessage]) -> int:
        """Exact number of prompt tokens."""
        turns, text, ids = await self._read(messages)
        if ids is not None:
            return len(ids)
        if (await self.facts()).raw:
            return len(await self.tokenize(await self._render(turns) + text))
        return len(await self._tokens(self._chat(turns, text)))

    async def takes_system_role(self) -> bool:
        """Whether the chat template has a role for system messages. Asks the server.

        Raises:
            ModelServerError: The server does not answer, or does not tokenize.
        """
        return await self._fitting(SYSTEM_PROBE) == SYSTEM_PROBE

    async def special_tokens_kept_plain(self) -> list[str]:
        """The special tokens of the chat template that stay text where somebody writes them. Asks the server.

        Empty where the template writes none of a known shape.

        Raises:
            ModelServerError: One cannot be kept plain, or the server does not answer or tokenize.
        """
        opened = await self._opened()
        tokens = await self._special.found_in([opened]) or []
        await self._special.encode(self._special.shield(opened, tokens), tokens)
        return tokens

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without any that the tokenizer adds on its own."""
        return await self._tokens({"prompt": text, "add_special_tokens": False})

    async def vocabulary_tokens(self, texts: list[str]) -> dict[str, int]:
        """Those of the texts that are one token, with its id."""
        body = {"prompt": "\n".join(texts), "add_special_tokens": False, "return_token_strs": True}
        found = await self._call("/tokenize", body)
        if (strings := found.get("token_strs")) is not None:
            wanted = set(texts)
            pairs = zip(strings, found["tokens"], strict=True)
            return {string: int(token) for string, token in pairs if string in wanted}
        each = {text: await self.tokenize(text) for text in texts}
        return {text: tokens[0] for text, tokens in each.items() if len(tokens) == 1}

    async def text_of(self, tokens: list[int]) -> str:
        """The text of token ids."""
        return await self._text(tokens)

    async def _read(self, messages: Sequence[BaseMessage]) -> tuple[Turns, str, list[int] | None]:
        """The turns in a form that the template takes, the text to be continued, and the whole as token ids.

        No ids where the server may make them: no text holds a special token.
        """
        before, text = split_continuation(messages)
        turns = openai_messages(before)
        dialect = (await self.facts()).dialect
        tokens = await self._special.found_in([*_texts_in(turns), text])
        if tokens and not dialect.renders:
            raise ModelServerError(
                f"a text of this conversation holds {tokens[0]!r}, a special token of {self.model}, which a "
                f"{dialect.name} server cannot be given as plain text: reword it"
            )
        if tokens is None or not dialect.renders:
            return await self._fitting(turns), text, None
        shielded = self._special.shield(turns, tokens)
        rendered = await self._render(await self._fitting(shielded))
        return turns, text, await self._special.encode(rendered + self._special.shield(text, tokens), tokens)

    async def _fitting(self, turns: Turns) -> Turns:
        """The turns in a form that the template takes, which the server is asked once for the same roles."""
        forms = acceptable_forms(turns)
        if len(forms) == 1 or not (await self.facts()).dialect.renders:
            return turns
        key = json.dumps([turn["role"] for turn in turns])
        if key not in self._forms:
            _make_room(self._forms)
            self._forms[key] = Once(lambda: self._first_taken(forms))
        return forms[min(await self._forms[key].get(), len(forms) - 1)]

    async def _first_taken(self, forms: list[Turns]) -> int:
        """The number of the first form that the template renders with all that it holds."""
        refusal: ModelServerError | None = None
        for number, form in enumerate(forms):
            try:
                rendered = await self._text(await self._tokens(self._chat(form, "")))
            except ModelServerError as error:
                if self.continuation == "chat" and error.status in (404, 405):
                    return 0  # nobody tells; the chat endpoint will refuse what it does not take
                if error.status != 400:
                    raise
                refusal = refusal or error
                continue
            if all(text in rendered for text in system_texts(form)):
                return number
        raise refusal or ModelServerError(f"the chat template of {self.model} shows no system message")

    def _chat(self, turns: list[dict[str, Any]], text: str) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": turns, "add_generation_prompt": True}
        if text:
            body = {
                "messages": [*turns, {"role": "assistant", "content": text}],
                "add_generation_prompt": False,
                "continue_final_message": True,
            }
        return body | ({"chat_template_kwargs": self.template_kwargs} if self.template_kwargs else {})

    async def _ask(self) -> Facts:
        entry = await self._entry.get()
        dialect = dialect_of(entry)
        length = dialect.max_model_len(entry)
        if self.continuation == "raw" and not dialect.renders:
            raise ModelServerError(
                f"continuation='raw' needs a server that renders a conversation; {self.server.root} is a "
                f"{dialect.name}, which does not: leave continuation at 'auto', and max_batch_size at 1"
            )
        if self.continuation == "chat" or not dialect.renders:
            return Facts(raw=False, max_model_len=length, dialect=dialect)
        opened = await self._opened()
        raw = self.continuation == "raw" or not dialect.takes_text or not await self._keeps_text(opened)
        return Facts(raw, length, opens_thought(opened), dialect)

    async def chat_is_exact(self) -> bool:
        """Whether the chat endpoint carries on the last message byte for byte. Asks the server.

        Raises:
            ModelServerError: The server does not answer, or does not tokenize.
        """
        return await self._keeps_text(await self._opened())

    async def _opened(self) -> str:
        return await self._text(await self._tokens(self._chat(_ASKED, "")))

    async def _keeps_text(self, opened: str) -> bool:
        try:
            continued = await self._text(await self._tokens(self._chat(_ASKED, _PROBE)))
        except ModelServerError as error:
            if error.status != 400:
                raise
            return False  # the template does not show the text at all
        return continued == opened + _PROBE

    async def _render(self, turns: list[dict[str, Any]]) -> str:
        if (question := plain_question(turns)) is not None:
            key = json.dumps(turns[:-1])
            if key not in self._around:
                _make_room(self._around)
                # The first question of its kind may be the only one: what is around it is for the next.
                self._around[key] = question, Once(lambda: surroundings(turns, self._asked))
            first, learned = self._around[key]
            if question != first and (around := await learned.get()):
                return around.before + question + around.behind
        return await self._asked(turns)

    async def _asked(self, turns: list[dict[str, Any]]) -> str:
        key = json.dumps(turns)
        if key not in self._rendered:
            tokens = await self._tokens(self._chat(turns, ""))
            text = await self._text(tokens)
            if await self.tokenize(text) != tokens:
                raise ModelServerError(
                    f"the tokenizer of {self.model} does not give back the tokens of its own rendered chat, "
                    "so this conversation cannot be continued exactly; continuation='chat' continues it "
                    "as the chat template allows"
                )
            _make_room(self._rendered)
            self._rendered[key] = text
        return self._rendered[key]

    async def _tokens(self, body: dict[str, Any]) -> list[int]:
        return await dialect_of(await self._entry.get()).tokens(self._call, body)

    async def _text(self, tokens: list[int]) -> str:
        return await dialect_of(await self._entry.get()).text(self._call, tokens)

    async def _call(self, path: str, body: dict[str, Any]) -> Any:
        try:
            return await self.server.post(path, {"model": self.model, **body})
        except ModelServerError as error:
            if error.status not in (404, 405):
                raise
            raise ModelServerError(
                f"{self.server.root}{path} is missing ({error}). vLLM has it; a proxy must let it through. "
                "It tells prompt tokens, and whether the chat template keeps a text to be continued; "
                "continuation='chat' does without the latter",
                error.status,
            ) from error


def _texts_in(value: Any) -> Iterator[str]:
    """All texts of a JSON value, names of its objects left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(item)


def _make_room(kept: dict[str, Any]) -> None:
    while len(kept) >= _KEPT:
        kept.pop(next(iter(kept), ""), None)
