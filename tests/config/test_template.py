"""New configuration files: each that `init` can write loads, and means what was chosen."""

from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from trim_graph.config import make_config
from trim_graph.config.json_schema import config_schema
from trim_graph.config.template import (
    Choices,
    ModelKind,
    ScorerKind,
    config_text,
    default_models,
    scorer_kinds,
)
from trim_graph.errors import SettingsError

PAIRS = [(models, scorer) for models in get_args(ModelKind) for scorer in scorer_kinds(models)]
TYPES = {"servers": "vllm", "hosted": "langchain", "local": "transformers", "example": "example"}
SCORERS = {"judge": "llm_judge", "token_probability": "token_probability", "cascade": "cascade"}
PRMS = {"servers": "vllm_prm", "local": "transformers_prm", "example": "example"}


def text(models, scorer, **named):
    names = dict(zip(("small", "large", "prm"), default_models(models), strict=True)) | named
    return config_text(Choices(models, scorer, **names), schema="trim.schema.json")


@pytest.mark.parametrize(("models", "scorer"), PAIRS)
def test_every_choice_loads_names_its_parts_and_fits_the_schema(models, scorer):
    written = text(models, scorer)
    assert written.startswith("# yaml-language-server: $schema=trim.schema.json\n")
    data = yaml.safe_load(written)
    config = make_config(data)
    assert config.small.type == config.large.type == TYPES[models]
    assert config.scorer.type == (PRMS[models] if scorer == "prm" else SCORERS[scorer])
    assert config.policy.build().needs_score
    assert config.budget.large_tokens
    Draft202012Validator(config_schema()).validate(data)


@pytest.mark.parametrize(("models", "scorer"), [("servers", "token_probability"), ("hosted", "cascade")])
def test_writers_report_the_probabilities_that_the_scorer_reads(models, scorer):
    config = make_config(yaml.safe_load(text(models, scorer)))
    for part in (config.small, config.large):
        assert getattr(part, "kwargs", {}).get("logprobs") or part.logprobs


def test_every_line_that_is_commented_out_loads_too():
    lines = text("servers", "prm").splitlines()
    shown = [
        line.replace("# ", "", 1) if ": " in line.partition("# ")[2].split("#")[0] else line for line in lines
    ]
    active = [new for old, new in zip(lines, shown, strict=True) if old != new and _is_setting(new)]
    assert [line.split(":")[0].strip() for line in active] == [
        "prices",
        "on_scorer_error",
        "ask_below",
        "checkpoint",
    ]
    config = make_config(
        yaml.safe_load(
            "\n".join(new if _is_setting(new) else old for old, new in zip(lines, shown, strict=True))
        )
    )
    assert (config.settings.ask_below, config.prices.large.output) == (0.1, 8)


def _is_setting(line):
    return line.split(":")[0].strip() in ("prices", "on_scorer_error", "ask_below", "checkpoint")


@given(st.text(min_size=1))
def test_a_name_of_any_characters_is_the_name_of_the_model(name):
    for models in ("servers", "hosted"):
        data = yaml.safe_load(text(models, "judge", small=name, large=name))
        assert data["small"]["model"] == data["large"]["model"] == data["scorer"]["model"]["model"] == name


@pytest.mark.parametrize(("models", "scorer"), [("hosted", "prm"), ("example", "judge")])
def test_a_scorer_that_does_not_go_with_the_models_is_refused(models, scorer):
    assert scorer in get_args(ScorerKind)
    with pytest.raises(
        SettingsError, match=f"scorer is {scorer}, which does not go with models {models}: choose"
    ):
        text(models, scorer)
