"""Prompts for a model behind a vLLM server, in which the last AIMessage is continued exactly.

Special tokens in users' text stay plain. The text that a chat template puts around a question is cached.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from langchain_core.messages import BaseMessage

from trim_graph.adapters.event_loop import AsyncLazy
from trim_graph.adapters.tokenization import (
    SYSTEM_PROBE,
    acceptable_forms,
    mark,
    opens_reasoning,
    split_continuation,
    system_texts,
)
from trim_graph.errors import ChatModelContractError, ContextLengthError, ModelServerError

from .client import VLLMServer
from .label_tokens import find_label_ids, label_request
from .replicas import Replicas
from .wire import Dialect, VLLMCallSettings, dialect_of, openai_messages, sampling

_SHAPES = [
    # The rest behind the first character is a lookahead, since shapes may overlap.
    re.compile(f"{first}(?=({rest}))")
    for first, rest in (
        # <|im_end|> </s> <extra_0>; DeepSeek's have bars of full width, and U+2581 for a space.
        ("<", r"(?=[^<>]{0,64}[^\W\d_])[\w|\uff5c\u2581/:.@#!~-]{1,64}>"),
        (r"\[", r"(?=[^\[\]]{0,64}[^\W\d_])[\w|/:.-]{2,64}\]"),  # [INST] [/INST] [|user|]
        (r"\|", r"(?P<bars>\|{0,2})\w{4,64}\|(?P=bars)"),  # |ENDOFTEXT| |||EMAIL_ADDRESS|||
        (">", r">\w{1,64}<<"),  # >>TITLE<<
        (r"[\[\]]", r"(?=[\w!]{0,16}~)[\w!~]{1,16}[\[\]]"),  # ]~b] [e~[
    )
]
"""Shapes of special tokens. Common mathematics has none of them, so that hardly any text needs a question to
the server."""
_REASONING_TAG = re.compile(r"think|thought", re.IGNORECASE)
"""Matches the tags of reasoning, which stay special tokens when a reasoning model's text is continued."""
_CONTROL = ("<|", "<\uff5c")
"""Beginnings of most models' control tokens: such a text is never left to the server."""
_MAX_TOKENS = 10_000
"""Strings to remember that are no tokens."""
_ANCHOR = "\n"


class ServerTokenizer(Protocol):
    """The endpoints of a server that convert tokens."""

    async def tokenize(self, text: str) -> list[int]:
        """Returns token ids of a text, none added."""
        ...

    async def vocabulary_tokens(self, texts: list[str]) -> dict[str, int]:
        """Returns the texts that are one token, with its id."""
        ...

    async def text_of(self, tokens: list[int]) -> str:
        """Returns the text of token ids."""
        ...


@dataclass(frozen=True, slots=True)
class _Token:
    """One token, and the ids of the same text written without it."""

    id: int
    spelled: tuple[int, ...]
    """Empty where the tokenizer has no other way to write that text."""


