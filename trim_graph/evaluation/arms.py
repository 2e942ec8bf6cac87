"""Arms and families of policies by name, a baseline's judge, and the identity of configuration and code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trim_graph.adapters.prm.scorer_file import SCORER_FILE
from trim_graph.budget import ModelPrice, Prices
from trim_graph.config import Parts, TrimConfig
from trim_graph.config.errors import explain_value
from trim_graph.config.schema import LLMJudgeScorer
from trim_graph.errors import SettingsError
from trim_graph.policies.files import is_policy_file
from trim_graph.policies.learned import LearnedPolicy
from trim_graph.policies.parsing import PolicyConfig
from trim_graph.process import __version__

from .records import ArmKind, ArmSettings, file_name

PolicyMapping = dict[str, Any]
"""A policy as a configuration names it."""

PLACEHOLDER = "?"
"""Placeholder of the number to be chosen in the policy of a `ParameterSweep`."""


_LOG_ODDS = 12.0
"""Bound of the log-odds that a search moves through; beyond it only 0 and 1 are tried."""
_SEQUENCE = 48
"""Steps of a `ParameterSweep.sequence`; half a log-odd each."""


@dataclass(frozen=True, slots=True)
class ParameterSweep:
    """A policy with a number from 0 to 1 to be chosen.

    Attributes:
        template: The policy, with `PLACEHOLDER` where the number belongs.
        scored: Whether the number is one that scores are compared with.
        rising: Whether a higher number spends more; if not, a lower one does.
        complete: Whether the number that spends most regenerates everything.
        log_odds: Whether a search moves the log-odds of the number: probabilities of a trained policy crowd
            at 0 and 1.
    """

    template: PolicyMapping
    scored: bool = True
    rising: bool = True
    complete: bool = True
    log_odds: bool = False

    def setting(self, position: float) -> float:
        """Returns the number at a position of a search.

        Args:
            position: In [0, 1]; the higher the more is spent.
        """
        if self.log_odds and 0 < position < 1:
            rising = 1 / (1 + math.exp(_LOG_ODDS * (1 - 2 * position)))
        else:
            rising = position
        return float(f"{rising if self.rising else 1 - rising:.6g}")

    def sequence(self) -> list[float]:
        """Returns numbers from the one that spends most to the one that spends least, whatever was measured.

        Scores and probabilities crowd at 0 and 1: numbers that are compared with them are even in their
        log-odds.
        """
        spread = replace(self, log_odds=self.log_odds or self.scored)
        return [spread.setting(1 - place / _SEQUENCE) for place in range(_SEQUENCE + 1)]

    def policy(self, setting: float | str) -> PolicyMapping:
        """Returns the policy with this number."""
        filled: PolicyMapping = _filled(self.template, setting)
        return filled


@dataclass(frozen=True, slots=True)
class PolicyList:
    """Policies by name.

    Attributes:
        policies: The name of each, and what a configuration calls it.
    """

    policies: dict[str, PolicyMapping]

    def policy(self, setting: float | str) -> PolicyMapping:
        """Returns the policy of that name."""
        return self.policies[str(setting)]


def _filled(value: Any, setting: float | str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner, setting) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, setting) for inner in value]
    return setting if value == PLACEHOLDER else value


FAMILIES: dict[str, ParameterSweep] = {
    "threshold": ParameterSweep({"type": "threshold", "t": PLACEHOLDER}),
    "random_rate": ParameterSweep({"type": "random_rate", "rate": PLACEHOLDER}, scored=False),
    "advantage": ParameterSweep(
        {"type": "advantage", "minimum": PLACEHOLDER}, scored=False, rising=False, complete=False
    ),
}
_POLICY: TypeAdapter[Any] = TypeAdapter(PolicyConfig)
_SEARCHED = {
    "threshold.t": True,
    "random_rate.rate": True,
    "file.threshold": False,
    "advantage.minimum": False,
}
"""Numbers in [0, 1] that a search can choose, and whether a higher one spends more."""


def make_family(given: Sequence[str], own: PolicyMapping) -> ParameterSweep | PolicyList:
    """Makes a family of what a command line names.

    Args:
        given: A name in `FAMILIES`; a YAML mapping of a policy with ``"?"`` in place of the number to be
            chosen; ``FILE.json:?`` for the threshold of a learned policy; or any number of policy files and
            folders of them. Nothing: the family of ``own``.
        own: The policy of the configuration.

    Raises:
        SettingsError: It is none of these, or a file holds no policy.
    """
    if not given:
        name = own["type"]
        if name == "file" and isinstance(policy_config(own).build(), LearnedPolicy):
            return learned_sweep(own["path"])
        if name not in FAMILIES:
            raise SettingsError(f"--family is missing: the policy {name} has no number to choose")
        # What else the policy has, such as a price, stays as it is.
        return replace(FAMILIES[name], template={**own, **FAMILIES[name].template})
    if len(given) == 1 and given[0] in FAMILIES:
        return FAMILIES[given[0]]
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        return _template(given[0])
    if len(given) == 1 and given[0].endswith(f".json:{PLACEHOLDER}"):
        return learned_sweep(given[0].removesuffix(f":{PLACEHOLDER}"))
    files = [file for name in given for file in _files(name)]
    policies = {str(file): {"type": "file", "path": str(file.absolute())} for file in files}
    for policy in policies.values():
        policy_config(policy).build()  # refused here if it is none
    return PolicyList(policies)


def learned_sweep(path: str) -> ParameterSweep:
    """Returns the thresholds of one learned policy, from a file.

    Raises:
        SettingsError: The file holds no learned policy.
    """
    template = {"type": "file", "path": str(Path(path).expanduser().absolute()), "threshold": PLACEHOLDER}
    sweep = ParameterSweep(template, scored=False, rising=False, log_odds=True)
    policy_config(sweep.policy(0.5)).build()
    return sweep


def policy_config(policy: PolicyMapping) -> Any:
    """Checks a policy that a configuration could name.

    Raises:
        SettingsError: It is not valid.
    """
    try:
        return _POLICY.validate_python(policy, context={"base": Path.cwd()})
    except ValidationError as error:
        wrong = explain_value(error, policy, _POLICY.json_schema(), f"policy {json.dumps(policy)}")
        raise SettingsError(wrong) from error


def _template(text: str) -> ParameterSweep:
    import yaml

    try:
        template = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"--family {text!r} is not YAML") from error
    if PLACEHOLDER not in json.dumps(template):
        raise SettingsError(f'--family {text}: put "{PLACEHOLDER}" in place of the number to be chosen')
    example = policy_config(ParameterSweep(template).policy(0.5)).build()
    swept = _swept_keys(template)
    if kinds := sorted(swept - _SEARCHED.keys()):
        raise SettingsError(
            f"--family {text}: a number is chosen of {', '.join(sorted(_SEARCHED))}, which lie in [0, 1]; "
            f"{', '.join(kinds)} does not. Give policy files instead"
        )
    directions = {_SEARCHED[key] for key in swept}
    if len(directions) > 1:
        raise SettingsError(
            f"--family {text}: of {', '.join(sorted(swept))} some spend more the higher they are and some "
            "less: leave one of them open"
        )
    scored = example.needs_score and "threshold.t" in swept
    complete = "advantage.minimum" not in swept
    log_odds = "file.threshold" in swept
    return ParameterSweep(
        _at_home(template), scored=scored, rising=directions.pop(), complete=complete, log_odds=log_odds
    )


def _at_home(policy: Any) -> Any:
    """Makes paths of policy files absolute: the configuration with the result may be in another folder."""
    if isinstance(policy, list):
        return [_at_home(part) for part in policy]
    if not isinstance(policy, dict):
        return policy
    inner = {key: _at_home(value) for key, value in policy.items()}
    if inner.get("type") == "file":
        inner["path"] = str(Path(inner["path"]).expanduser().absolute())
    return inner


def _swept_keys(policy: Any) -> set[str]:
    """Names the numbers that a template leaves open, as ``type.number``."""
    if isinstance(policy, list):
        return {found for part in policy for found in _swept_keys(part)}
    if not isinstance(policy, dict):
        return set()
    own = {f"{policy.get('type')}.{key}" for key, value in policy.items() if value == PLACEHOLDER}
    return own | {found for value in policy.values() for found in _swept_keys(value)}


def _files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        # Learning curves and metrics may be beside the policies.
        found = [file for file in sorted(path.glob("*.json")) if is_policy_file(file)]
        if not found:
            raise SettingsError(f"--family {name}: there is no policy file (*.json) in this folder")
        return found
    if path.suffix == ".json":
        return [path]
    raise SettingsError(
        f"--family {name}: choose {', '.join(FAMILIES)}, policy files or a folder of them, or a policy with "
        f'"{PLACEHOLDER}" for the number: {{type: stay_on_large, k: 2, '
        f'policy: {{type: threshold, t: "{PLACEHOLDER}"}}}}'
    )


SWEPT = {
    **FAMILIES,
    "entropy_probe": ParameterSweep({"type": "entropy_probe", "limit": PLACEHOLDER}, scored=False),
}
"""Families of policies that may be swept by name."""
RESERVED = ("small", "large")
LONGEST = 200
"""Bytes of an arm's name in the name of a file, which has 255 at most, endings included."""
_NAMED = re.compile(r"([\w.@+-]+)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm that is run through a graph.

    Attributes:
        name: In rows and tables.
        kind: See `trim_graph.evaluation.records.ArmKind`.
        family: Whose curve it is a point of.
        policy: As a configuration names it.
    """

    name: str
    kind: ArmKind
    family: str
    policy: PolicyMapping

    @property
    def settings(self) -> ArmSettings:
        """Settings of the arm, with policy files by their content."""
        return ArmSettings(kind=self.kind, family=self.family, policy=by_content(self.policy))


REFERENCES = (
    Arm("small", "reference", "small", {"type": "small_only"}),
    Arm("large", "reference", "large", {"type": "large_only"}),
)

RANDOM_RATES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Rates of random routing, the points of its curve between the models alone."""


def random_arms(rates: Sequence[float]) -> list[Arm]:
    """Returns the arms of random routing.

    Args:
        rates: The share of steps that each one regenerates, between 0 and 1.
    """
    return [Arm(f"random-{r:g}", "random", "random", {"type": "random_rate", "rate": r}) for r in rates]


def policy_arms(given: Sequence[str], own: PolicyMapping) -> list[Arm]:
    """Returns the arms of ``--policy``.

    Args:
        given: Each a policy as a configuration names it, ``small_only``, ``plan.json``, or
            ``{type: threshold, t: 0.3}``, perhaps with a name before it: ``mine={type: ...}``.
        own: What is taken where nothing is given.

    Raises:
        SettingsError: One is no policy.
    """
    if not given:
        return [Arm(arm_name(own), "policy", arm_name(own), own)]
    arms = []
    for text in given:
        named = _NAMED.fullmatch(text)
        name, policy = (named[1], named[2]) if named else (None, text)
        family, colon, numbers = policy.partition(":")
        if colon and family in SWEPT:
            raise SettingsError(
                f"--policy {policy} has the form of --sweep: give --sweep {policy}, or --policy "
                f"'{_flow(SWEPT[family].policy(numbers.partition(',')[0]))}'"
            )
        mapping = _parsed(policy)
        arm = name or arm_name(mapping)
        arms.append(Arm(arm, "policy", arm, mapping))
    return arms


def sweep_arms(given: Sequence[str]) -> list[Arm]:
    """Returns the arms of ``--sweep``.

    Args:
        given: Each a family and its numbers, ``threshold:0.1,0.3``; a policy with ``"?"`` in place of the
            number; a learned policy and thresholds, ``aggregate-0.02.json:0.1,0.3``; or a folder of policy
            files.

    Raises:
        SettingsError: One is none of these.
    """
    return [arm for text in given for arm in _swept(text)]


def _swept(text: str) -> Iterator[Arm]:
    if Path(text).is_dir():
        family = make_family([text], {})
        for name, policy in family.policies.items():  # type: ignore[union-attr]
            yield Arm(Path(name).stem, "sweep", Path(text).name, policy)
        return
    template, colon, numbers = text.rpartition(":")
    if not colon or not numbers.strip():
        raise SettingsError(
            f"--sweep {text}: give a family and its numbers, such as threshold:0.1,0.3,0.5; there are "
            f'{", ".join(SWEPT)}, a policy with "{PLACEHOLDER}" for the number, and folders of policy files'
        )
    if template in SWEPT:
        family, name = SWEPT[template], template
    elif template.lstrip().startswith("{"):
        family = ParameterSweep(_yaml(template))
        if PLACEHOLDER not in json.dumps(family.template):
            raise SettingsError(f'--sweep {text}: put "{PLACEHOLDER}" in place of the number in the policy')
        name = next(_words(family.template))
    elif template.endswith(".json"):
        family, name = learned_sweep(template), Path(template).stem
    else:
        raise SettingsError(
            f"--sweep {text}: there is no family {template!r}: choose {', '.join(SWEPT)}, or the file of a "
            "learned policy, FILE.json"
        )
    for number in numbers.split(","):
        try:
            value = float(number)
        except ValueError as error:
            raise SettingsError(f"--sweep {text}: {number!r} is no number") from error
        policy = _checked(family.policy(value))
        yield Arm(f"{name}-{value:g}", "sweep", name, policy)


def check_names(arms: Sequence[Arm]) -> None:
    """Refuses names of arms that are taken or that no file can have.

    Raises:
        SettingsError: Two have one name, or one has that of a model alone, or one that no file can have.
    """
    names = [arm.name for arm in arms]
    for name in names:
        if len(file_name(name)) > LONGEST:
            raise SettingsError(
                f"the arm {name[:40]}... has a name too long for a file: choose a shorter NAME={{type: ...}}"
            )
        if name in RESERVED:
            raise SettingsError(f"an arm named {name!r}: that is the model alone; name this one otherwise")
        if names.count(name) > 1:
            raise SettingsError(f"two arms are named {name!r}: name one of them NAME={{type: ...}}")


def arm_name(policy: PolicyMapping) -> str:
    """Names an arm by its policy: ``threshold-0.3``, the stem of a file; a digest where that is too long."""
    name = "-".join(_words(policy))
    if policy.get("type") == "file" or len(file_name(name)) <= LONGEST:
        return name
    return f"{policy['type']}-{hashlib.sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest()[:8]}"


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.get("type") == "file":
            yield Path(value["path"]).stem
            if value.get("threshold") is not None:
                yield f"{value['threshold']:g}"
            return
        yield str(value.get("type"))
        for key, inner in value.items():
            if key != "type":
                yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)
    else:
        yield re.sub(r"[^\w.+]+", "_", f"{value:g}" if isinstance(value, float) else str(value))


