"""Chat models and a scorer with scripted answers, for tests of applications that embed trim-graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field

from .adapters.base import ScorableStep, ScorerReply, step_texts
from .segmentation import DEFAULT_DELIMITER

__all__ = ["ScriptedChatModel", "ScriptedScorer", "ScriptedToolModel"]

Script = Sequence[str] | Callable[[str], str]


class ScriptedChatModel(BaseChatModel):
    """Answers with the steps of a script, by the contract of step-level routing; each word is a token.

    It writes the step after those in the trailing AIMessage, and continues a prefix of the script exactly. It
    honours ``stop`` and ``max_tokens`` (unless ``honours_max_tokens`` is False), reports usage and
    ``stop_reason`` as vLLM does, and streams word by word.
    """

    continues_exactly: ClassVar[bool] = True
    reports_entropy: ClassVar[bool] = True

    script: Any
    """Steps of the solution, or a function from the prefix to all text after it."""
    name: str | None = "scripted"
    delimiter: str = DEFAULT_DELIMITER
    honours_max_tokens: bool = True
    entropies: Any = None
    """Entropy in nats of each step's first token (0 for further steps), or a function from the prefix to it;
    None: the model does not report it."""
    calls: list[dict[str, Any]] = Field(default_factory=list)
    """Every call: its messages, its arguments, and the reported tokens of prompt and answer."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        max_tokens: int | None = None,
        timeout: float | None = None,
        first_token_entropy: bool = False,
        **kwargs: Any,
    ) -> ChatResult:
        prefix = str(messages[-1].text) if isinstance(messages[-1], AIMessage) else ""
        text, reason = self._rest(prefix), None
        for end in stop or ():
            if end in text:
                text, reason = text[: text.index(end)], end
        words = text.split(" ")
        tokens, finish = len(words) + 1, "stop"
        if self.honours_max_tokens and max_tokens is not None and tokens > max_tokens:
            text, tokens, finish, reason = " ".join(words[:max_tokens]), max_tokens, "length", None
        prompt = sum(len(str(message.text).split()) + 1 for message in messages)
        self.calls.append(
            {
                "messages": messages,
                "stop": stop,
                "max_tokens": max_tokens,
                "timeout": timeout,
                "prompt_tokens": prompt,
                "tokens": tokens,
            }
        )
        message = AIMessage(
            text,
            usage_metadata={"input_tokens": prompt, "output_tokens": tokens, "total_tokens": prompt + tokens},
            response_metadata={"model_name": self.name, "finish_reason": finish, "stop_reason": reason},
        )
        if first_token_entropy and self.entropies is not None:
            message.response_metadata["first_token_entropy"] = self._entropy(prefix)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages, stop, **kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        return _word_by_word(self._generate(messages, stop, **kwargs), run_manager)

    def _rest(self, prefix: str) -> str:
        if callable(self.script):
            return str(self.script(prefix))
        whole = self.delimiter.join(self.script)
        if whole.startswith(prefix):
            return whole[len(prefix) :]
        return self.delimiter.join(self.script[self._done(prefix) :])

    def _entropy(self, prefix: str) -> float:
        if callable(self.entropies):
            return float(self.entropies(prefix))
        done = self._done(prefix)
        return float(self.entropies[done]) if done < len(self.entropies) else 0.0

    def _done(self, prefix: str) -> int:
        return sum(bool(piece.strip()) for piece in prefix.split(self.delimiter))


