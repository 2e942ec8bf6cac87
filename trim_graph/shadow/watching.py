"""How a shadow sees an application's answers: a callback handler on its chat model, a node in its graph."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.callbacks.base import BaseCallbackManager
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.pregel import Pregel

from trim_graph.errors import SettingsError
from trim_graph.runtime import Node

from .worker import EXAMINING

if TYPE_CHECKING:
    from .runner import ShadowBase

AnyRunnable = TypeVar("AnyRunnable", bound=Runnable[Any, Any])

MOST_OPEN = 10_000
"""Most calls whose end is awaited: the end of an abandoned one is never seen."""
_OTHER_ANSWERS = ("tools", "functions", "response_format")
"""Settings of a call whose answer is no solution in steps."""


class _Begun(NamedTuple):
    messages: Sequence[BaseMessage]
    at: float
    suitable: bool


class ShadowHandler(BaseCallbackHandler):
    """Submits each answer of a chat model to a shadow.

    It runs in the application's own thread or task, so it does no work there: it remembers the messages at
    the beginning of a call, and appends to the shadow's queue at its end.

    Args:
        shadow: Takes the answers.
    """

    run_inline = True  # else asynchronous calls would run it in a thread, and wait for that

    def __init__(self, shadow: ShadowBase) -> None:
        self.shadow = shadow
        self._open: dict[UUID, _Begun] = {}
        self._lock = threading.Lock()

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Remembers what was asked."""
        if EXAMINING.get():
            return
        given = kwargs.get("invocation_params") or {}
        suitable = len(messages) == 1 and not any(given.get(name) for name in _OTHER_ANSWERS)
        with self._lock:
            self._open[run_id] = _Begun(list(messages[0]), time.monotonic(), suitable)
            if len(self._open) > MOST_OPEN:
                del self._open[next(iter(self._open))]

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Submits the answer."""
        with self._lock:
            begun = self._open.pop(run_id, None)
        if begun is None:
            return
        answer = self._answer(response) if begun.suitable else None
        if answer is None:
            self.shadow.skip()
        else:
            self.shadow.submit(begun.messages, answer, seconds=time.monotonic() - begun.at)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forgets a call that failed."""
        with self._lock:
            self._open.pop(run_id, None)

    @staticmethod
    def _answer(response: LLMResult) -> AIMessage | None:
        """Returns the answer as a message; None if it is no text."""
        message = getattr(response.generations[0][0], "message", None) if response.generations else None
        if not isinstance(message, AIMessage) or message.tool_calls or not str(message.text).strip():
            return None
        return message


def watched(model: AnyRunnable, handler: ShadowHandler) -> AnyRunnable:
    """Returns a copy of a model with a handler.

    Args:
        model: A chat model, or a Runnable around one.
        handler: The handler.

    Raises:
        SettingsError: It is a graph, or nothing that runs.
    """
    if isinstance(model, BaseChatModel):
        return model.model_copy(update={"callbacks": _added(model.callbacks, handler)})
    if isinstance(model, Pregel):
        raise SettingsError(
            "watch takes a chat model, and this is a graph, whose inner calls are no answers: add "
            "shadow.node() to it behind the node that answers"
        )
    if not isinstance(model, Runnable):
        raise SettingsError(f"watch takes a LangChain chat model, not {type(model).__name__}")
    return model.with_config({"callbacks": [handler]})  # type: ignore[return-value]


def _added(callbacks: Any, handler: ShadowHandler) -> Any:
    if isinstance(callbacks, BaseCallbackManager):
        manager = callbacks.copy()
        manager.add_handler(handler, inherit=False)
        return manager
    return [*(callbacks or ()), handler]


def shadow_node(shadow: ShadowBase, key: str) -> Runnable[Any, Any]:
    """Returns a node that submits the last answer of a conversation.

    Args:
        shadow: Takes the answers.
        key: Key of the conversation in the state.
    """

    def submit(state: Any, config: RunnableConfig) -> dict[str, Any]:
        messages = state.get(key) if isinstance(state, dict) else getattr(state, key, None)
        answer = messages[-1] if isinstance(messages, list) and messages else None
        if isinstance(answer, AIMessage) and not answer.tool_calls:
            shadow.submit(messages[:-1], answer)  # type: ignore[index]
        else:
            shadow.skip()
        return {}

    async def asubmit(state: Any, config: RunnableConfig) -> dict[str, Any]:
        return submit(state, config)

    return Node(submit, asubmit, name="shadow")
