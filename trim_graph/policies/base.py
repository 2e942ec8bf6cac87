"""Policies: their observations, their answers, and how they are combined."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal

from trim_graph.budget import RemainingBudget, StepWriter
from trim_graph.errors import SettingsError
from trim_graph.segmentation import Part

Decision = Literal["accept", "regenerate", "handover"]
"""Keep the draft, let the large model write this step again, or let it write all that remains."""

NextWriter = Literal["small", "large", "large_to_end", "probe"]
"""Who writes the next step; ``large_to_end``: the large model writes all that remains; ``probe``: ask again
once the entropy of the small model's first token is known (`Observation.probe_entropy`)."""

DECISIONS: tuple[Decision, ...] = ("accept", "regenerate", "handover")
NEXT_WRITERS: tuple[NextWriter, ...] = ("small", "large", "large_to_end", "probe")
WRITERS = NEXT_WRITERS[:3]
"""Answers that name a writer, the cheapest first."""


@dataclass(frozen=True, slots=True)
class Observation:
    """All that a policy may base an answer on.

    Attributes:
        question: What the scorer takes for the question.
        index: The step in question, from 0; equal to the number of accepted steps.
        max_steps: Most steps a solution may have.
        scores: One entry per accepted step; None where a step was never scored.
        tokens: Tokens of each accepted step.
        writers: Who wrote each accepted step.
        score: The draft's score in [0, 1]; None before a draft exists or where none was asked for.
        draft: The draft's text; None before it exists.
        draft_tokens: Its tokens.
        draft_probability: Mean probability of its tokens under the small model, if the adapter reports it.
        draft_ends: Whether the solution ends with the draft.
        part: ``reasoning`` or ``answer``, the part the draft belongs to, where the model thinks.
        probe_entropy: Entropy in nats of the small model's first token of this step, once `next_writer` has
            answered ``probe``; a lower bound where its server reports the likeliest tokens only.
        budget_left: What is left of the budget.
        memory: What the policy returned last, JSON-native; None at the start of a run.
        seed: Derives from (seed, run, step, question asked): the same on a second execution.
    """

    question: str
    index: int
    max_steps: int
    scores: tuple[float | None, ...] = ()
    tokens: tuple[int, ...] = ()
    writers: tuple[StepWriter, ...] = ()
    score: float | None = None
    draft: str | None = None
    draft_tokens: int = 0
    draft_probability: float | None = None
    draft_ends: bool = False
    part: Part | None = None
    probe_entropy: float | None = None
    budget_left: RemainingBudget = field(default_factory=RemainingBudget)
    memory: Any = None
    seed: str = "0"

    def random(self) -> random.Random:
        """Returns a generator that gives the same numbers when this decision is taken again."""
        return random.Random(self.seed)


@dataclass(frozen=True, slots=True)
class Choice:
    """An answer together with what to remember.

    Attributes:
        value: A `Decision` or a `NextWriter`.
        memory: Replaces the policy's memory; must be JSON-native.
    """

    value: str
    memory: Any = None


class Policy:
    """Base of policies: small pure objects that answer two questions.

    A subclass overrides one method or both. Whatever must be remembered goes into `Choice.memory`; an
    instance never changes, so one may serve any number of runs at once.

    Attributes:
        needs_score: Whether `decide` looks at scores; if not, the scorer is never called.
        decides: Whether `decide` can say anything but accept.
    """

    needs_score: bool = True
    decides: bool = True

    @property
    def small_follows(self) -> bool:
        """Whether the small model writes the step after an accepted draft, so that it may write ahead.

        True of a policy that does not override `next_writer`; one that does says so itself. It is no promise:
        a step written ahead for nothing is thrown away.
        """
        return type(self).next_writer is Policy.next_writer

    def next_writer(self, observation: Observation) -> str | Choice:
        """Names who writes the next step, before a draft exists.

        After ``probe`` the question is asked again with `Observation.probe_entropy`. A memory that comes
        with ``probe`` is dropped, and a second ``probe`` for the same step is an error.
        """
        return "small"

    def decide(self, observation: Observation) -> str | Choice:
        """Decides on the small model's draft."""
        return "accept"

    def evidence(self, observation: Observation) -> str:
        """Returns the numbers that an answer depends on, for the explanation of a step; empty without any.

        Default: the draft's score, and the entropy of a probe.
        """
        seen = []
        if observation.score is not None:
            seen.append(f"score {observation.score:.3g}")
        if observation.probe_entropy is not None:
            seen.append(f"entropy {observation.probe_entropy:.3g} nats")
        return ", ".join(seen)

    def __repr__(self) -> str:
        """Returns the name by which explanations and errors call a policy, the same in every process."""
        return type(self).__name__

    def __or__(self, other: AnyPolicy) -> Policy:
        """Returns a policy that regenerates where either policy says so."""
        return AnyOf(self, as_policy(other))

    def __and__(self, other: AnyPolicy) -> Policy:
        """Returns a policy that regenerates where both policies say so."""
        return AllOf(self, as_policy(other))