def _parsed(text: str) -> PolicyMapping:
    return _checked(_yaml(text))


def _flow(policy: PolicyMapping) -> str:
    return f"{{{', '.join(f'{key}: {value}' for key, value in policy.items())}}}"


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(
            f"{text!r} is neither the name of a policy nor a mapping such as {{type: threshold, t: 0.3}}"
        ) from error


def _checked(policy: Any) -> PolicyMapping:
    """Fills in what a configuration would.

    Raises:
        SettingsError: It is no policy, or its file is none.
    """
    config = policy_config(policy)
    config.build()
    mapping: PolicyMapping = config.model_dump()
    return mapping


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
        """Makes it; it remembers nothing yet."""
        if self.config is not None:
            return self.config.build()
        from trim_graph.adapters import LLMJudge

        # The digit that is written, as published, not the expected one.
        return LLMJudge(getattr(parts, str(self.writer)), top_logprobs=0)

    def prices(self, prices: Prices) -> Prices | None:
        """Returns the price table where it scores; None: the usual one."""
        if self.writer is None:
            return None
        return prices.model_copy(update={"scorer": getattr(prices, self.writer)})


def judge_of(given: str | None, config: TrimConfig) -> Judge | None:
    """Returns the judge that is given, or the configuration's scorer where that is one.

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


_INCIDENTAL = (
    "device",
    "max_batch_size",
    "batch_wait_factor",
    "max_requests",
    "max_connections",
    "read_timeout",
    "max_retries",
    "api_key_env",
)
"""Settings of models that change how fast an answer comes, not which."""
_OFF = {"warm_large": False, "max_tokens": None}
"""Settings that recordings of earlier releases lack."""
_PARTS = ("small", "large", "scorer", "policy", "budget", "settings")


def identity_of(config: TrimConfig) -> dict[str, Any]:
    """Returns models, policy, budget and settings, JSON-native; policy files by their content."""
    whole = config.model_dump(mode="json", include=set(_PARTS))
    for part in ("small", "large", "scorer"):
        if whole[part] is not None:
            whole[part] = {key: value for key, value in whole[part].items() if key not in _INCIDENTAL}
    whole["policy"] = by_content(whole["policy"])
    _add_scorer_files(whole["scorer"])
    for name, off in _OFF.items():  # then it changes nothing that is recorded
        if whole["settings"][name] == off:
            del whole["settings"][name]
    return whole


def _add_scorer_files(scorer: Any) -> None:
    """Adds to each trained scorer, at any depth, a digest of its `trim_scorer.json`."""
    if isinstance(scorer, list):
        for inner in scorer:
            _add_scorer_files(inner)
    if not isinstance(scorer, dict):
        return
    for inner in list(scorer.values()):
        _add_scorer_files(inner)
    place = scorer.get("tokenizer") or scorer.get("model")
    if isinstance(place, str) and (file := Path(place) / SCORER_FILE).is_file():
        scorer[SCORER_FILE] = hashlib.sha256(file.read_bytes()).hexdigest()


def price_identity(prices: Prices) -> dict[str, Any]:
    """Returns a price table, JSON-native; an absent price is as one of 0, since the recorded costs are."""
    return {model: (price or ModelPrice()).model_dump(mode="json") for model, price in prices}


def by_content(policy: Any) -> Any:
    """Replaces the path of a policy file, at any depth, by what is in the file; its threshold stays.

    Args:
        policy: As a configuration names it.
    """
    if isinstance(policy, list):
        return [by_content(inner) for inner in policy]
    if not isinstance(policy, dict):
        return policy
    if policy.get("type") == "file":
        # The JSON names the digest of the arrays beside it.
        content = Path(policy["path"]).read_bytes()
        kept = {key: value for key, value in policy.items() if key != "path"}
        return {**kept, "sha256": hashlib.sha256(content).hexdigest()}
    return {key: by_content(value) for key, value in policy.items()}


_NOT_SHIPPED = ("examples/arithmetic/study/", "examples/arithmetic/training/", "examples/site/")
"""Folders of the repository that no wheel holds, and that no evaluation runs."""


@cache
def code_identity() -> dict[str, str]:
    """Returns the version of trim-graph and a digest of its code, the same wherever it is installed."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    # In the repository, nodes, adapters and examples are links.
    walked = os.walk(folder, followlinks=True)
    files = {Path(at, name).relative_to(folder).as_posix() for at, _, names in walked for name in names}
    for name in sorted(name for name in files if name.endswith(".py") and not name.startswith(_NOT_SHIPPED)):
        digest.update(f"{name}\n".encode())
        digest.update((folder / name).read_bytes())
    return {"version": __version__, "sha256": digest.hexdigest()}
