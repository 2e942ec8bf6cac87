"""Tokenise a rendered chat so that special tokens inside somebody's text stay plain text."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .well_formed import well_formed

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_DIGITS = "".join(chr(0xE000 + digit) for digit in range(16))
_OPEN, _CLOSE = chr(0xE010), chr(0xE011)


def mark(nonce: str, number: int) -> str:
    """A string of private-use characters: no template trims it and no text holds it (64 random bits)."""
    return _OPEN + "".join(_DIGITS[int(c, 16)] for c in f"{nonce}{number:04x}") + _CLOSE


class SpecialTokenGuard:
    r"""Keeps a chat template's special tokens apart from look-alikes in the text it renders.

    A conversation may hold ``<|im_end|>`` or ``<extra_0>`` as text (a question about chat templates, or an
    attack). Tokenised naively it ends the turn or adds a score position. Here `shield` replaces such text
    with a mark before the template renders it; `encode` then renames the special tokens that the template
    wrote, puts the text back, and tokenises all of it at once with a copy of the tokenizer in which special
    tokens bear the new names. So everything else is tokenised exactly as always.

    Args:
        tokenizer: A tokenizer with a ``tokenizer.json``.
        also: Added tokens to be treated as special though the tokenizer does not flag them so.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, also: Iterable[str] = ()) -> None:
        backend: Tokenizer = tokenizer.backend_tokenizer
        spec: dict[str, Any] = json.loads(backend.to_str())
        hidden = set(also)
        tokens = [token for token in spec["added_tokens"] if token["special"] or token["content"] in hidden]
        # Longest first: the tokenizer, too, takes the longest special token at a place.
        names: list[str] = sorted((token["content"] for token in tokens), key=len, reverse=True)
        nonces = secrets.token_hex(8), secrets.token_hex(8)
        self.ids: dict[str, int] = {token["content"]: token["id"] for token in tokens}
        self._special = {name: mark(nonces[0], n) for n, name in enumerate(names)}
        self._shielded = {name: mark(nonces[1], n) for n, name in enumerate(names)}
        self._find_special = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._find_shielded = re.compile("|".join(self._shielded.values()) or r"(?!)")
        self._unshield = {mark: name for name, mark in self._shielded.items()}
        self._copy, self._true_ids = _renamed_copy(spec, self._special)

    def shield(self, text: str) -> str:
        """Replace special tokens in ``text``, which is about to be rendered, with marks."""
        return self._find_special.sub(lambda found: self._shielded[found[0]], text)

    def encode(self, rendered: str, continuation: str = "") -> list[int]:
        """Tokenise what a template rendered from shielded text.

        Args:
            rendered: The template's output. Special tokens in it count; shielded ones become text.
            continuation: Text appended to it byte for byte, in which nothing is special.

        Returns:
            Token ids; none are added that the template did not write.
        """
        return self.encode_spans(self.unshielded(rendered) + continuation)[0]

    def renamed(self, token: str) -> str:
        """What a special token is called in a text for `encode_spans`; any other text is called as it is."""
        return self._special.get(token, token)

    def unshielded(self, rendered: str) -> str:
        """What a template rendered from shielded text, as a text for `encode_spans`."""
        text = self._find_special.sub(lambda found: self._special[found[0]], rendered)
        return self._find_shielded.sub(lambda found: self._unshield[found[0]], text)

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise a text in which nothing is special but names from `renamed`; see `well_formed` too.

        Returns:
            Token ids, and for each the place in ``text``, in characters, that it came from.
        """
        encoded = self._copy.encode(well_formed(text), add_special_tokens=False)
        return [self._true_ids.get(token, token) for token in encoded.ids], encoded.offsets


def _renamed_copy(spec: dict[str, Any], new_names: dict[str, str]) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer whose special tokens bear new names, and the map from its ids to the true ones."""
    from tokenizers import Tokenizer

    true_ids = {}
    for token in spec["added_tokens"]:
        if token["content"] in new_names:
            token["content"] = new_names[token["content"]]
            token["special"] = True
        true_ids[token["content"]] = token["id"]
    _rename_in_vocabulary(spec["model"], new_names)
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    copy = Tokenizer.from_str(json.dumps(spec))
    # Names that are not in the model's vocabulary get the next free ids, which need not be the true ones.
    ids = {name: copy.token_to_id(name) for name in true_ids}
    return copy, {found: true_ids[name] for name, found in ids.items() if found is not None}


def _rename_in_vocabulary(model: dict[str, Any], new_names: dict[str, str]) -> None:
    """Rename special tokens that are vocabulary entries, so that no plain text leads to them."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {new_names.get(name, name): number for name, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[new_names.get(name, name), weight] for name, weight in vocabulary]
    if model.get("unk_token") in new_names:
        model["unk_token"] = new_names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [
            pair for pair in model["merges"] if not any(part in new_names for part in _parts(pair))
        ]


def _parts(pair: str | list[str]) -> tuple[str, str, str]:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left, right, left + right
