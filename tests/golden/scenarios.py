"""The scripted scenarios by name: each plays one behaviour of the graph, of an agent or of the chat model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypedDict

import numpy as np
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, ModelCallLimitMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.messages.tool import tool_call
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from tests.golden.normal import encode
from tests.golden.rig import (
    ASYNCHRONOUSLY,
    DRIVEN,
    AwayModel,
    AwayToolModel,
    Confident,
    FailingModel,
    FailingScorer,
    FailingToolModel,
    HangingModel,
    MeasuringSaver,
    NotDriven,
    OpenedReasoning,
    PromptedModel,
    SlowModel,
    SlowScorer,
    ThinkingInSilence,
    Unreported,
    calls_of,
    drive,
)
from trim_graph import (
    Budget,
    ModelPrice,
    Prices,
    TrimContext,
    create_trim_chat_model,
    create_trim_graph,
    open_checkpointer,
    open_ledger,
    trim_node,
)
from trim_graph.adapters import ContextLengthError, TokenProbability
from trim_graph.agents import TrimMiddleware
from trim_graph.budget.usage import LargeUsage
from trim_graph.examples.arithmetic import WEIGHTS
from trim_graph.policies import (
    Choice,
    Observation,
    by_pattern,
    entropy_probe,
    large_only,
    load_policy,
    query_router,
    random_rate,
    small_only,
    stay_on_large,
    threshold,
)
from trim_graph.policies.query_router import SIZE
from trim_graph.segmentation import markdown, pattern, token_cap
from trim_graph.testing import ScriptedChatModel, ScriptedScorer, ScriptedToolModel

POLICIES = WEIGHTS.parent / "policies"

Scenario = Callable[[], dict[str, Any]]

SMALL = ["small one", "small two", "small three", "so it is \\boxed{4}"]
LARGE = ["LARGE one", "LARGE two", "LARGE three", "SO it is \\boxed{5}"]
POOR = {"small two": 0.1}
QUESTION = "What is 2 + 2?"
PRICES = Prices(
    small=ModelPrice(input=0.1, output=0.4),
    large=ModelPrice(input=1, output=4, cached_input=0.5),
    scorer=ModelPrice(input=0.05, output=0.2),
)
FULL = ContextLengthError("the prompt has 4096 tokens; m takes 4095 at most", 400)
GOES_ON: dict[str, Any] = {"on_small_error": "large", "on_large_error": "accept", "on_scorer_error": "accept"}


def always(observation: Observation) -> str:
    return "regenerate"


def hands_over(observation: Observation) -> str:
    return "handover" if observation.index == 1 else "accept"


def remembers(observation: Observation) -> Choice:
    seen = [*(observation.memory or []), observation.score]
    return Choice("regenerate" if len(seen) % 2 == 0 else "accept", seen)


def model(given: Any, name: str) -> Any:
    return ScriptedChatModel(script=given, name=name) if isinstance(given, list) or callable(given) else given


def exactly(
    *texts: str, kind: type[ScriptedChatModel] = ScriptedChatModel, **fields: Any
) -> ScriptedChatModel:
    """A model that writes a text to the letter: the first of them that begins with what is there."""

    def rest(prefix: str) -> str:
        return next((text[len(prefix) :] for text in texts if text.startswith(prefix)), "?")

    return kind(script=rest, **fields)


def play(
    *turns: Any,
    question: Any = QUESTION,
    small: Any = SMALL,
    large: Any = LARGE,
    scores: dict[str, float] | None = None,
    scorer: Any = "scripted",
    policy: Any = None,
    saver: MeasuringSaver | None = None,
    drives: dict[str, Any] | None = None,
    ledger: Any = None,
    **settings: Any,
) -> dict[str, Any]:
    """Plays a graph; by default the second draft scores 0.1 under ``threshold(0.5)``.

    Args:
        turns: After the question; see `drive`.
        question: The first turn.
        small: A model, or its script.
        large: Likewise.
        scores: Of steps, where the scorer is the scripted one.
        scorer: Another one.
        policy: Another one.
        saver: One of its own where a scenario has to reach it.
        drives: Of `drive`.
        ledger: What its accounts have used in the end is recorded.
        settings: Of the graph.
    """
    if scorer == "scripted":
        scorer = ScriptedScorer(POOR if scores is None else scores)
    small, large, saver = model(small, "tiny"), model(large, "huge"), saver or MeasuringSaver()
    graph = create_trim_graph(
        small,
        large,
        scorer,
        policy=policy or threshold(0.5),
        checkpointer=saver,
        ledger=ledger,
        **settings,
    )
    record = drive(graph, (question, *turns), saver, **(drives or {}))
    record["calls"] = {"small": calls_of(small), "large": calls_of(large), "scorer": calls_of(scorer)}
    if ledger is not None:
        record["ledger"] = accounts_of(ledger)
    return record


def accounts_of(ledger: Any) -> dict[str, Any]:
    return {
        account: {**ledger.used(account)._asdict(), "reserved": len(ledger.reservations(account))}
        for account in ("thread:golden", "user:ada")
    }


# Ways to end


def deadline_cuts_a_call() -> dict[str, Any]:
    small = HangingModel(script=SMALL, name="tiny", hangs_behind="small two")
    try:
        return play(small=small, scores={}, budget=Budget(seconds=0.8))
    finally:
        small.released.set()


# Crashes


def until_large_call(graph: Any, config: Any) -> None:
    """Resumes superstep by superstep, up to the checkpoint before the large model is called."""
    while not graph.get_state(config).values["in_flight"]:
        graph.invoke(None, config, interrupt_before=["generate_step"])


def as_another_process(graph: Any, config: Any) -> None:
    """Makes it look as if another process had begun the call, and died."""
    lost = {**graph.get_state(config).values["in_flight"], "process": "another"}
    graph.update_state(config, Command(update={"in_flight": lost}, goto="generate_step"), as_node="route")


def crash_of_another_process(**settings: Any) -> dict[str, Any]:
    first = (QUESTION, {"interrupt_before": ["generate_step"]})
    return play(until_large_call, as_another_process, None, question=first, **settings)


def database_away(**settings: Any) -> dict[str, Any]:
    """The large model's first answer cannot be stored; the process continues."""
    saver = MeasuringSaver()
    large = AwayModel(script=LARGE, name="huge", saver=saver)
    return play(lambda graph, config: saver.come_back(), None, large=large, saver=saver, **settings)