class ServedTokens:
    """Finds the special tokens that texts hold, and makes prompts in which they are plain text.

    A string counts as one if it has such a token's shape and is a single token to the server everywhere. So a
    few that control nothing (``<tool_call>``) are spelled out too, which changes no byte. Each string is
    asked for once.

    Args:
        tokenizer: The server's.
        model: Its name, for error messages.
    """

    def __init__(self, tokenizer: ServerTokenizer, model: str) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._nonce = secrets.token_hex(8)
        self._tokens: dict[str, _Token] = {}
        self._others: dict[str, None] = {}

    async def found_in(self, texts: Iterable[str]) -> list[str] | None:
        """Returns the special tokens that any of the texts holds, longest first.

        None if a server may get the texts as they are: they hold no such tokens, and nothing that looks like
        most models' control tokens.

        Raises:
            ModelServerError: A text may hold one, and the server does not say.
        """
        shown = {found[0] + found[1] for text in texts for shape in _SHAPES for found in shape.finditer(text)}
        looks_like = sorted(text for text in shown if not _REASONING_TAG.search(text))
        if new := [text for text in looks_like if text not in self._tokens and text not in self._others]:
            await self._look_up(new)
        found = sorted((text for text in looks_like if text in self._tokens), key=len, reverse=True)
        return found if found or any(text.startswith(_CONTROL) for text in looks_like) else None

    def shield(self, value: Any, tokens: list[str]) -> Any:
        """Replaces tokens in all texts of a value by marks, which a chat template leaves alone."""
        if isinstance(value, str):
            for token in tokens:
                value = value.replace(token, self._mark(token))
            return value
        if isinstance(value, dict):
            return {name: self.shield(item, tokens) for name, item in value.items()}
        return [self.shield(item, tokens) for item in value] if isinstance(value, list) else value

    async def encode(self, rendered: str, tokens: list[str]) -> list[int]:
        """Tokenises a rendered chat.

        Args:
            rendered: From shielded texts. The tokens in it are the chat template's own, and stay tokens.
            tokens: Those that the texts hold.

        Raises:
            ModelServerError: The tokenizer cannot write one of them as text.
        """
        plain = {self._mark(token): token for token in tokens}
        pieces = re.split(f"({'|'.join(map(re.escape, [*plain, *tokens])) or '(?!)'})", rendered)
        ids = await self._tokenizer.tokenize("".join(plain.get(piece, piece) for piece in pieces))
        met = pieces[1::2]  # in the order in which the tokenizer meets them
        known = {token: self._token(token) for token in tokens}
        own = {token.id: token for token in known.values()}
        in_order = [known[plain.get(piece, piece)].id for piece in met]
        if in_order != [number for number in ids if number in own] or not plain.keys() <= set(met):
            raise self._refusal(tokens[0])
        marked = iter([piece in plain for piece in met])
        made: list[int] = []
        for number in ids:
            made += own[number].spelled if number in own and next(marked) else (number,)
        return made

    def _mark(self, text: str) -> str:
        return mark(self._nonce, self._token(text).id)

    def _token(self, text: str) -> _Token:
        token = self._tokens[text]
        if not token.spelled:
            raise self._refusal(text)
        return token

    def _refusal(self, text: str) -> ModelServerError:
        return ModelServerError(
            f"a text of this conversation holds {text!r}, a special token of {self._model}, which its "
            "tokenizer cannot write as plain text: reword it"
        )

    async def _look_up(self, new: list[str]) -> None:
        try:
            single = await self._tokenizer.vocabulary_tokens(new)
        except ModelServerError as error:
            if error.status not in (404, 405):
                raise
            raise ModelServerError(
                f"a text of this conversation holds {new[0]!r}, which may be a special token of "
                f"{self._model}. {error}",
                error.status,
            ) from error
        for text in new:
            token = await self._spelled(text, single[text]) if text in single else None
            if token is None:
                self._others[text] = None
            else:
                self._tokens[text] = token
        while len(self._others) > _MAX_TOKENS:
            self._others.pop(next(iter(self._others)), None)

    async def _spelled(self, text: str, own: int) -> _Token | None:
        """Spells a token with those of its two pieces, and checks that this gives the same text everywhere.

        None if it is no token everywhere: a word of the vocabulary, which its context may take apart.
        """
        whole = f"a {text} b{text}c"
        ids = await self._tokenizer.tokenize(whole)
        if ids.count(own) != 2:
            return None
        spelled = [*await self._behind_anchor(text[:1]), *await self._behind_anchor(text[1:])]
        replaced = [number for one in ids for number in (spelled if one == own else [one])]
        same = own not in spelled and await self._tokenizer.text_of(replaced) == whole
        return _Token(own, tuple(spelled) if same else ())

    async def _behind_anchor(self, text: str) -> list[int]:
        """Returns token ids of a piece inside a text: at a text's beginning some tokenizers add a space."""
        before = await self._tokenizer.tokenize(_ANCHOR)
        ids = await self._tokenizer.tokenize(_ANCHOR + text)
        return ids[len(before) :] if ids[: len(before)] == before else await self._tokenizer.tokenize(text)


_PROBES = (
    "What is 12 times 12?",
    "Two lines, with numbers (1, 2.5),\n\nand signs: + - * / = ' \" \\ $ % # @ ! ; _ ^ ~ `, é ü 中",
)
_MARKED = re.compile(r"[<>\[\]{}|]|(?<![\w/])/[a-z_]|\A\s|\s\Z|\A\Z")
"""Text that templates react to or change: special tokens, tags, commands, space at its ends."""

