"""Keep special tokens in somebody's text plain where a server, and nobody else, has the tokenizer."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from trim_graph.errors import ModelServerError

from .special_tokens import mark

_SHAPES = [
    # What follows the first character is looked at only: shapes may overlap.
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
"""Shapes of special tokens. Common mathematics has none of them, so that hardly a text needs a look at what
the server makes of it."""
_THOUGHT = re.compile(r"think|thought", re.IGNORECASE)
"""In the tags of thoughts, which a thinking model's text is continued with as the tokens that they are."""
_CONTROL = ("<|", "<\uff5c")
"""How the control tokens of most models begin: such a text is never left to the server."""
_KEPT = 10_000
"""Strings to remember that are no tokens."""
_ANCHOR = "\n"


class ServerTokenizer(Protocol):
    """The part of a server that knows tokens."""

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, none added."""
        ...

    async def vocabulary_tokens(self, texts: list[str]) -> dict[str, int]:
        """Those of the texts that are one token, with its id."""
        ...

    async def text_of(self, tokens: list[int]) -> str:
        """The text of token ids."""
        ...


@dataclass(frozen=True, slots=True)
class _Token:
    """One token, and the ids of the same text written without it."""

    id: int
    spelled: tuple[int, ...]
    """Empty where the tokenizer has no other way to write that text."""


class ServedTokens:
    """Finds the special tokens that texts hold, and makes prompts in which they are plain text.

    A string counts as one if it has such a token's shape and is a single token to the server wherever it
    stands. So a few that control nothing (``<tool_call>``) are spelled out too, which changes no byte. Each
    string is asked for once.

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
        """Return the special tokens that any of the texts holds, longest first.

        None if a server may be given the texts as they are: there are no such tokens, and nothing that is
        written as most models' are.

        Raises:
            ModelServerError: A text may hold one, and the server does not tell.
        """
        shown = {found[0] + found[1] for text in texts for shape in _SHAPES for found in shape.finditer(text)}
        looks_like = sorted(text for text in shown if not _THOUGHT.search(text))
        if new := [text for text in looks_like if text not in self._tokens and text not in self._others]:
            await self._learn(new)
        found = sorted((text for text in looks_like if text in self._tokens), key=len, reverse=True)
        return found if found or any(text.startswith(_CONTROL) for text in looks_like) else None

    def shield(self, value: Any, tokens: list[str]) -> Any:
        """Replace tokens in all texts of a value by marks, which a chat template hands on."""
        if isinstance(value, str):
            for token in tokens:
                value = value.replace(token, self._mark(token))
            return value
        if isinstance(value, dict):
            return {name: self.shield(item, tokens) for name, item in value.items()}
        return [self.shield(item, tokens) for item in value] if isinstance(value, list) else value

    async def encode(self, rendered: str, tokens: list[str]) -> list[int]:
        """Tokenise a rendered chat.

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

    async def _learn(self, new: list[str]) -> None:
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
        while len(self._others) > _KEPT:
            self._others.pop(next(iter(self._others)), None)

    async def _spelled(self, text: str, own: int) -> _Token | None:
        """Write a token in two pieces, and see whether that gives back the same text wherever it stands.

        None if it is no token everywhere: a word of the vocabulary, which its surroundings may take apart.
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
        """Token ids of a piece from the middle of a text: at its beginning some tokenizers add a space."""
        before = await self._tokenizer.tokenize(_ANCHOR)
        ids = await self._tokenizer.tokenize(_ANCHOR + text)
        return ids[len(before) :] if ids[: len(before)] == before else await self._tokenizer.tokenize(text)
