"""Whether the parts of a configuration go together; most of it without asking a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trim_graph.config import Parts, TrimConfig, build_graph, for_measuring
from trim_graph.errors import SettingsError
from trim_graph.policies.parsing import Threshold
from trim_graph.segment import Segmentation, delimiter

from .findings import Finding, fault, hint, ok
from .subjects import Subject


def graph(config: TrimConfig, parts: Parts) -> Finding:
    """The graph can be built: policy, scorer, budget and prices fit."""
    policy = config.policy.build()
    if policy.needs_score and config.scorer is None:
        return fault(
            f"the policy {config.policy.type} decides by scores, and there is no scorer",
            "add a scorer, or choose a policy that needs none: small_only, large_only, random_rate",
        )
    try:
        build_graph(for_measuring(config), parts=parts)
    except SettingsError as error:
        return fault(str(error), "correct that key of the configuration")
    if config.scorer is not None and not policy.needs_score:
        return hint(
            f"the policy {config.policy.type} looks at no score, so the scorer is never asked",
            "leave out the scorer, or choose a policy such as threshold",
        )
    return ok("policy, scorer, budget and prices go together")


def two_models(config: TrimConfig) -> Finding:
    """Small and large are not the same."""
    small, large = config.small.model_dump(), config.large.model_dump()
    places = [{key: entry.get(key) for key in ("type", "model", "base_url")} for entry in (small, large)]
    if config.small.type != "example" and places[0] == places[1]:
        return hint("small and large are the same model, so large adds nothing", "name another one")
    return ok("small and large are two models")


def alike(replicas: list[Subject]) -> Finding:
    """The replicas of a part serve one model: a question may be moved from any to any other."""
    seen = [
        {"model": subject.served.get("root"), "max_model_len": subject.served.get("max_model_len")}
        for subject in replicas
    ]
    asked = [(s, told) for s, told in zip(replicas, seen, strict=True) if s.served]
    if len(asked) < len(replicas):
        return hint("cannot be told of all: not every replica serves the model")
    for subject, told in asked[1:]:
        for name, value in told.items():
            if value != seen[0][name]:
                return fault(
                    f"{subject.name} has {name} {value!r}, {replicas[0].name} {seen[0][name]!r}",
                    "start all replicas of a model with the same arguments",
                )
        if subject.known.get("tokens") != replicas[0].known.get("tokens"):
            return fault(
                f"{subject.name} has another tokenizer than {replicas[0].name}",
                "start all replicas of a model with the same weights",
            )
    return ok(f"all {len(replicas)} serve one model alike")


def shared_tokenizer(small: Subject, large: Subject) -> Finding:
    """Whether small and large have one tokenizer."""
    ours, theirs = small.known.get("tokens"), large.known.get("tokens")
    if ours is None or theirs is None:
        return hint("whether small and large have one tokenizer cannot be told; nothing here needs it")
    if ours == theirs:
        return ok("small and large have one tokenizer")
    return hint("small and large have different tokenizers; nothing here needs one, texts are exchanged")


def thresholds(config: TrimConfig, scorer: Subject) -> Finding | None:
    """The policy's thresholds lie among the scores that were seen; None without any."""
    found = list(_thresholds(config.policy))
    if not found or scorer.scores is None:
        return None
    right, wrong = scorer.scores
    low, high = min(*right, *wrong), max(*right, *wrong)
    seen = f"the scores seen lie between {low:.3f} and {high:.3f}"
    for t in found:
        if t > high:
            return hint(f"t={t:g} of threshold: {seen}, so every draft would be regenerated", "lower it")
        if t <= low:
            return hint(f"t={t:g} of threshold: {seen}, so even wrong drafts would be kept", "raise it")
    return ok(f"t={', '.join(f'{t:g}' for t in found)}: {seen}")


_STEPS = ("Step 1: 2 + 2 = 4.", "Step 2: 4 + 1 = 5.")
_ENDS = {"\n": "a line break", "\n\n": "a blank line"}
_TRAINED_ON = {
    "qwen": ("\n\n",),
    "math_shepherd": ("\n",),
    "skywork": ("\n",),
    "rlhflow": ("\n\n", "\n"),  # Deepseek-Data, Mistral-Data
}
"""By format, what ends a step in the solutions that its PRMs were trained on."""


def segmentation(config: TrimConfig) -> Finding | None:
    """Steps end where those end that the PRM was trained on; None without a PRM."""
    form = getattr(config.scorer, "format", None)
    if form is None:
        return None
    trained = " or ".join(_ENDS[end] for end in _TRAINED_ON[form])
    found = _step_end(config.settings.segmentation or delimiter(config.settings.delimiter))
    if found in _TRAINED_ON[form]:
        return ok(f"steps end at {_ENDS[found]}, as those that PRMs of the format {form} were trained on")
    ends = "at neither a line break nor a blank line" if found is None else f"at {_ENDS[found]}"
    return hint(
        f"steps end {ends}; those that PRMs of the format {form} were trained on end at {trained}, and of "
        "other steps the scores mean little",
        "set segmentation in settings to the PRM's own way to make steps, unless yours was trained on these",
    )


def _step_end(way: Segmentation) -> str | None:
    """The least that ends a step; None where neither a line break nor a blank line does."""
    cuts = (end for end in _ENDS if [step for step, _ in way.split(end.join(_STEPS))] == list(_STEPS))
    return next(cuts, None)


def _thresholds(policy: Any) -> Iterator[float]:
    if isinstance(policy, Threshold):
        yield policy.t
    for name in ("policy", "policies"):
        inner = getattr(policy, name, None) or ()
        for one in inner if isinstance(inner, list) else [inner] if inner else []:
            yield from _thresholds(one)
