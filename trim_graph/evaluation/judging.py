"""The judge of the baseline that accepts drafts by a digit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trim_graph.budget import Prices
from trim_graph.config import Parts, TrimConfig
from trim_graph.config_schema import LLMJudgeScorer
from trim_graph.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Judge:
    """A chat model that rates steps, in place of the scorer.

    Attributes:
        name: What it is, as a configuration names it.
        config: Of a judge that is a model of its own.
        writer: ``small`` or ``large``, where it is that model.
    """

    name: dict[str, Any]
    config: LLMJudgeScorer | None = None
    writer: str | None = None

    def build(self, parts: Parts) -> Any:
        """Make it; it remembers nothing yet."""
        if self.config is not None:
            return self.config.build()
        from trim_graph.adapters import LLMJudge

        # The digit that is written, as published, not the expected one.
        return LLMJudge(getattr(parts, str(self.writer)), top_logprobs=0)

    def prices(self, prices: Prices) -> Prices | None:
        """Return the price table where it scores; None: the usual one."""
        if self.writer is None:
            return None
        return prices.model_copy(update={"scorer": getattr(prices, self.writer)})


def judge_of(given: str | None, config: TrimConfig) -> Judge | None:
    """Return the judge that is given, or the configuration's scorer where that is one.

    Args:
        given: ``large``, ``small``, or a scorer of type ``llm_judge`` as a configuration names it.
        config: The configuration.

    Raises:
        SettingsError: It is none of these.
    """
    if given is None:
        scorer = config.scorer
        if isinstance(scorer, LLMJudgeScorer):
            return Judge(scorer.model_dump(mode="json"), config=scorer)
        return None
    if given in ("small", "large"):
        return Judge({"type": "llm_judge", "model": given}, writer=given)
    import yaml

    try:
        judge = LLMJudgeScorer.model_validate(yaml.safe_load(given))
    except (yaml.YAMLError, ValidationError) as error:
        raise SettingsError(
            f"--judge {given}: give large, small, or {{type: llm_judge, model: {{...}}}}"
        ) from error
    return Judge(judge.model_dump(mode="json"), config=judge)
