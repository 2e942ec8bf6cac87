"""Conversion of LangChain messages into the exact token ids that a local chat model reads.

Special tokens inside users' text stay plain text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_REASONING = {"reasoning", "thinking", "redacted_thinking", "reasoning_content"}
"""Content blocks of an earlier turn's reasoning: LangChain's name, and those of Anthropic, Google, Mistral
and Bedrock. No provider wants them back from another one, and a chat template has no place for them."""
_CALLS = {"tool_call", "tool_use", "function_call"}
"""Content blocks that repeat the tool calls of their message."""


def text_of(message: BaseMessage) -> str:
    """Returns the text of a message, byte for byte; blocks of reasoning are left out.

    Raises:
        ValueError: It holds something that is not text.
    """
    if isinstance(message.content, str):
        return message.content
    called = isinstance(message, AIMessage) and bool(message.tool_calls)
    parts = []
    for block in message.content:
        if is_reasoning(block) or (called and _kind(block) in _CALLS):
            continue
        if isinstance(block, dict) and block.get("type") == "text":
            parts.append(str(block["text"]))
        elif isinstance(block, str):
            parts.append(block)
        else:
            raise ValueError(
                f"a {message.type} message holds a content block of type {_kind(block)!r}; "
                "this adapter takes text only"
            )
    return "".join(parts)


def is_reasoning(block: Any) -> bool:
    """Returns whether a content block is reasoning of a model."""
    wrapped = block.get("value") if isinstance(block, dict) and block.get("type") == "non_standard" else None
    return _kind(block if wrapped is None else wrapped) in _REASONING


def _kind(block: Any) -> Any:
    return block.get("type") if isinstance(block, dict) else type(block).__name__


def without_reasoning(message: BaseMessage) -> BaseMessage:
    """Returns the message without its reasoning, for a model of any provider."""
    content, further = message.content, message.additional_kwargs
    if not isinstance(content, str):
        content = [block for block in content if not is_reasoning(block)] or ""
    further = {name: value for name, value in further.items() if name not in _REASONING}
    if content == message.content and further == message.additional_kwargs:
        return message
    return message.model_copy(update={"content": content, "additional_kwargs": further})


Turns = list[dict[str, Any]]


def acceptable_forms(turns: Turns) -> list[Turns]:
    """Returns the turns as they are, and in forms for chat templates that refuse those.

    Some templates (Mistral's, Gemma's) want user and assistant to alternate: turns of one role in a row
    become one. Some have no role for a system message: it precedes the text of the next user turn.
    """
    forms = [turns]
    for form in (_alternating(turns), _alternating(_without_system(turns))):
        if form != forms[-1]:
            forms.append(form)
    return forms


def system_texts(turns: Turns) -> list[str]:
    """Returns the system texts; a rendered chat without them comes from a template that drops them."""
    return [turn["content"].strip() for turn in turns if turn["role"] == "system"]


def _without_system(turns: Turns) -> Turns:
    made: Turns = []
    said: list[str] = []
    for turn in turns:
        if turn["role"] == "system":
            said.append(turn["content"])
        elif turn["role"] == "user" and said:
            made.append({**turn, "content": "\n\n".join([*said, turn["content"]])})
            said = []
        else:
            made.append(turn)
    return [*made, {"role": "user", "content": "\n\n".join(said)}] if said else made


def _alternating(turns: Turns) -> Turns:
    made: Turns = []
    for turn in turns:
        plain = turn.keys() == {"role", "content"} and turn["role"] in ("user", "assistant")
        if plain and made and made[-1].keys() == turn.keys() and made[-1]["role"] == turn["role"]:
            made[-1] = {**turn, "content": f"{made[-1]['content']}\n\n{turn['content']}"}
        else:
            made.append(turn)
    return made


def split_continuation(messages: Sequence[BaseMessage]) -> tuple[Sequence[BaseMessage], str]:
    """Takes a trailing AIMessage off a conversation.

    Returns:
        The messages before it, and its text, which is to be continued; all messages and "" without one.

    Raises:
        ValueError: The conversation is empty, or has nothing before the text to continue, or that is a
            tool call.
    """
    if not messages:
        raise ValueError("the conversation is empty; give at least one message")
    *before, last = messages
    if not isinstance(last, AIMessage):
        return messages, ""
    if not before:
        raise ValueError("the conversation is one AIMessage alone; put the message it answers before it")
    if last.tool_calls:
        raise ValueError("the last AIMessage holds tool calls, which cannot be continued; answer them first")
    return before, text_of(last)


def opens_reasoning(rendered: str) -> bool:
    """Returns whether a rendered generation prompt ends within reasoning, as that of DeepSeek-R1 does."""
    return rendered.rstrip().endswith("<think>")


def template_opens_reasoning(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> bool:
    """Returns whether a chat template opens reasoning before the model writes.

    Args:
        tokenizer: Brings the chat template.
        template_kwargs: Further arguments of it, such as ``enable_thinking``.
    """
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True, **template_kwargs
    )
    return opens_reasoning(str(rendered))


def encode_chat(
    messages: Sequence[BaseMessage],
    tokenizer: PreTrainedTokenizerBase,
    guard: SpecialTokenGuard,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Renders a conversation with the model's chat template and tokenises it.

    A trailing AIMessage is continued: its text follows the generation prompt unchanged, newlines included.
    A template that refuses or drops a system message, or refuses two turns of one role in a row, gets them in
    a form that it takes; see `acceptable_forms`.

    Args:
        messages: The conversation; text only.
        tokenizer: Brings the chat template.
        guard: Made from the same tokenizer; special tokens inside the messages stay plain text.
        template_kwargs: Further arguments of the chat template.

    Returns:
        The token ids of the prompt.

    Raises:
        ValueError: The conversation is empty, has nothing before the text to continue, holds something that
            is not text, or is refused by the chat template.
    """
    messages, continuation = split_continuation(messages)
    turns = [_turn(message, guard) for message in messages]
    return guard.encode(_rendered(turns, tokenizer, template_kwargs or {}), continuation)


