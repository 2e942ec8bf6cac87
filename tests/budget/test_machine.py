"""The hard budget at the boundary of the graph, against what models really generated, whatever goes wrong.

`TRIM_BUDGET_EXAMPLES` raises the number of examples.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

from faulty_models import (
    FOREIGN_KINDS,
    KINDS,
    LINE,
    BilledServer,
    ForeignModel,
    Line,
    Plan,
    count_words,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph import Budget, ModelPrice, Prices, Quotas, TrimContext, create_trim_graph, open_ledger
from trim_graph.adapters import ChatVLLM
from trim_graph.adapters.vllm import client
from trim_graph.errors import ChatModelContractError, InputError, ModelServerError
from trim_graph.policies import Policy, large_only
from trim_graph.testing import ScriptedChatModel

STEP = 20
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
EXPECTED = (OSError, ModelServerError, ChatModelContractError, InputError, asyncio.CancelledError)
"""What an invocation may end by: the database or a model is away, or lacks what a budget needs."""
USD = 1e6
"""A price of one for each token."""
_names = itertools.count()


class Always(Policy):
    needs_score = False

    def __init__(self, decision: str) -> None:
        self.decision = decision

    def decide(self, observation: Any) -> Any:
        return self.decision


class Flaky(InMemorySaver):
    """A database that is away for one write, so many writes ahead."""

    def __init__(self) -> None:
        super().__init__()
        # In one place for the copy, too, that LangGraph makes of a saver for its strict reader.
        self._now = {"fails_in": 0}

    @property
    def fails_in(self) -> int:
        return self._now["fails_in"]

    @fails_in.setter
    def fails_in(self, writes: int) -> None:
        self._now["fails_in"] = writes

    def _write(self) -> None:
        self.fails_in -= 1
        if self.fails_in == 0:
            raise OSError("the database is away")

    def put(self, *arguments: Any, **options: Any) -> Any:
        self._write()
        return super().put(*arguments, **options)

    def put_writes(self, *arguments: Any, **options: Any) -> Any:
        self._write()
        return super().put_writes(*arguments, **options)


def limits(most: int) -> st.SearchStrategy[dict[str, Any]]:
    """None or one limit; a remainder too, of which nothing is left or less than is worth a call."""
    some, ample = st.integers(0, 12), st.integers(13, most)
    return st.one_of(
        st.just({}),
        st.fixed_dictionaries({"large_tokens": ample}),
        st.fixed_dictionaries({"large_tokens": some}),
        st.fixed_dictionaries({"large_calls": some}),
        st.fixed_dictionaries({"large_cost": st.integers(100, 12 * most).map(float)}),
        st.fixed_dictionaries({"large_cost": st.integers(100, 12 * most).map(float)}),
    )


budgets = st.builds(
    lambda limit, **rest: Budget(**limit, **rest),
    limits(150),
    min_tokens=st.sampled_from([1, 2, 8]),
    on_exhausted=st.sampled_from(["small", "stop"]),
    seconds=st.sampled_from([None, None, 1000.0]),
)
prices = st.sampled_from(
    [
        ModelPrice(output=USD),
        ModelPrice(input=USD, output=3 * USD),
        ModelPrice(input=USD, output=USD, cached_input=USD / 10),
    ]
)


def plans(kinds: Sequence[str]) -> st.SearchStrategy[list[Plan]]:
    # An answer that uses all of its tokens leaves no room in which a charge for another one is hidden.
    one = st.builds(Plan, st.sampled_from(kinds), st.sampled_from([10, 10, 5, 1]), st.booleans())
    return st.lists(one, min_size=2, max_size=8)


class BudgetMachine(RuleBasedStateMachine):
    """Questions, errors, outages and branches in any order; what each `Line` has made is held to its bill."""

    def __init__(self) -> None:
        super().__init__()
        self.resources = ExitStack()
        self.lines: list[Line] = []
        self.open: list[Line] = []
        """Not finished."""
        self.threads = itertools.count()

    # The large model of a machine

    def vllm(self, data: st.DataObject) -> Any:
        reports, keeps = data.draw(
            st.sampled_from([(True, True), (True, False), (False, True), (False, False)])
        )
        server = BilledServer(reports_stop=reports, keeps_stop=keeps)
        self.resources.enter_context(mock.patch.object(client, "_backoff", return_value=0.0))
        self.resources.enter_context(mock.patch.object(client, "new_client", server.client))
        return ChatVLLM(model="m", base_url=f"http://budget{next(_names)}.test", max_retries=2)

    @initialize(data=st.data(), budget=budgets, price=prices, foreign=st.booleans())
    def build(self, data: st.DataObject, budget: Budget, price: ModelPrice, foreign: bool) -> None:
        self.budget, self.price, self.foreign = budget, price, foreign
        self.durability = data.draw(st.sampled_from(["sync", "sync", "async"]))
        # A few in one machine: what is rare among all of them meets itself and its neighbours.
        kinds = st.sampled_from(FOREIGN_KINDS if foreign else KINDS)
        self.kinds = data.draw(st.lists(kinds, min_size=1, max_size=4, unique=True))
        self.saver = Flaky()
        allowed = {"user": data.draw(limits(1000)), "thread": data.draw(limits(400))}
        self.quotas = {kind: limit for kind, limit in allowed.items() if limit}
        spec = "memory"
        if data.draw(st.sampled_from([False, False, True])):
            spec = f"sqlite:{self.resources.enter_context(tempfile.TemporaryDirectory())}/spend.db"
        self.ledger = self.resources.enter_context(open_ledger(spec))
        self.countable = data.draw(st.booleans())
        self.graph = create_trim_graph(
            ScriptedChatModel(script=["s one", "s two", "s three", "s \\boxed{4}"]),
            ForeignModel(script=[]) if foreign else self.vllm(data),
            policy=data.draw(st.sampled_from([Always("regenerate"), Always("handover"), large_only()])),
            budget=budget,
            prices=Prices(large=price),
            quotas=Quotas.model_validate(self.quotas),
            ledger=self.ledger,
            checkpointer=self.saver,
            max_steps=3,
            max_step_tokens=STEP,
            on_large_error=data.draw(st.sampled_from(["accept", "raise"])),
            **({"count_tokens": count_words} if foreign and self.countable else {}),
        )

    def teardown(self) -> None:
        try:
            self.saver.fails_in = 0
            for line in list(self.open):
                line.plans.clear()
                for _ in range(10):
                    self._resume(line, asynchronously=False)
        finally:
            self.resources.close()

    # What happens

    @rule(
        data=st.data(),
        asynchronously=st.booleans(),
        image=st.booleans(),
        before=st.sampled_from([None, None, "generate_step", "route"]),
        outage=st.just(0) | st.integers(1, 25),
        again=st.booleans(),
    )
    def ask(
        self,
        data: st.DataObject,
        asynchronously: bool,
        image: bool,
        before: str | None,
        outage: int,
        again: bool,
    ) -> None:
        free = sorted({line.thread for line in self.lines} - {line.thread for line in self.open})
        thread = data.draw(st.sampled_from(free)) if again and free else str(next(self.threads))
        self.saver.fails_in = outage
        self._ask(self._line(data, thread, image), image, before, asynchronously)

    def _line(self, data: st.DataObject, thread: str, image: bool) -> Line:
        image = image and self.foreign
        image |= any(line.image for line in self.lines if line.thread == thread)
        return Line(thread, deque(data.draw(plans(self.kinds))), image=image)

    def _ask(self, line: Line, image: bool, before: str | None, asynchronously: bool) -> None:
        question = [{"type": "text", "text": "what?"}, IMAGE] if image and self.foreign else "what?"
        known = self._run_id(line)
        self.lines.append(line)
        self._invoke(line, {"messages": [HumanMessage(question)]}, before, asynchronously)
        if self._run_id(line) == known:
            # Nothing of it was stored, so nobody can resume it.
            assert not line.made or self.durability == "async"
        else:
            self.open.append(line)
            self._look(line)

    @rule(
        data=st.data(),
        asynchronously=st.booleans(),
        before=st.sampled_from([None, None, "generate_step"]),
        outage=st.just(0) | st.integers(1, 15),
    )
    def resume(self, data: st.DataObject, asynchronously: bool, before: str | None, outage: int) -> None:
        if not self.open:
            return
        line = data.draw(st.sampled_from(self.open))
        line.plans = deque(data.draw(plans(self.kinds)))
        self.saver.fails_in = outage
        self._resume(line, before, asynchronously=asynchronously)

    def _resume(self, line: Line, before: str | None = None, *, asynchronously: bool) -> None:
        if line in self.open:
            self._invoke(line, None, before, asynchronously)
            self._look(line)

    @rule(
        data=st.data(),
        number=st.integers(2, 3),
        steps=st.integers(1, 3),
        image=st.booleans(),
        asynchronously=st.booleans(),
    )
    def branch(self, data: st.DataObject, number: int, steps: int, image: bool, asynchronously: bool) -> None:
        """Several invocations resume from one checkpoint at once; each is a run of its own from there on."""
        parent = self._line(data, str(next(self.threads)), image)
        self.saver.fails_in = 0
        self._ask(parent, image, "generate_step", asynchronously)
        for _ in range(steps):
            self._resume(parent, "generate_step", asynchronously=asynchronously)
        if parent not in self.open or not parent.interrupted:
            return
        self.open.remove(parent)
        at, before = self._state(parent).config, len(parent.made)
        branches = [self._line(data, parent.thread, image) for _ in range(number)]
        for line in branches:
            line.made, line.inherited = list(parent.made), before
        if asynchronously:

            async def together() -> None:
                await asyncio.gather(*(self._arun(line, None, at, None) for line in branches))

            asyncio.run(together())
        else:
            threads = [threading.Thread(target=self._run, args=(line, None, at, None)) for line in branches]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        self.lines += branches
        for line in branches:
            if line.result is not None:
                self._check(line, line.result["trim"])

    # Invocations

    def _run_id(self, line: Line) -> str | None:
        return self._state(line).values.get("run", {}).get("id")

    def _state(self, line: Line) -> Any:
        return self.graph.get_state({"configurable": {"thread_id": line.thread}})

    def _invoke(self, line: Line, given: Any, before: str | None, asynchronously: bool) -> None:
        at = {"configurable": {"thread_id": line.thread}}
        if asynchronously:
            asyncio.run(self._arun(line, given, at, before))
        else:
            self._run(line, given, at, before)

    def _options(self, before: str | None) -> dict[str, Any]:
        options: dict[str, Any] = {"context": TrimContext(user="ada"), "durability": self.durability}
        return options | ({"interrupt_before": [before]} if before else {})

    def _run(self, line: Line, given: Any, at: Any, before: str | None) -> None:
        token, line.task, line.result = LINE.set(line), None, None
        try:
            self._ended(line, self.graph.invoke(given, at, **self._options(before)))
        except EXPECTED:
            line.interrupted = False
        finally:
            LINE.reset(token)

    async def _arun(self, line: Line, given: Any, at: Any, before: str | None) -> None:
        async def invocation() -> None:
            LINE.set(line)
            line.task, line.result = asyncio.current_task(), None
            self._ended(line, await self.graph.ainvoke(given, at, **self._options(before)))

        try:
            await asyncio.create_task(invocation())
        except EXPECTED:
            line.interrupted = False
        finally:
            line.task = None

    def _ended(self, line: Line, result: Any) -> None:
        line.interrupted = "trim" not in result or not result["trim"]
        line.result = None if line.interrupted else result

    # What must be true

    def _look(self, line: Line) -> None:
        state = self._state(line)
        self._check_limits(line)
        if state.values.get("trim") and not state.next:
            self.open.remove(line)
            self._check(line, state.values["trim"])
            own = state.values["trim"]["usage"]
            counted = own["large"]["output_tokens"] + own["unaccounted_tokens"]
            most = sum(max(one.most, one.written) for one in line.made)
            assert counted <= most, f"charged twice: {line.made}"

    def _check_limits(self, line: Line) -> None:
        written = sum(one.written for one in line.made)
        cost = sum(one.cost(self.price) for one in line.made)
        most = max((one.too_many for one in line.made), default=0)
        if self.budget.large_tokens is not None:
            assert written <= self.budget.large_tokens + most
        if self.budget.large_cost is not None:
            assert cost <= self.budget.large_cost + self.price.cost(0, most) + 1e-6

    def _check(self, line: Line, summary: dict[str, Any]) -> None:
        spend = summary["usage"]
        self._check_limits(line)
        written = sum(one.written for one in line.made)
        counted = spend["large"]["output_tokens"] + spend["unaccounted_tokens"]
        assert counted >= written, f"less on the bill than was generated: {line.made}"
        assert spend["overshoot_tokens"] == sum(one.too_many for one in line.made), line.made
        if not line.image:
            assert summary["cost"] >= sum(one.cost(self.price) for one in line.made) - 1e-6
        if spend["unaccounted_tokens"]:
            assert any("charged" in note for note in summary["notes"]), summary["notes"]
        if self.budget.large_calls is not None:
            assert spend["large"]["calls"] <= self.budget.large_calls

    @invariant()
    def accounts_hold(self) -> None:
        if not hasattr(self, "quotas"):
            return
        made: dict[str, list[Any]] = {}
        for line in self.lines:
            own = line.made[line.inherited :]
            for account in ("user:ada", f"thread:{line.thread}"):
                made.setdefault(account, []).extend(own)
        for account, all_of_it in made.items():
            allowed = self.quotas.get(account.split(":")[0])
            if allowed is None:
                continue
            written = sum(one.written for one in all_of_it)
            cost = sum(one.cost(self.price) for one in all_of_it)
            used = self.ledger.used(account)
            assert used.large_tokens >= written
            assert used.large_cost >= cost - 1e-6 or any(line.image for line in self.lines)
            too_many = sum(one.too_many for one in all_of_it)
            if "large_tokens" in allowed:
                assert written <= allowed["large_tokens"] + too_many
            if "large_cost" in allowed:
                assert cost <= allowed["large_cost"] + self.price.cost(0, too_many) + 1e-6
            if "large_calls" in allowed:
                assert used.large_calls <= allowed["large_calls"]
            assert not self.ledger.reservations(account), "set aside by nobody"


BudgetMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("TRIM_BUDGET_EXAMPLES", "150")),
    stateful_step_count=8,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestBudget = BudgetMachine.TestCase