class ScriptedToolModel(BaseChatModel):
    """Answers with the turns of a script, tool calls included; each word is a token.

    It writes the turn after those since the last human message. It honours ``max_tokens`` (unless
    ``honours_max_tokens`` is False), reports usage, and streams word by word. A tool call beyond the token
    limit is cut in half, and so invalid.
    """

    script: Any
    """Turns, each an AIMessage or its text, or a function from the messages to one."""
    name: str | None = "scripted"
    honours_max_tokens: bool = True
    calls: list[dict[str, Any]] = Field(default_factory=list)
    """Every call: its messages, tools and limits, and the reported tokens of prompt and answer."""

    @property
    def _llm_type(self) -> str:
        return "scripted tools"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Binds tools; the script may call any tool."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        tool_choice: Any = None,
        max_tokens: int | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = {
            "messages": messages,
            "tool_choice": tool_choice,
            "max_tokens": max_tokens,
            "timeout": timeout,
        }
        self.calls.append({**call, "tools": [tool["function"]["name"] for tool in tools]})
        message, tokens = _within(self._turn(messages), max_tokens if self.honours_max_tokens else None)
        prompt = sum(len(str(message.text).split()) + 1 for message in messages)
        self.calls[-1] |= {"prompt_tokens": prompt, "tokens": tokens}
        message.usage_metadata = {
            "input_tokens": prompt,
            "output_tokens": tokens,
            "total_tokens": prompt + tokens,
        }
        ended = "tool_calls" if message.tool_calls else "stop"
        metadata = {"model_name": self.name, "finish_reason": ended}
        message.response_metadata = {**metadata, **message.response_metadata}
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _turn(self, messages: list[BaseMessage]) -> AIMessage:
        if callable(self.script):
            turn = self.script(messages)
        else:
            begun = max(i for i, message in enumerate(messages) if isinstance(message, HumanMessage))
            turn = self.script[sum(isinstance(message, AIMessage) for message in messages[begun:])]
        return AIMessage(turn) if isinstance(turn, str) else turn.model_copy(deep=True)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        return _word_by_word(self._generate(messages, stop, **kwargs), run_manager)


def _word_by_word(
    result: ChatResult, run_manager: CallbackManagerForLLMRun | None
) -> Iterator[ChatGenerationChunk]:
    message = result.generations[0].message
    assert isinstance(message, AIMessage)
    for index, word in enumerate(str(message.text).split(" ")):
        chunk = ChatGenerationChunk(message=AIMessageChunk(content=f" {word}" if index else word))
        if run_manager:
            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk
    whole = [(call["name"], json.dumps(call["args"]), call["id"]) for call in message.tool_calls]
    broken = [(call["name"], call["args"], call["id"]) for call in message.invalid_tool_calls]
    chunks = [
        tool_call_chunk(name=name, args=args, id=called, index=index)
        for index, (name, args, called) in enumerate([*whole, *broken])
    ]
    yield ChatGenerationChunk(
        message=AIMessageChunk(
            content="",
            tool_call_chunks=chunks,
            usage_metadata=message.usage_metadata,
            response_metadata=message.response_metadata,
            chunk_position="last",
        )
    )


def _within(turn: AIMessage, limit: int | None) -> tuple[AIMessage, int]:
    """Returns a turn, cut at a token limit, and its tokens."""
    words = str(turn.text).split(" ") if str(turn.text) else []
    written = [json.dumps(call["args"]) for call in turn.tool_calls]
    sizes = [1 + len(args.split(" ")) for args in written]
    tokens = len(words) + sum(sizes) + 1
    if limit is None or tokens <= limit:
        return turn, tokens
    left, kept, broken = limit - len(words), [], []
    for call, args, size in zip(turn.tool_calls, written, sizes, strict=True):
        left -= size
        if left >= 0:
            kept.append(call)
        elif left + size > 0:
            half = args[: len(args) // 2]
            broken.append(invalid_tool_call(name=call["name"], args=half, id=call["id"], error="cut off"))
    cut = AIMessage(
        " ".join(words[:limit]),
        tool_calls=kept,
        invalid_tool_calls=broken,
        response_metadata={"finish_reason": "length"},
    )
    return cut, limit


class ScriptedScorer:
    """Scores a step by its text; steps that ``scores`` does not list get ``default``."""

    reads_reports = False

    def __init__(self, scores: dict[str, float] | None = None, default: float = 1.0) -> None:
        self.scores, self.default = scores or {}, default
        self.calls: list[list[str]] = []

    def score(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Returns the score of every step."""
        texts = step_texts(steps)
        self.calls.append(texts)
        return ScorerReply([self.scores.get(t, self.default) for t in texts], sum(map(len, texts)))

    async def ascore(self, question: str, steps: Sequence[ScorableStep]) -> ScorerReply:
        """Returns the score of every step."""
        return self.score(question, steps)