Turns = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TemplateFrame:
    """The rendered text before and behind a plain question."""

    before: str
    behind: str


def plain_question(turns: Turns) -> str | None:
    """Returns the text of a conversation's only user turn, if no template has a reason to change it."""
    *before, last = turns
    if [turn["role"] for turn in before] not in ([], ["system"]) or last["role"] != "user":
        return None
    text = last["content"]
    return None if not isinstance(text, str) or _MARKED.search(text) else text


async def find_frame(
    turns: Turns, render: Callable[[Turns], Awaitable[str]]
) -> TemplateFrame | Literal[False]:
    """Returns the text that a template puts around the last turn; False where that depends on the turn.

    Args:
        turns: A conversation with a plain question.
        render: Renders a conversation.
    """
    try:
        first, other = [await render([*turns[:-1], {"role": "user", "content": probe}]) for probe in _PROBES]
    except ModelServerError as error:
        if error.status is not None or error.begun:
            raise
        return False  # its tokenizer cannot render one of these texts, but perhaps a question
    before, found, behind = first.partition(_PROBES[0])
    if not found or before + _PROBES[1] + behind != other:
        return False
    return TemplateFrame(before, behind)


_ASKED = [{"role": "user", "content": "?"}]
_PROBE = "\n\n a:\n\n<think>\n\tb \n</think>\n\nc \n\n"
"""Begins and ends with space that templates trim, and holds reasoning, which some remove or move."""
_MAX_QUESTIONS = 256
"""Rendered conversations to remember; the steps of a solution share theirs."""

KEPT = "include_stop_str_in_output"
"""vLLM's field of a request that leaves a stop string in the text."""

Continuation = Literal["auto", "chat", "raw"]


@dataclass(slots=True)
class Facts:
    """Facts about a served model.

    Attributes:
        raw: Whether prompts are rendered once and continued over ``/v1/completions``.
        max_model_len: Longest sequence in tokens; None where the server does not report it.
        starts_in_reasoning: Whether the chat template opens reasoning before the model writes.
        dialect: Dialect of the server.
    """

    raw: bool
    max_model_len: int | None
    starts_in_reasoning: bool = False
    dialect: Dialect = field(default_factory=Dialect)


