"""The section ``shadow`` of a configuration: an application answers with one model, and routing runs beside.

    shadow: {answers: large, record: shadow.jsonl, rate: 0.1}

Without the section the same configuration routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BeforeValidator, model_validator

from trim_graph.budget import Quota
from trim_graph.errors import SettingsError
from trim_graph.policies import Policy, large_only, small_only
from trim_graph.settings import ShadowSettings

from .schema import placed_beside


class ShadowSection(ShadowSettings):
    """Options of `trim_graph.Shadow`.

    Attributes:
        answers: Model that answers alone.
        record: File of the records, ``.jsonl`` or ``.db``; relative to the configuration file.
        budget: Limits of all routed runs together.
        process: Whether `trim-graph serve` has the shadow compute in a process of its own
            (`trim_graph.shadow.ShadowProcess`), with models of its own.
    """

    answers: Literal["large", "small"]
    record: Annotated[Path, BeforeValidator(placed_beside)]
    budget: Quota | None = None
    process: bool = False

    @model_validator(mode="after")
    def _limited(self) -> ShadowSection:
        if self.run_rate and self.budget is None:
            raise ValueError(
                f"run_rate is {self.run_rate:g}, so the shadow calls the large model, and no budget limits "
                "it: add budget: {large_tokens: 100000}"
            )
        return self

    def options(self) -> dict[str, Any]:
        """Returns the keywords of `trim_graph.Shadow`."""
        names = {"budget": "shadow_budget"}
        given = (name for name in type(self).model_fields if name != "process")
        return {names.get(name, name): getattr(self, name) for name in given}


class AnswerWatcher(Protocol):
    """A shadow, as far as a graph needs it: `trim_graph.Shadow` is one."""

    @property
    def answers(self) -> Literal["large", "small"]:
        """Model that the application answers with."""
        ...

    def observe(self, messages: Sequence[BaseMessage], answer: AIMessage) -> None:
        """Takes the answer of a graph."""
        ...


def policy_beside(section: ShadowSection | None, shadow: AnswerWatcher | None) -> Policy | None:
    """Returns the policy by which a graph answers while a shadow routes beside it; None without one.

    Args:
        section: The section of the configuration.
        shadow: What was built of it.

    Raises:
        SettingsError: There is a section and no shadow, or they name two models.
    """
    if shadow is None:
        if section is not None:
            raise SettingsError(
                f"the section shadow has the {section.answers} model answer and routing run beside it: pass "
                "shadow=Shadow.from_config(config), or leave the section out to route"
            )
        return None
    if section is not None and section.answers != shadow.answers:
        raise SettingsError(
            f"shadow.answers is {section.answers}, and the shadow that was passed is of an application that "
            f"answers with the {shadow.answers} model: make it by Shadow.from_config(config)"
        )
    return large_only() if shadow.answers == "large" else small_only()
