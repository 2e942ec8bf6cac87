"""The JSON schema of configurations takes what loads, and says what a key means."""

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from trim_graph import SettingsError
from trim_graph.config import EXAMPLE, load_config, make_config
from trim_graph.config.json_schema import config_schema

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\n"


@pytest.fixture(scope="module")
def schema():
    return Draft202012Validator(config_schema())


def test_it_is_a_schema(schema):
    Draft202012Validator.check_schema(schema.schema)
    assert schema.schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    "file", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda file: f"{file.parent.name}/{file.name}"
)
def test_every_example_file_fits_the_schema(schema, file):
    load_config(file)
    schema.validate(yaml.safe_load(file.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE.replace("./models/large", "org/large"),
        MODELS + "policy: 0.5",
        MODELS + "policy: large",
        MODELS + "policy: {type: any_of, policies: [0.5, {type: entropy_probe, limit: 1}]}",
        MODELS + "policy: {type: stay_on_large, policy: 0.4, k: 2}",
        MODELS + "policy: {type: quality, name: high}\nquality: {high: {max_loss: 0.01, policy: 0.4}}",
        MODELS + "policy: 0.5\nsettings: {segmentation: {type: tokens, tokens: 64}, thinking: null}",
        MODELS + "policy: 0.5\nquotas: {user: {large_tokens: 3}}\nledger: memory",
        "small: {type: vllm, model: m, base_url: [http://a:1/v1, http://b:1/v1], serve: {gpu: [0, 1]}}\n"
        "large: {type: vllm, model: n, serve: {gpu: 0}}\npolicy: small",
    ],
)
def test_a_configuration_that_loads_fits_the_schema(schema, text):
    make_config(yaml.safe_load(text))
    schema.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        MODELS + "policy: 1.5",
        MODELS + "policy: {type: treshold, t: 0.5}",
        MODELS + "policy: {type: threshold, t: 1.5}",
        MODELS + "policy: 0.5\nbudgets: {}",
        MODELS + "policy: 0.5\nsettings: {max_steps: 0}",
        "small: {type: example}\npolicy: small",
    ],
)
def test_what_does_not_load_does_not_fit(schema, text):
    with pytest.raises(SettingsError):
        make_config(yaml.safe_load(text))
    assert not schema.is_valid(yaml.safe_load(text))


def test_keys_have_a_meaning(schema):
    assert schema.schema["properties"]["small"].get("description")
    parts = schema.schema["$defs"]
    for part, key in (
        ("VLLMModel", "base_url"),
        ("VLLMModel", "temperature"),
        ("TransformersPRM", "format"),
        ("LLMJudgeScorer", "scale"),
        ("LangChainModel", "kwargs"),
        ("FileSettings", "max_steps"),
        ("Budget", "large_tokens"),
        ("Serve", "gpu"),
        ("ShadowSection", "rate"),
    ):
        assert parts[part]["properties"][key].get("description"), f"{part}.{key}"