@dataclass(eq=False)
class VLLMPrompts:
    """Makes requests from conversations; asks the server about its model at the first one.

    ``/v1/chat/completions`` with ``continue_final_message`` is exact only where the chat template leaves
    the text of the last message alone. Where it trims that text, or puts reasoning before it, the template
    is rendered up to the generation prompt and the text appended here. A conversation whose texts hold
    special tokens is rendered in that way too, and sent as token ids in which they are plain text.

    Args:
        server: Server of the model.
        model: Name that the server knows it by.
        continuation: ``chat`` or ``raw`` make the choice.
        template_kwargs: Further arguments of the chat template.
    """

    server: VLLMServer | Replicas
    model: str
    continuation: Continuation = "auto"
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    stop_field: str = ""
    """Field in which the server last reported the stop string it met; empty until then."""
    keeps_stop: bool = False
    """Whether the server keeps the stop string it met in the text, since it reports it nowhere else."""
    _rendered: dict[str, str] = field(default_factory=dict)
    _template_cache: dict[str, tuple[str, AsyncLazy[TemplateFrame | Literal[False]]]] = field(
        default_factory=dict
    )
    _forms: dict[str, AsyncLazy[int]] = field(default_factory=dict)
    _labels: dict[str, AsyncLazy[dict[int, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._facts = AsyncLazy(self._ask)
        self._entry: AsyncLazy[dict[str, Any]] = AsyncLazy(lambda: self.server.served(self.model))
        self._special = ServedTokens(self, self.model)

    def __deepcopy__(self, memo: dict[int, Any]) -> VLLMPrompts:
        """Copies of an adapter share the facts."""
        return self

    async def facts(self) -> Facts:
        """Returns the facts about the model; the server is asked once.

        Raises:
            ModelServerError: The server does not answer, or does not serve the model.
        """
        return await self._facts.get()

    @property
    def starts_in_reasoning(self) -> bool:
        """Whether the chat template opens reasoning; False until the server was asked."""
        facts = self._facts.value
        return facts is not None and facts.starts_in_reasoning

    def switch_to_raw(self) -> bool:
        """Chooses raw prompts, since the chat endpoint hides reasoning; False where the choice is fixed."""
        facts = self._facts.value
        if facts is None or facts.raw or self.continuation != "auto":
            return False
        facts.raw = True
        return True

    async def request(
        self, messages: Sequence[BaseMessage], settings: VLLMCallSettings
    ) -> tuple[str, dict[str, Any]]:
        """Returns the path and body of the request that continues a conversation.

        Raises:
            ValueError: The conversation cannot be continued.
            ModelServerError: The server refuses it.
        """
        turns, text, ids = await self._read(messages)
        facts = await self.facts()
        raw = facts.raw or ids is not None
        if settings.thinking_token_budget is not None and not facts.dialect.limits_reasoning:
            raise ChatModelContractError(
                f"a {facts.dialect.name} server does not end reasoning at a number of tokens: leave out "
                "min_answer_tokens and thinking_token_budget, or serve the model with vLLM"
            )
        labels = await self.label_ids(settings.label_tokens)
        if facts.raw and ids is None and not facts.dialect.takes_text:
            ids = await self.tokenize(await self._render(turns) + text)
        body = {"model": self.model, **facts.dialect.adapted(sampling(settings, raw=raw))}
        body |= label_request(labels, settings.top_logprobs)
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

    async def label_ids(self, labels: Sequence[str]) -> dict[int, str]:
        """Returns the tokens that spell a label; none where the server cannot read given tokens."""
        if not labels or not (await self.facts()).dialect.reads_labels:
            return {}
        key = "\0".join(labels)
        if key not in self._labels:
            _evict_oldest(self._labels)
            self._labels[key] = AsyncLazy(lambda: self._find_labels(labels))
        return await self._labels[key].get()

    async def _find_labels(self, labels: Sequence[str]) -> dict[int, str]:
        try:
            return await find_label_ids(labels, self.tokenize, self.text_of)
        except ModelServerError as error:
            if error.status not in (404, 405):
                raise
            return {}  # a gateway without /tokenize

    async def count(self, messages: Sequence[BaseMessage]) -> int:
        """Returns the exact number of prompt tokens."""
        turns, text, ids = await self._read(messages)
        if ids is not None:
            return len(ids)
        if (await self.facts()).raw:
            return len(await self.tokenize(await self._render(turns) + text))
        return len(await self._tokens(self._chat(turns, text)))

    async def takes_system_role(self) -> bool:
        """Returns whether the chat template has a role for system messages. Asks the server.

        Raises:
            ModelServerError: The server does not answer, or does not tokenize.
        """
        return await self._fitting(SYSTEM_PROBE) == SYSTEM_PROBE

    async def special_tokens_kept_plain(self) -> list[str]:
        """Returns the special tokens of the chat template that stay text in users' texts. Asks the server.

        Empty where the template writes none of a known shape.

        Raises:
            ModelServerError: One cannot be kept plain, or the server does not answer or tokenize.
        """
        opened = await self._opened()
        tokens = await self._special.found_in([opened]) or []
        await self._special.encode(self._special.shield(opened, tokens), tokens)
        return tokens

    async def tokenize(self, text: str) -> list[int]:
        """Returns token ids of a text, without any that the tokenizer adds on its own."""
        return await self._tokens({"prompt": text, "add_special_tokens": False})

    async def vocabulary_tokens(self, texts: list[str]) -> dict[str, int]:
        """Returns the texts that are one token, with its id."""
        body = {"prompt": "\n".join(texts), "add_special_tokens": False, "return_token_strs": True}
        found = await self._call("/tokenize", body)
        if (strings := found.get("token_strs")) is not None:
            wanted = set(texts)
            pairs = zip(strings, found["tokens"], strict=True)
            return {string: int(token) for string, token in pairs if string in wanted}
        each = {text: await self.tokenize(text) for text in texts}
        return {text: tokens[0] for text, tokens in each.items() if len(tokens) == 1}

    async def _read(self, messages: Sequence[BaseMessage]) -> tuple[Turns, str, list[int] | None]:
        """Returns turns in a form that the template takes, the text to continue, and the token ids of all.

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
        """Returns turns in a form that the template takes; the server is asked once for the same roles."""
        forms = acceptable_forms(turns)
        if len(forms) == 1 or not (await self.facts()).dialect.renders:
            return turns
        key = json.dumps([turn["role"] for turn in turns])
        if key not in self._forms:
            _evict_oldest(self._forms)
            self._forms[key] = AsyncLazy(lambda: self._first_taken(forms))
        return forms[min(await self._forms[key].get(), len(forms) - 1)]

    async def _first_taken(self, forms: list[Turns]) -> int:
        """Returns the number of the first form that the template renders with all that it holds."""
        refusal: ModelServerError | None = None
        for number, form in enumerate(forms):
            try:
                rendered = await self.text_of(await self._tokens(self._chat(form, "")))
            except ModelServerError as error:
                if self.continuation == "chat" and error.status in (404, 405):
                    return 0  # unknown; the chat endpoint refuses a form that it does not take
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
        return Facts(raw, length, opens_reasoning(opened), dialect)

    async def chat_is_exact(self) -> bool:
        """Returns whether the chat endpoint continues the last message byte for byte. Asks the server.

        Raises:
            ModelServerError: The server does not answer, or does not tokenize.
        """
        return await self._keeps_text(await self._opened())

    async def _opened(self) -> str:
        return await self.text_of(await self._tokens(self._chat(_ASKED, "")))

    async def _keeps_text(self, opened: str) -> bool:
        try:
            continued = await self.text_of(await self._tokens(self._chat(_ASKED, _PROBE)))
        except ModelServerError as error:
            if error.status != 400:
                raise
            return False  # the template does not show the text at all
        return continued == opened + _PROBE

    async def _render(self, turns: list[dict[str, Any]]) -> str:
        if (question := plain_question(turns)) is not None:
            key = json.dumps(turns[:-1])
            if key not in self._template_cache:
                _evict_oldest(self._template_cache)
                # The first question of its kind may be the only one, so the text around it is for the next.
                self._template_cache[key] = question, AsyncLazy(lambda: find_frame(turns, self._asked))
            first, cached = self._template_cache[key]
            if question != first and (frame := await cached.get()):
                return frame.before + question + frame.behind
        return await self._asked(turns)

    async def _asked(self, turns: list[dict[str, Any]]) -> str:
        key = json.dumps(turns)
        if key not in self._rendered:
            tokens = await self._tokens(self._chat(turns, ""))
            text = await self.text_of(tokens)
            if await self.tokenize(text) != tokens:
                raise ModelServerError(
                    f"the tokenizer of {self.model} does not give back the tokens of its own rendered chat, "
                    "so this conversation cannot be continued exactly; continuation='chat' continues it "
                    "as the chat template allows"
                )
            _evict_oldest(self._rendered)
            self._rendered[key] = text
        return self._rendered[key]

    async def _tokens(self, body: dict[str, Any]) -> list[int]:
        return await dialect_of(await self._entry.get()).tokens(self._call, body)

    async def text_of(self, tokens: list[int]) -> str:
        """Returns the text of token ids."""
        return await dialect_of(await self._entry.get()).text(self._call, tokens)

    async def _call(self, path: str, body: dict[str, Any]) -> Any:
        try:
            return await self.server.post(path, {"model": self.model, **body})
        except ModelServerError as error:
            if error.status not in (404, 405):
                raise
            raise ModelServerError(
                f"{self.server.root}{path} is missing ({error}). vLLM has it; a proxy must let it through. "
                "It counts prompt tokens, and shows whether the chat template keeps a text to be continued; "
                "continuation='chat' does without the latter",
                error.status,
            ) from error


def _texts_in(value: Any) -> Iterator[str]:
    """Yields all texts of a JSON value, names of its objects left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(item)


def _evict_oldest(kept: dict[str, Any]) -> None:
    while len(kept) >= _MAX_QUESTIONS:
        kept.pop(next(iter(kept), ""), None)