def branches() -> dict[str, Any]:
    """Two branches of one checkpoint make the same large call, and each pays for its own."""

    def fork(graph: Any, config: Any) -> None:
        for state in list(graph.get_state_history(config)):
            if state.values.get("in_flight") and state.next == ("generate_step",):
                graph.invoke(None, state.config, durability="sync")
                return

    return play(fork)


def resumed_from_sqlite() -> dict[str, Any]:
    """Two graphs on one file, as two processes have them: the first asks a human, the second resumes."""
    records = []
    with TemporaryDirectory() as folder:
        for turn in (QUESTION, {"decision": "regenerate"}):
            with open_checkpointer(f"sqlite:{folder}/runs.db") as saver:
                graph = create_trim_graph(
                    model(SMALL, "tiny"),
                    model(LARGE, "huge"),
                    ScriptedScorer(POOR),
                    policy=threshold(0.5),
                    ask_below=0.3,
                    checkpointer=saver,
                )
                records.append(drive(graph, (turn,), saver))
    first, second = records
    return {**second, "invocations": first["invocations"] + second["invocations"]}


# Accounts


def with_ledger(
    *turns: Any, spec: str = "memory", used: int = 0, plays: Any = play, **settings: Any
) -> dict[str, Any]:
    """Plays with accounts of thread and user; other runs of the user have ``used`` so many tokens."""
    with TemporaryDirectory() as folder, open_ledger(spec.replace("FOLDER", folder)) as ledger:
        if used:
            ledger.reserve("user:ada", "another run", lambda before: LargeUsage(used, 1, 0.0))
            ledger.settle("user:ada", "another run", LargeUsage(used, 1, 0.0))
        settings = {
            "quotas": {"thread": {"large_tokens": 40}, "user": {"large_tokens": 60, "large_calls": 5}},
            "drives": {"context": {"trim": TrimContext(user="ada")}},
            **settings,
        }
        return plays(*turns, ledger=ledger, **settings)


def taken_meanwhile() -> dict[str, Any]:
    """Another run takes what is left between `route` and the call."""
    with open_ledger("memory") as ledger:

        class Contended:
            def __getattr__(self, name: str) -> Any:
                return getattr(ledger, name)

            def reserve(self, account: str, entry: str, ask: Any) -> Any:
                ledger.reserve("user:ada", "another run", lambda used: LargeUsage(58, 1, 0.0))
                return ledger.reserve(account, entry, ask)

        return play(
            ledger=Contended(),
            quotas={"user": {"large_tokens": 60}},
            drives={"context": TrimContext(user="ada")},
        )