def _rendered(turns: Turns, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> str:
    refusal: Exception | None = None
    for form in acceptable_forms(turns):
        try:
            rendered = str(
                tokenizer.apply_chat_template(
                    form, tokenize=False, add_generation_prompt=True, **template_kwargs
                )
            )
        except Exception as error:
            refusal = refusal or error
            continue
        if all(text in rendered for text in system_texts(form)):
            return rendered
        refusal = refusal or ValueError("it does not show the system message")
    roles = [turn["role"] for turn in turns]
    raise ValueError(f"the model's chat template refused the roles {roles}: {refusal}") from refusal


def takes_system_role(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> bool:
    """Returns whether a chat template has a role for system messages.

    Args:
        tokenizer: Brings the chat template.
        template_kwargs: Further arguments of it.
    """
    try:
        rendered = tokenizer.apply_chat_template(
            SYSTEM_PROBE, tokenize=False, add_generation_prompt=True, **template_kwargs
        )
    except Exception:  # templates raise exceptions of any kind
        return False
    return all(text in str(rendered) for text in system_texts(SYSTEM_PROBE))


SYSTEM_PROBE: Turns = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "?"}]


def _turn(message: BaseMessage, guard: SpecialTokenGuard) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": guard.shield(role_of(message)), "content": guard.shield(text_of(message))}
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "function": _shield_all({"name": call["name"], "arguments": call["args"]}, guard),
            }
            for call in message.tool_calls
        ]
    return turn


def role_of(message: BaseMessage) -> str:
    """Returns the role of a message in chat templates and OpenAI-compatible servers.

    Raises:
        ValueError: It has none.
    """
    match message:
        case SystemMessage():
            return "system"
        case HumanMessage():
            return "user"
        case AIMessage():
            return "assistant"
        case ToolMessage():
            return "tool"
        case ChatMessage():
            return message.role
    raise ValueError(
        f"a message of type {message.type!r} has no role in a chat template; "
        "use SystemMessage, HumanMessage, AIMessage, ToolMessage or ChatMessage"
    )


def _shield_all(value: Any, guard: SpecialTokenGuard) -> Any:
    if isinstance(value, str):
        return guard.shield(value)
    if isinstance(value, dict):
        return {guard.shield(str(key)): _shield_all(item, guard) for key, item in value.items()}
    if isinstance(value, list):
        return [_shield_all(item, guard) for item in value]
    return value


_DIGITS = "".join(chr(0xE000 + digit) for digit in range(16))
_OPEN, _CLOSE = chr(0xE010), chr(0xE011)


def mark(nonce: str, number: int) -> str:
    """Returns a string of private-use characters, which templates keep and no text holds (64 random bits)."""
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
        """Replaces special tokens in ``text``, which is about to be rendered, with marks."""
        return self._find_special.sub(lambda found: self._shielded[found[0]], text)

    def encode(self, rendered: str, continuation: str = "") -> list[int]:
        """Tokenises a template's output for shielded text.

        Args:
            rendered: The template's output. Special tokens in it count; shielded ones become text.
            continuation: Text appended to it byte for byte, in which nothing is special.

        Returns:
            Token ids; none are added that the template did not write.
        """
        return self.encode_spans(self.unshielded(rendered) + continuation)[0]

    def renamed(self, token: str) -> str:
        """Returns a special token's name in a text for `encode_spans`; any other text is its own name."""
        return self._special.get(token, token)

    def unshielded(self, rendered: str) -> str:
        """Returns a template's output for shielded text as a text for `encode_spans`."""
        text = self._find_special.sub(lambda found: self._special[found[0]], rendered)
        return self._find_shielded.sub(lambda found: self._unshield[found[0]], text)

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenises a text in which nothing is special but names from `renamed`; see `valid_utf8` too.

        Returns:
            Token ids, and for each the place in ``text``, in characters, that it came from.
        """
        encoded = self._copy.encode(valid_utf8(text), add_special_tokens=False)
        return [self._true_ids.get(token, token) for token in encoded.ids], encoded.offsets


def _renamed_copy(spec: dict[str, Any], new_names: dict[str, str]) -> tuple[Tokenizer, dict[int, int]]:
    """Returns a tokenizer whose special tokens bear new names, and the map from its ids to the true ones."""
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
    """Renames special tokens that are vocabulary entries, so that no plain text leads to them."""
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


_SURROGATE = re.compile("[\ud800-\udfff]")


def valid_utf8(text: str) -> str:
    """Puts U+FFFD in place of each lone surrogate, as decoders do; the length stays."""
    return _SURROGATE.sub("\ufffd", text)


def json_body(payload: Any) -> bytes:
    """Writes a payload as JSON in UTF-8; lone surrogates in its texts become U+FFFD.

    Raises:
        ValueError: It holds a number that is none (NaN, infinity).
    """
    return valid_utf8(json.dumps(payload, ensure_ascii=False, allow_nan=False)).encode()
