"""`create_trim_graph` builds the state machine and returns it compiled, as a `TrimGraph`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from langchain_core.runnables import Runnable
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer
from typing_extensions import Unpack

from .adapters.base import AnyScorer, Scorer, as_scorer
from .adapters.by_name import as_chat_model
from .adapters.capabilities import continues_exactly, unaskable
from .adapters.prompted.chat import as_writer
from .adapters.responses import CountTokens, TokenCounter, check_count_tokens
from .adapters.token_confidence import reporting
from .budget import Budget, Prices, Writer
from .budget.ledger import Ledger
from .calls.speculation import Speculation
from .calls.warming import Warming
from .errors import SettingsError
from .nodes import (
    OnAnswer,
    after_generate_step,
    ask_human_node,
    begin_route,
    finalize_node,
    generate_step_node,
    route_node,
    score_step_node,
)
from .policies.base import AnyPolicy, as_policy
from .run import TrimGraph
from .runtime import Branch
from .segmentation import DelimiterSteps
from .settings import RunSettings, TrimContext, make_settings
from .state import TrimInput, TrimOutput, TrimState
from .storage.checkpoint import open_checkpointer

FROM_ROUTE = {"generate_step": "write a step", "ask_human": "ask a human", "finalize": "done"}
"""Nodes that `route` may go to, with the labels of the edges."""
TAG = "trim"
"""Tag of every run, and of every call inside one."""
AFTER_GENERATE_STEP: dict[Hashable, str] = {"score decides": "score_step", "no score needed": "route"}
"""Next node by the label that `after_generate_step` returns."""


def create_trim_graph(
    small: Runnable[Any, Any] | str,
    large: Runnable[Any, Any] | str,
    scorer: AnyScorer | None = None,
    *,
    policy: AnyPolicy,
    budget: Budget | None = None,
    prices: Prices | None = None,
    checkpointer: Checkpointer = None,
    ledger: Ledger | None = None,
    count_tokens: CountTokens | None = None,
    on_answer: OnAnswer | None = None,
    name: str = "trim",
    **settings: Unpack[RunSettings],
) -> CompiledStateGraph[TrimState, TrimContext, TrimInput, TrimOutput]:
    r"""Builds a graph that solves a problem step by step, with the large model only where it matters.

    Args:
        small: Chat model that drafts every step. It should continue a trailing AIMessage exactly, distinguish
            the end of a step from the end of the solution (``response_metadata["stop_reason"]``), and declare
            both by the class attribute ``continues_exactly = True``; a Runnable that is no chat model may
            have this attribute too. Any other model continues by prompt
            (`trim_graph.adapters.ContinueByPrompt`): a chat model, one of
            ``init_chat_model(configurable_fields=...)``, or a Runnable from messages to an AIMessage. A chain
            is refused. A name, such as ``"openai:gpt-4.1-mini"``, is that of a chat model as for LangChain's
            ``create_agent`` and ``init_chat_model``, with the provider's own settings.
        large: Chat model that rewrites a step if the policy says so; as ``small``.
        scorer: Rates each step: a `Scorer`, a Runnable from ``{"question", "steps"}`` to one probability
            per step, or a function of (question, steps), plain or ``async``. Each step is a `ScorableStep`: a
            text with ``writer`` and ``mean_token_probability``.
            A policy that uses no scores needs none.
        policy: Decides when the large model writes: a policy, a plain function of an `Observation`, or what a
            configuration file has: a number (`trim_graph.policies.threshold` at it), ``"small"`` or
            ``"large"``, a policy file, or a mapping such as ``{"type": "random_rate", "rate": 0.3}``. A
            function is asked about two sample observations first, so that a wrong answer shows here.
        budget: Hard limits on the large model; default: none.
        prices: Price table, for the limit on cost and the cost of the summary.
        checkpointer: LangGraph checkpointer, as `open_checkpointer` opens one; None inherits the parent's
            when embedded as a subgraph.
        ledger: Holds the accounts of threads and users that have ``quotas``; see `open_ledger`.
        count_tokens: Returns the number of tokens of a text, for models whose answers have no
            ``usage_metadata``. Without it such a model's own ``get_num_tokens`` counts; but if a limit
            depends on its tokens, its first answer is refused. The summary notes that tokens are estimated.
        on_answer: Called with the conversation and the answer of each run that ends, such as
            `Shadow.observe`; an error in it is the run's.
        name: Name of the graph, in traces and as a subgraph.
        **settings: Fields of `Settings`, which documents each: ``max_steps``, ``max_step_tokens``,
            ``max_tokens``, ``delimiter``, ``segmentation`` (see `trim_graph.segmentation`; or a function),
            ``thinking``, ``instruction``, ``max_repeats``, ``seed``, ``on_scorer_error``, ``on_large_error``,
            ``on_small_error``, ``ask_below``, ``lookahead``, ``warm_large``, ``large_alone``, ``quotas``.

    Returns:
        A compiled graph from ``{"messages": [...]}`` to ``{"messages": [..., AIMessage], "trim": ...}``.

    Raises:
        SettingsError: A setting is wrong or missing; the message names it.
        ImportError: The package of a model's provider is not installed; the message names it.

    Example:
        ```python
        from trim_graph import ScorableStep, create_trim_graph
        from trim_graph.policies import threshold
        from trim_graph.testing import ScriptedChatModel

        def rate(question: str, steps: list[ScorableStep]) -> list[float]:
            return [0.1 if "guess" in step else 0.9 for step in steps]

        small = ScriptedChatModel(script=["12 * 12 is 12 * 10 + 12 * 2.", r"I guess \boxed{142}."])
        large = ScriptedChatModel(script=["12 * 12 = 120 + 24.", r"The answer is \boxed{144}."])
        graph = create_trim_graph(small, large, rate, policy=threshold(0.5), max_steps=8)
        result = graph.invoke({"messages": [("user", "What is 12 * 12?")]})
        print(result["messages"][-1].text)  # the second step is the large model's
        print(result["trim"]["steps"])  # {'small': 1, 'large': 1}
        ```
    """
    routing = as_policy(policy)
    if scorer is None and routing.needs_score:
        raise SettingsError(f"policy {routing!r} needs scores, but scorer is None: pass a scorer")
    rater = None if scorer is None else checked_scorer(scorer)
    if isinstance(checkpointer, str | open_checkpointer):
        seen = "a text" if isinstance(checkpointer, str) else "open_checkpointer(...), which is not open yet"
        raise SettingsError(
            f"checkpointer is {seen}: a store is opened and closed around its use, as in "
            'with open_checkpointer("sqlite:runs.db") as checkpointer: ..., by async with for ainvoke'
        )
    small, large = as_chat_model("small", small), as_chat_model("large", large)
    check_count_tokens(count_tokens)
    fixed = make_settings(budget, prices, settings)
    if ledger is None and fixed.quotas.given:
        raise SettingsError("quotas are given, but no ledger that counts: pass ledger=, of open_ledger")
    _check_writers(scorer, small=small, large=large)
    way = fixed.segmentation
    delimiter = way.delimiter if isinstance(way, DelimiterSteps) else fixed.delimiter
    counters: dict[Writer, TokenCounter] = {
        "small": TokenCounter("small", small, count_tokens),
        "large": TokenCounter("large", large, count_tokens),
    }
    small, large = _writer(small, delimiter, counters["small"]), _writer(large, delimiter, counters["large"])
    try:
        small, large = reporting(small, scorer, "small"), reporting(large, scorer, "large")
    except ValueError as error:  # a trained scorer's file cannot be read
        raise SettingsError(str(error)) from error
    builder = StateGraph(TrimState, TrimContext, input_schema=TrimInput, output_schema=TrimOutput)
    speculation = Speculation(small, scorer, routing, fixed.segmentation)
    if fixed.lookahead:
        speculation.check()
    warming = Warming(large, ledger, counters)
    if fixed.warm_large:
        warming.check()
    has_scorer = rater is not None
    route = route_node(
        fixed,
        routing,
        large,
        has_scorer=has_scorer,
        ledger=ledger,
        speculation=speculation,
        warming=warming,
    )
    builder.add_node("route", route, destinations=FROM_ROUTE)
    generate_step = generate_step_node(
        small, large, fixed.segmentation, ledger, counters, speculation, warming
    )
    builder.add_node("generate_step", generate_step)
    builder.add_node("ask_human", ask_human_node())
    builder.add_edge("ask_human", "route")
    builder.add_node("finalize", finalize_node(ledger, speculation, warming, on_answer))
    builder.add_conditional_edges(START, Branch(begin_route, name="begin"), ["route"])
    if rater is None:
        builder.add_edge("generate_step", "route")
    else:
        builder.add_node("score_step", score_step_node(rater, speculation))
        choice = Branch(after_generate_step, name="after_generate_step")
        builder.add_conditional_edges("generate_step", choice, AFTER_GENERATE_STEP)
        builder.add_edge("score_step", "route")
    graph = builder.compile(checkpointer=checkpointer, name=name)
    graph.__class__ = TrimGraph
    return graph.with_config(tags=[TAG])


def _writer(model: Runnable[Any, Any], delimiter: str, counter: TokenCounter) -> Runnable[Any, Any]:
    if not continues_exactly(model) and (why := unaskable(model)) is not None:
        raise SettingsError(f"{counter.writer} cannot write steps: {why}")
    return as_writer(model, delimiter, counter)


def checked_scorer(scorer: Any) -> Scorer:
    """Returns a scorer.

    Raises:
        SettingsError: It is none.
    """
    try:
        return as_scorer(scorer)
    except TypeError as error:
        raise SettingsError(str(error)) from None


def _check_writers(scorer: Any, **writers: Any) -> None:
    """Has a scorer that reads what the writers report refuse those that do not.

    Raises:
        SettingsError: It refuses one.
    """
    check = getattr(scorer, "check_writer", None)
    if check is None:
        return
    for writer, model in writers.items():
        try:
            check(writer, model)
        except ValueError as error:
            raise SettingsError(str(error)) from error