# Lookahead


def ahead(*turns: Any, **options: Any) -> dict[str, Any]:
    script = ["one", "two", "three", "four \\boxed{4}"]
    options = {"scorer": SlowScorer({"two": 0.1}), **options}
    small = SlowModel(script=script, name="tiny", hangs_behind=options.pop("hangs_behind", ()))
    large = SlowModel(script=[step.upper() for step in script], name="huge")
    settings = {"lookahead": True, "drives": {"asynchronously": True}, **options}
    return play(*turns, small=small, large=large, **settings)


# The graph in another's


def embedded() -> dict[str, Any]:
    """As a subgraph that shares ``messages``, with a human asked through the parent."""
    graph = create_trim_graph(
        model(SMALL, "tiny"), model(LARGE, "huge"), ScriptedScorer(POOR), policy=threshold(0.5), ask_below=0.3
    )
    saver = MeasuringSaver()
    builder = StateGraph(MessagesState).add_node("solve", graph).add_edge(START, "solve")
    turns = (QUESTION, {"decision": "regenerate"})
    return drive(builder.compile(checkpointer=saver), turns, saver, subgraphs=True)


class Other(TypedDict, total=False):
    problem: str
    solution: str
    bill: dict[str, Any]
    messages: Annotated[list[AnyMessage], lambda old, new: [*old, *new]]


def embedded_by_a_wrapper() -> dict[str, Any]:
    """As a node of a parent with other keys, its settings under ``trim`` in the parent's context."""
    graph = create_trim_graph(
        model(SMALL, "tiny"), model(LARGE, "huge"), ScriptedScorer(POOR), policy=threshold(0.5)
    )
    saver = MeasuringSaver()
    node = trim_node(graph, problem="problem", solution="solution", form="text", summary="bill")
    parent = StateGraph(Other, context_schema=dict).add_node("solve", node).add_edge(START, "solve")
    begin = {"problem": QUESTION, "messages": []}
    return drive(
        parent.compile(checkpointer=saver),
        (begin,),
        saver,
        subgraphs=True,
        context={"trim": {"max_steps": 2}},
    )


def chat_model() -> dict[str, Any]:
    """The router as a chat model: one call, one stream, settings and limits of a call."""
    router = create_trim_chat_model(
        model(SMALL, "tiny"), model(LARGE, "huge"), ScriptedScorer(POOR), policy=threshold(0.5)
    )
    return {
        "invoke": router.invoke(QUESTION),
        "stream": [chunk.content for chunk in router.stream(QUESTION)],
        "threshold of the call": router.invoke(QUESTION, trim={"threshold": 0.05}),
        "stop": router.invoke(QUESTION, stop=["three"]),
        "max_tokens": router.invoke(QUESTION, max_tokens=4),
    }


# Agents


def calling(name: str, *, by: str, text: str = "", **arguments: Any) -> AIMessage:
    return AIMessage(text, tool_calls=[tool_call(name=name, args=arguments, id=by)])


AGENT_SMALL = [calling("multiply", a=12, b=21, by="small-0"), "small answer"]
AGENT_LARGE = [calling("multiply", a=12, b=12, by="large-0"), "LARGE answer"]
AGENT_POOR = {'[tool_call] multiply {"a": 12, "b": 21}': 0.1}


PRODUCT = {
    "title": "Product",
    "description": "The product.",
    "type": "object",
    "properties": {"value": {"type": "integer"}},
    "required": ["value"],
}


def agent(
    *turns: Any,
    question: Any = "What is 12 * 12?",
    small: Any = AGENT_SMALL,
    large: Any = AGENT_LARGE,
    scores: dict[str, float] | None = None,
    scorer: Any = "scripted",
    policy: Any = None,
    before: Sequence[Any] = (),
    response_format: Any = None,
    drives: dict[str, Any] | None = None,
    saver: MeasuringSaver | None = None,
    ledger: Any = None,
    **settings: Any,
) -> dict[str, Any]:
    """Plays an agent; by default the small model's first turn scores 0.1 under ``threshold(0.5)``."""
    ran: list[Any] = []

    @tool
    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        ran.append([a, b])
        return a * b

    if scorer == "scripted":
        scorer = ScriptedScorer(AGENT_POOR if scores is None else scores)
    small, large = (
        ScriptedToolModel(script=given, name=name) if isinstance(given, list) else given
        for given, name in ((small, "tiny"), (large, "huge"))
    )
    saver = saver or MeasuringSaver()
    routing = TrimMiddleware(large, scorer, policy=policy or threshold(0.5), ledger=ledger, **settings)
    graph = create_agent(
        small,
        [multiply],
        middleware=[*before, routing],
        response_format=response_format,
        checkpointer=saver,
    )
    record = drive(graph, (question, *turns), saver, **(drives or {}))
    record["calls"] = {"small": calls_of(small), "large": calls_of(large), "scorer": calls_of(scorer)}
    if ledger is not None:
        record["ledger"] = accounts_of(ledger)
    return {**record, "ran": ran}


