"""`trim_node`: a trim graph as a node of a parent whose state has other keys or another reducer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.graph import END

from .errors import InputError, SettingsError
from .run import with_recursion_limit
from .runtime import OWN_INPUT, READ

Form = Literal["message", "conversation", "text", "answer"]
_FORMS: tuple[Form, ...] = ("message", "conversation", "text", "answer")


def trim_node(
    graph: Runnable[Any, Any],
    *,
    problem: str | Callable[[Any], Any] = "messages",
    solution: str | Callable[[dict[str, Any]], dict[str, Any]] = "messages",
    form: Form = "message",
    summary: str | None = None,
    name: str = "trim",
) -> RunnableLambda[Any, Any]:
    r"""Wraps a trim graph as a node of a parent graph with another state.

    A parent whose ``messages`` are reduced by ``add_messages`` can take the graph itself:
    ``builder.add_node("solve", graph)``. Either way the run uses the parent's checkpointer, the ``trim`` of
    its context and its stream, and an interrupt stops the parent too.

    For example, for a parent with ``question: str`` and ``solution: str``::

        builder.add_node("solve", trim_node(graph, problem="question", solution="solution", form="text"))

    Args:
        graph: Graph that `create_trim_graph` built.
        problem: Key of the parent's state with the problem, a text or a list of messages; or a function from
            the state to either, or to the graph's whole input.
        solution: Key that the solution is written to; or a function from the graph's result to the update,
            which then ignores ``form`` and ``summary``.
        form: Form of the solution: ``message``, a list with the AIMessage, for a key with a reducer (such as
            ``Annotated[list, operator.add]``); ``conversation``, all messages, for a key that is overwritten;
            ``text``; or ``answer``, the content of the last ``\boxed{}``, None if there is none.
        summary: Key for the run's `trim_graph.Summary`; None omits it.
        name: Name of the node in traces.

    Returns:
        A Runnable from the parent's state to its update.

    Raises:
        SettingsError: ``graph`` is no graph, or ``form`` is none of these; by a run, before any model is
            called: the parent's state has no key of this name.
    """
    if not isinstance(graph, Runnable) or isinstance(graph, BaseLanguageModel):
        raise SettingsError(f"graph is of type {type(graph).__name__}: pass what create_trim_graph returns")
    if form not in _FORMS:
        raise SettingsError(f"form is {form!r}: choose {', '.join(_FORMS)}")

    written = {} if callable(solution) else {"solution": solution, "summary": summary}

    def run(state: Any, config: RunnableConfig) -> dict[str, Any]:
        _check_keys(written, config)
        return _written(graph.invoke(_input(state, problem), _own_input(config)))

    async def arun(state: Any, config: RunnableConfig) -> dict[str, Any]:
        _check_keys(written, config)
        return _written(await graph.ainvoke(_input(state, problem), _own_input(config)))

    def _written(result: dict[str, Any]) -> dict[str, Any]:
        if callable(solution):
            return solution(result)
        message, run_summary = result["messages"][-1], result["trim"]
        forms: dict[str, Any] = {
            "message": [message],
            "conversation": result["messages"],
            "text": str(message.text),
            "answer": run_summary["answer"],
        }
        return {solution: forms[form]} | ({summary: run_summary} if summary is not None else {})

    return _Node(run, arun, name=name)


def _check_keys(written: Mapping[str, str | None], config: RunnableConfig) -> None:
    """Checks that the parent's state has the keys that are written: LangGraph drops others silently.

    Args:
        written: Keys by the argument of `trim_node` that names them.
        config: Config of the node; outside a graph of LangGraph nothing is known of a state.

    Raises:
        SettingsError: It lacks one.
    """
    read = config.get("configurable", {}).get(READ)
    if read is None or _is_channel(read, END):  # only an entrypoint has this channel, and no state
        return
    for name, key in written.items():
        if key is not None and not _is_channel(read, key):
            raise SettingsError(
                f"{name} is {key!r}, and the parent's state has no such key: name one of its keys, or let "
                "solution be a function from the graph's result to the update"
            )


def _is_channel(read: Callable[[str], Any], key: str) -> bool:
    try:
        read(key)
    except KeyError:
        return False
    return True


def _own_input(config: RunnableConfig) -> RunnableConfig:
    return {**config, "configurable": {**config.get("configurable", {}), OWN_INPUT: True}}


class _Node(RunnableLambda[Any, Any]):
    """Passes on the parent's recursion limit; without one, LangChain would set 25."""

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().invoke(input, with_recursion_limit(config), **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await super().ainvoke(input, with_recursion_limit(config), **kwargs)


def _input(state: Any, problem: str | Callable[[Any], Any]) -> dict[str, Any]:
    """Returns the graph's input from the parent's state.

    Raises:
        InputError: The state has no such key, or its value is neither text nor messages.
    """
    if callable(problem):
        given, source = problem(state), "what the function `problem` returned"
    else:
        held = isinstance(state, Mapping)
        missing = problem not in state if held else not hasattr(state, problem)
        if missing:
            raise InputError(f"the parent's state has no {problem!r}: name the key with the problem in it")
        given, source = (state[problem] if held else getattr(state, problem)), f"the parent's {problem!r}"
    if isinstance(given, Mapping) and "messages" in given:
        return dict(given)
    messages = [("user", given)] if isinstance(given, str) else given
    try:
        if not isinstance(messages, list | tuple):
            raise TypeError
        return {"messages": convert_to_messages(messages)}
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"{source} is {given!r}: give a text or a list of messages") from error