class FunctionPolicy(Policy):
    """A plain function ``f(observation)`` as a policy; it is asked `decide` and needs scores."""

    def __init__(self, function: Callable[[Observation], str | Choice]) -> None:
        self.function = function

    def decide(self, observation: Observation) -> str | Choice:
        """Asks the function."""
        return self.function(observation)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class _Combined(Policy):
    sign = ""

    def __init__(self, left: Policy, right: Policy) -> None:
        self.left, self.right = left, right
        self.needs_score = left.needs_score or right.needs_score
        self.decides = left.decides or right.decides

    @property
    def small_follows(self) -> bool:
        """Whether it does under both policies."""
        return self.left.small_follows and self.right.small_follows

    @staticmethod
    def _pick(ranks: tuple[int, int]) -> int:
        """Returns the rank that counts."""
        raise TypeError("a combination needs to say which of two answers counts")

    def _ask(self, question: str, observation: Observation, answers: tuple[str, ...]) -> list[Choice]:
        memory = observation.memory or [None, None]
        choices = []
        for side, policy, own in zip("lr", (self.left, self.right), memory, strict=True):
            # Draws of their own, or random_rate(0.5) & random_rate(0.5) would be the one draw.
            seen = replace(observation, memory=own, seed=f"{observation.seed}:{side}")
            choices.append(checked(getattr(policy, question)(seen), answers, policy, own))
        return choices

    def _joined(self, choices: list[Choice], answers: tuple[str, ...]) -> Choice:
        ranks = (answers.index(choices[0].value), answers.index(choices[1].value))
        return Choice(answers[self._pick(ranks)], [choice.memory for choice in choices])

    def next_writer(self, observation: Observation) -> Choice:
        """Asks both; a probe comes first, unless the other answer counts whatever the probe says."""
        choices = self._ask("next_writer", observation, NEXT_WRITERS)
        if all(choice.value != "probe" for choice in choices):
            return self._joined(choices, WRITERS)
        memory = observation.memory or [None, None]
        settled = WRITERS[self._pick((0, len(WRITERS) - 1))]
        if all(choice.value != settled for choice in choices):
            return Choice("probe", observation.memory)
        kept = [own if c.value == "probe" else c.memory for c, own in zip(choices, memory, strict=True)]
        return Choice(settled, kept)

    def decide(self, observation: Observation) -> Choice:
        """Asks both."""
        return self._joined(self._ask("decide", observation, DECISIONS), DECISIONS)

    def __repr__(self) -> str:
        return f"({self.left!r} {self.sign} {self.right!r})"


class AnyOf(_Combined):
    """The dearer of two answers counts (``left | right``)."""

    sign = "|"

    @staticmethod
    def _pick(ranks: tuple[int, int]) -> int:
        return max(ranks)


class AllOf(_Combined):
    """The cheaper of two answers counts (``left & right``)."""

    sign = "&"

    @staticmethod
    def _pick(ranks: tuple[int, int]) -> int:
        return min(ranks)


def in_range(value: Any, least: float, most: float) -> bool:
    """Returns whether a parameter is a number within bounds, both included."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) <= most


def with_memory(observation: Observation, memory: Any) -> Observation:
    """Returns the observation with another memory: each of several policies has its own."""
    return replace(observation, memory=memory)


AnyPolicy = Policy | Callable[[Observation], Any] | float | str | Mapping[str, Any]
"""Types that `as_policy` takes."""


def as_policy(policy: AnyPolicy) -> Policy:
    """Returns a policy as it is, a plain function wrapped, and one built from its form in a configuration.

    A function is asked about two sample observations: an answer that is no decision shows before a model is
    called. What it raises there is ignored.

    Args:
        policy: A policy; a function; a number, the threshold at it; ``small`` or ``large``, that model alone;
            a policy file; or a mapping such as ``{"type": "random_rate", "rate": 0.3}``. A relative path is
            relative to the working directory.

    Raises:
        SettingsError: It is none of these, or answers with something else than a decision.
    """
    if isinstance(policy, str | int | float | Mapping):
        from .parsing import build_policy  # slow to import

        return build_policy(policy)
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, type):
        raise SettingsError(
            f"policy is the class {policy.__name__}: pass an instance, {policy.__name__}(...)"
        )
    if inspect.iscoroutinefunction(policy):
        raise SettingsError(f"policy {policy.__name__} is an async function: pass a plain one")
    if not callable(policy):
        raise SettingsError(
            f"policy is {policy!r}: pass a policy such as threshold(0.5), a function of an Observation, or "
            "the form of one in a configuration, such as 0.5"
        )
    try:
        inspect.signature(policy).bind(None)
    except TypeError as error:
        raise SettingsError(
            f"policy {getattr(policy, '__name__', policy)!r} cannot be called with an Observation alone "
            f"({error}): give it one parameter"
        ) from None
    except ValueError:  # a function without a signature
        pass
    function = FunctionPolicy(policy)
    _check_decisions(function)
    return function


def _check_decisions(policy: FunctionPolicy) -> None:
    """Asks a function about a draft that scores 0 and one that scores 1.

    Raises:
        SettingsError: An answer is no decision.
    """
    draft = Observation("What is 1 + 1?", 0, 8, score=0.0, draft="1 + 1 = 2.", draft_tokens=8)
    for observation in (draft, replace(draft, score=1.0)):
        try:
            answer = policy.decide(observation)
        except Exception:  # it may need what the sample lacks; a run shows it
            continue
        checked(answer, DECISIONS, policy, None)


def checked(answer: Any, allowed: tuple[str, ...], policy: Policy, memory: Any) -> Choice:
    """Turns a policy's answer into a `Choice`, keeping the memory where the answer says nothing of it.

    Raises:
        SettingsError: The answer is none of ``allowed``, or the memory is not JSON-native.
    """
    choice = answer if isinstance(answer, Choice) else Choice(answer, memory)
    if choice.value not in allowed:
        meant = ""
        if isinstance(choice.value, bool) and allowed == DECISIONS:
            meant = ': return "regenerate" where the large model is to write the step again, else "accept"'
        elif choice.value is None:
            meant = ": return one on every path"
        raise SettingsError(
            f"policy {policy!r} answered {choice.value!r}; expected one of {', '.join(allowed)}{meant}"
        )
    try:
        if choice.memory is not None:
            json.dumps(choice.memory)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"policy {policy!r} wants to remember what JSON cannot hold: {error}") from error
    return choice