def agent_crash_of_another_process() -> dict[str, Any]:
    def as_another(graph: Any, config: Any) -> None:
        lost = {**graph.get_state(config).values["trim_in_flight"], "process": "another"}
        graph.update_state(config, {"trim_in_flight": lost})

    first = ("What is 12 * 12?", {"interrupt_before": ["model"]})
    return agent(as_another, None, question=first, max_step_tokens=40)


def agent_database_away() -> dict[str, Any]:
    saver = MeasuringSaver()
    large = AwayToolModel(script=AGENT_LARGE, name="huge", saver=saver)
    return agent(lambda graph, config: saver.come_back(), None, large=large, saver=saver)


def talk(turns: int, by: str) -> list[Any]:
    called = [calling("multiply", a=turn, b=turn, by=f"{by}-{turn}", text=by) for turn in range(turns)]
    return [*called, f"{by} is done"]


def router_of(bias: float) -> Any:
    return query_router(np.zeros(SIZE), np.ones(SIZE), bias)


THOUGHT = "<think>\nAdd 2.\n\nMaybe \\boxed{3}?\n\nNo, it is 4.\n</think>\n\nTwo and two:\n\n\\boxed{4}"
BETTER_THOUGHT = THOUGHT.replace("Maybe \\boxed{3}?", "Perhaps not.")
MARKDOWN = (
    "# Sum\n\nLet us add:\n\n```python\nx = 2\n\nprint(x + 2)\n```\n\n"
    "| a | b |\n|---|---|\n| 2 | 2 |\n\nSo \\boxed{4}."
)
BIASED = {"entropies": [0.1, 2.0, 0.3, 0.2]}
ASKS = Budget(large_calls=1, on_exhausted="ask")
POOREST = {"small one": 0.1, "small two": 0.1}

FIRST = "finished"
SCENARIOS: dict[str, Scenario] = {
    # Policies and ways to end
    FIRST: lambda: play(drives={"updates": True}),
    "finished, async": lambda: play(drives={"asynchronously": True}),
    "finished, small only": lambda: play(policy=small_only()),
    "finished, large only": lambda: play(policy=large_only(), scorer=None),
    "finished, handover": lambda: play(policy=hands_over),
    "finished, random with a seed": lambda: play(policy=random_rate(0.5), seed=7, scorer=None),
    "finished, policy with memory": lambda: play(policy=remembers),
    "finished, composed policies": lambda: play(
        policy=(threshold(0.5) & random_rate(0.9)) | remembers, seed=1
    ),
    "finished, stay on large": lambda: play(policy=stay_on_large(threshold(0.5), 1)),
    "finished, by pattern": lambda: play(policy=by_pattern("one|two", {"two": 1.0}), scorer=None),
    "finished, query router to large": lambda: play(policy=router_of(1.0), scorer=None),
    "finished, query router to small": lambda: play(policy=router_of(-1.0), scorer=None),
    "finished, planned policy": lambda: play(policy=load_policy(POLICIES / "pomdp-4.json")),
    "finished, aggregate policy": lambda: play(policy=load_policy(POLICIES / "aggregate-0.04.json")),
    "finished, sequence policy": lambda: play(policy=load_policy(POLICIES / "sequence-0.04.json")),
    "finished, entropy probe": lambda: play(
        small=ScriptedChatModel(script=SMALL, name="tiny", **BIASED), policy=entropy_probe(1.0), scorer=None
    ),
    "finished, entropy probe or threshold": lambda: play(
        small=ScriptedChatModel(script=SMALL, name="tiny", **BIASED),
        policy=entropy_probe(1.5) | threshold(0.5),
        scores={"small three": 0.1},
    ),
    "finished, token probabilities": lambda: play(
        small=Confident(script=SMALL, name="tiny", unsure_at=(1,)),
        large=Confident(script=LARGE, name="huge"),
        scorer=TokenProbability(),
    ),
    "token probabilities that are missing": lambda: play(scorer=TokenProbability(), on_scorer_error="accept"),
    "max_steps": lambda: play(max_steps=2),
    "max_steps within a handover": lambda: play(policy=hands_over, max_steps=3, max_step_tokens=3),
    "length of a step": lambda: play(
        small=["a long step of nine words is cut here", *SMALL], max_step_tokens=4
    ),
    "length, small is full": lambda: play(
        small=FailingModel(script=SMALL, name="tiny", fails_at=range(2, 9), error=FULL)
    ),
    "length, scorer is full": lambda: play(scorer=FailingScorer(range(1, 9), error=FULL)),
    "large is full": lambda: play(
        large=FailingModel(script=LARGE, name="huge", fails_at=range(9), error=FULL), policy=always
    ),
    "loop of steps": lambda: play(small=["round and round"] * 9, scores={}, max_repeats=2),
    "loop of answers": lambda: play(
        small=[f"{n}: \\boxed{{4}}" for n in range(12)], scores={}, max_repeats=1
    ),
    "budget stops": lambda: play(policy=always, budget=Budget(large_calls=1, on_exhausted="stop")),
    "budget stops large only": lambda: play(
        policy=large_only(), budget=Budget(large_tokens=5, min_tokens=4, on_exhausted="stop")
    ),
    "budget leaves it to small": lambda: play(policy=always, budget=Budget(large_tokens=5, min_tokens=2)),
    "budget cuts a handover": lambda: play(policy=hands_over, budget=Budget(large_tokens=4, min_tokens=2)),
    "budget is used up before": lambda: play(budget=Budget(large_tokens=0)),
    "overshoot": lambda: play(
        large=ScriptedChatModel(script=["LARGE and longer than granted"] * 4, honours_max_tokens=False),
        policy=always,
        budget=Budget(large_tokens=3, min_tokens=2),
    ),
    "cost limit": lambda: play(policy=always, prices=PRICES, budget=Budget(large_cost=2e-4, min_tokens=2)),
    "prices": lambda: play(prices=PRICES),
    "deadline before the first step": lambda: play(budget=Budget(seconds=0)),
    "deadline cuts a call": deadline_cuts_a_call,
    "recursion_limit": lambda: play(drives={"config": {"recursion_limit": 12}}),
    "recursion_limit too low": lambda: play(drives={"config": {"recursion_limit": 3}}),
    "no_step": lambda: play(small=ThinkingInSilence(script=SMALL, name="tiny", silent_at=range(1, 9))),
    "no_step, large writes": lambda: play(
        small=ThinkingInSilence(script=SMALL, name="tiny", silent_at=(1,)), **GOES_ON
    ),
    "no_step, large's": lambda: play(large=ThinkingInSilence(script=LARGE, silent_at=range(9)), **GOES_ON),
    "no_step, punctuation": lambda: play(small=["---", "small one", "***", "small two", "end"]),
    "failed": lambda: play(
        small=FailingModel(script=SMALL, fails_at=range(2, 9)),
        large=FailingModel(script=LARGE, fails_at=range(1, 9)),
        policy=always,
        **GOES_ON,
    ),
    # Failures and what is declared
    "on_small_error raise": lambda: play(small=FailingModel(script=SMALL, fails_at=(1,))),
    "on_small_error large": lambda: play(
        small=FailingModel(script=SMALL, fails_at=(1,)), on_small_error="large"
    ),
    "on_small_error large, resumed after raise": lambda: play(
        None, small=FailingModel(script=SMALL, fails_at=(1,))
    ),
    "on_large_error raise": lambda: play(large=FailingModel(script=LARGE, fails_at=(0,))),
    "on_large_error accept": lambda: play(
        large=FailingModel(script=LARGE, fails_at=(0,)), on_large_error="accept"
    ),
    "on_large_error accept, without a draft": lambda: play(
        large=FailingModel(script=LARGE, fails_at=(0,)), policy=large_only(), on_large_error="accept"
    ),
    "on_large_error accept, given up": lambda: play(
        large=FailingModel(script=LARGE, fails_at=range(9)), policy=always, on_large_error="accept"
    ),
    "on_scorer_error raise": lambda: play(scorer=FailingScorer((1,))),
    "on_scorer_error accept": lambda: play(scorer=FailingScorer((1,)), on_scorer_error="accept"),
    "on_scorer_error regenerate": lambda: play(scorer=FailingScorer((1,)), on_scorer_error="regenerate"),
    "on_scorer_error regenerate, budget spent": lambda: play(
        scorer=FailingScorer((1, 2)), on_scorer_error="regenerate", budget=Budget(large_calls=1)
    ),
    "bad scores": lambda: play(scorer=lambda question, steps: [1.5] * len(steps), on_scorer_error="accept"),
    # A human
    **{
        f"human at a low score, {name}": lambda answer=answer: play(answer, ask_below=0.3)
        for name, answer in {
            "accept": {"decision": "accept"},
            "regenerate": {"decision": "regenerate"},
            "handover": {"decision": "handover"},
            "by hand": {"step": "by hand\n\nand more"},
            "by hand, the last": {"step": "so \\boxed{7}", "ends": True},
            "more budget": {"more": {"large_tokens": 5}},
            "on small": {"continue_with": "small"},
            "stop": {"continue_with": "stop"},
            "wrong": {"mor": 5},
        }.items()
    },
    **{
        f"human at a spent budget, {name}": lambda answers=answers: play(*answers, policy=always, budget=ASKS)
        for name, answers in {
            "more": ({"more": {"large_calls": 2}}, {"more": {"large_calls": 1, "large_tokens": 50}}),
            "accept": ({"decision": "accept"}, {"decision": "accept"}, {"continue_with": "small"}),
            "by hand": ({"step": "by hand"}, {"step": "end", "ends": True}),
            "on small": ({"continue_with": "small"},),
            "stop": ({"continue_with": "stop"},),
        }.items()
    },
    "human at a spent budget, without a draft": lambda: play(
        {"continue_with": "small"},
        policy=large_only(),
        scorer=None,
        budget=Budget(large_tokens=3, min_tokens=3, on_exhausted="ask"),
    ),
    "human, score and budget": lambda: play(
        {"decision": "regenerate"},
        {"decision": "handover"},
        {"more": {"large_calls": 1}},
        scores=POOREST,
        ask_below=0.3,
        budget=ASKS,
        drives={"updates": True},
    ),
    "human, scorer failed and budget spent": lambda: play(
        {"more": {"large_calls": 1}},
        scorer=FailingScorer((0, 1)),
        on_scorer_error="regenerate",
        budget=ASKS,
    ),
    "human, small failed and budget spent": lambda: play(
        {"continue_with": "small"},
        small=FailingModel(script=SMALL, fails_at=(1,)),
        on_small_error="large",
        policy=always,
        budget=ASKS,
    ),
    # Accounts
    "ledger in memory": lambda: with_ledger(policy=always),
    "ledger in SQLite": lambda: with_ledger("Again?", spec="sqlite:FOLDER/spend.db", policy=always),
    "ledger exhausted by other runs": lambda: with_ledger(used=60),
    "ledger exhausted, stops": lambda: with_ledger(used=60, budget=Budget(on_exhausted="stop")),
    "ledger exhausted, asks": lambda: with_ledger(
        {"more": {"large_tokens": 30}}, used=58, budget=Budget(on_exhausted="ask")
    ),
    "ledger, async": lambda: with_ledger(
        policy=always, drives={"context": TrimContext(user="ada"), "asynchronously": True, "updates": True}
    ),
    "ledger, taken meanwhile": taken_meanwhile,
    "ledger without a user": lambda: with_ledger(drives={}),
    # Lookahead
    "lookahead": lambda: ahead(),
    "lookahead, all taken": lambda: ahead(scorer=SlowScorer()),
    "lookahead, unaccounted": lambda: ahead(hangs_behind=("one\n\ntwo",)),
    "lookahead, human": lambda: ahead({"decision": "accept"}, ask_below=0.3),
    "lookahead, not async": lambda: play(lookahead=True),
    # Crashes
    "crash of another process": lambda: crash_of_another_process(max_step_tokens=40, prices=PRICES),
    "crash that used up the budget": lambda: crash_of_another_process(budget=Budget(large_tokens=12)),
    "database away behind a large call": lambda: database_away(budget=Budget(large_tokens=30)),
    "two branches of a checkpoint": branches,
    "resumed from SQLite": resumed_from_sqlite,
    # Threads, settings of a call
    "three questions of a thread": lambda: play(
        "And 3 + 3?", ("And 4 + 4?", {"context": TrimContext(max_steps=1)})
    ),
    "a question for the scorer": lambda: play(
        question={"messages": [("system", "Be brief."), ("user", QUESTION)], "question": "2 + 2"}
    ),
    "context": lambda: play(
        drives={
            "context": TrimContext(
                threshold=0.05,
                max_steps=3,
                max_step_tokens=9,
                seed=3,
                budget=Budget(large_calls=2),
                **GOES_ON,
            )
        }
    ),
    "context with a policy": lambda: play(
        drives={"context": {"trim": {"policy": {"type": "random_rate", "rate": 0.5}, "seed": 2}}}
    ),
    "no instruction": lambda: play(instruction=None, thinking=None),
    # Texts
    "thinking": lambda: play(
        small=exactly(THOUGHT, BETTER_THOUGHT, name="tiny"),
        large=exactly(BETTER_THOUGHT, THOUGHT, name="huge"),
        scores={"Maybe \\boxed{3}?": 0.1},
    ),
    "thinking, answer routed": lambda: play(
        small=exactly(THOUGHT),
        large=exactly(THOUGHT),
        scores={"\n\nTwo and two:": 0.1, "Maybe \\boxed{3}?": 0.1},
        thinking={"routed": "answer"},
    ),
    "thinking, opened by the template": lambda: play(
        small=exactly(THOUGHT.removeprefix("<think>\n"), kind=OpenedReasoning), scores={}
    ),
    "segmentation markdown": lambda: play(
        small=exactly(MARKDOWN), scores={}, policy=small_only(), segmentation=markdown()
    ),
    "segmentation pattern": lambda: play(
        small=ScriptedChatModel(script=SMALL, delimiter="\n"),
        large=ScriptedChatModel(script=LARGE, delimiter="\n"),
        segmentation=pattern(r"\n(?=[sLS])"),
    ),
    "segmentation token cap": lambda: play(scores={" two\n\nsmall": 0.1}, segmentation=token_cap(2)),
    "another delimiter": lambda: play(
        small=ScriptedChatModel(script=SMALL, delimiter="\n"),
        large=ScriptedChatModel(script=LARGE, delimiter="\n"),
        delimiter="\n",
    ),
    "models asked by prompt": lambda: play(
        small=PromptedModel(
            answers=[
                "Sure:\n[[STEP]]\nsmall one",
                "[[STEP]]\nsmall two\n\nand more than was asked for",
                "[[STEP]]\nLARGE two\n\nsmall three",
                "so \\boxed{4}\n[[DONE]]",
            ]
        ),
        large=PromptedModel(answers=["[[STEP]]\nLARGE two"], name="hosted large"),
        prices=PRICES,
    ),
    "usage that is counted": lambda: play(small=Unreported(script=SMALL, name="tiny")),
    "usage that nobody reports, under a limit": lambda: play(
        large=Unreported(script=LARGE), budget=Budget(large_tokens=20), policy=always
    ),
    # In others' graphs
    "embedded": embedded,
    "embedded by a wrapper": embedded_by_a_wrapper,
    "chat model": chat_model,
    # Agents
    "agent": lambda: agent("And again?"),
    "agent, async": lambda: agent(drives={"asynchronously": True}),
    "agent, handover": lambda: agent(policy=hands_over, small=talk(3, "small"), large=talk(3, "large")),
    "agent, large only": lambda: agent(policy=large_only(), scorer=None),
    "agent, max_steps": lambda: agent(small=talk(5, "small"), scores={}, max_steps=2),
    "agent, budget stops": lambda: agent(
        small=talk(5, "small"),
        large=talk(5, "large"),
        policy=always,
        budget=Budget(large_calls=2, on_exhausted="stop"),
    ),
    "agent, large turn cut off": lambda: agent(budget=Budget(large_tokens=3, min_tokens=2)),
    "agent, budget of the thread": lambda: agent(
        "And again?", policy=always, budget=Budget(large_calls=3), budget_per="thread"
    ),
    "agent, prices": lambda: agent(prices=PRICES, budget=Budget(large_cost=1.0)),
    "agent, deadline": lambda: agent(budget=Budget(seconds=0)),
    "agent, on_small_error large": lambda: agent(
        small=FailingToolModel(script=AGENT_SMALL, fails_at=(0,)), on_small_error="large"
    ),
    "agent, on_large_error accept": lambda: agent(
        large=FailingToolModel(script=AGENT_LARGE, fails_at=(0,)), on_large_error="accept"
    ),
    "agent, on_large_error raise": lambda: agent(large=FailingToolModel(script=AGENT_LARGE, fails_at=(0,))),
    "agent, on_scorer_error regenerate": lambda: agent(
        scorer=FailingScorer((0,)), on_scorer_error="regenerate"
    ),
    "agent, on_scorer_error accept": lambda: agent(scorer=FailingScorer((0,)), on_scorer_error="accept"),
    "agent, both failed": lambda: agent(
        small=FailingToolModel(script=AGENT_SMALL, fails_at=range(9)),
        large=FailingToolModel(script=AGENT_LARGE, fails_at=range(9)),
        **GOES_ON,
    ),
    "agent, models with fallbacks": lambda: agent(
        small=FailingToolModel(script=AGENT_SMALL, fails_at=(0,)).with_fallbacks(
            [ScriptedToolModel(script=AGENT_SMALL, name="tiny's fallback")]
        ),
        large=FailingToolModel(script=AGENT_LARGE, fails_at=(0,)).with_fallbacks(
            [ScriptedToolModel(script=AGENT_LARGE, name="huge's fallback")]
        ),
    ),
    "agent, structured ending": lambda: agent(
        small=[calling("Product", value=252, by="small-0")],
        large=[calling("Product", value=144, by="large-0")],
        scores={'[tool_call] Product {"value": 252}': 0.1},
        response_format=ToolStrategy(PRODUCT),
    ),
    "agent, human approves a call": lambda: agent(
        {"decisions": [{"type": "approve"}]},
        before=[HumanInTheLoopMiddleware(interrupt_on={"multiply": True})],
    ),
    "agent, ended by another middleware": lambda: agent(
        small=talk(5, "small"), scores={}, before=[ModelCallLimitMiddleware(run_limit=2)]
    ),
    "agent, discarded turns not kept": lambda: agent(keep_discarded=False),
    "agent, ledger": lambda: with_ledger(
        "And again?",
        plays=agent,
        policy=always,
        quotas={"thread": {"large_tokens": 40}, "user": {"large_calls": 3}},
    ),
    "agent, ledger exhausted by other runs": lambda: with_ledger(used=60, plays=agent),
    "agent, crash of another process": agent_crash_of_another_process,
    "agent, database away behind a large call": agent_database_away,
    "agent, context": lambda: agent(
        drives={"updates": True, "context": {"trim": {"threshold": 0.05, "max_steps": 9, "seed": 4}}}
    ),
}


ONE_WAY = frozenset({"deadline cuts a call", "lookahead, not async", "chat model", "resumed from SQLite"})
"""Scenarios that cannot be the same on an event loop. All others have one record for both ways."""
FASTER = frozenset({"lookahead, unaccounted"})
"""Scenarios in which a call ends, or is cut off, in the time that LangGraph takes between two nodes."""


def record(wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Plays the scenarios that are wanted by their names, and returns their records."""
    return {name: record_of(name) for name in SCENARIOS if wanted(name)}


def record_async(wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Plays them asynchronously."""
    usual_settings()
    before = ASYNCHRONOUSLY.set(True)
    try:
        return record(wanted)
    finally:
        ASYNCHRONOUSLY.reset(before)


def record_driven(wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Plays by `trim_graph.driver` those that need nothing of LangGraph's loop."""
    usual_settings()
    before, played = DRIVEN.set(True), {}
    try:
        for name in SCENARIOS:
            if wanted(name):
                with suppress(NotDriven):
                    played[name] = record_of(name)
    finally:
        DRIVEN.reset(before)
    return played


def record_of(name: str) -> dict[str, Any]:
    """Plays a scenario; leaves out what its record repeats, and settings equal to the first scenario's."""
    played: dict[str, Any] = encode(SCENARIOS[name]())
    state = played.get("state", {})
    for key in ("run", "trim_run"):
        if name != FIRST and key in state:
            usual, settings = usual_settings(), state[key]["settings"]
            state[key]["settings"] = {n: v for n, v in settings.items() if n not in usual or usual[n] != v}
    if summary := state.get("trim"):
        repeating = [event for invocation in played["invocations"] for event in invocation["events"]]
        repeating += [message.get("response_metadata", {}) for message in state["messages"]]
        for one in repeating:
            for key in ("summary", "trim"):
                if one.get(key) == summary:
                    one[key] = "= state.trim"
        if summary["usage"] == state.get("usage"):
            state["trim"] = {**summary, "usage": "= state.spend"}
    return played


@cache
def usual_settings() -> dict[str, Any]:
    settings: dict[str, Any] = record_of(FIRST)["state"]["run"]["settings"]
    return settings
