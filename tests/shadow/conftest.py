"""A shadow beside a chat model that is scripted, and the records it makes."""

import pytest

from trim_graph import Prices, Shadow
from trim_graph.policies import threshold
from trim_graph.shadow import read_shadow
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

SMALL = ["small one", "small two", "small three", "so it is \\boxed{4}"]
LARGE = ["LARGE one", "LARGE two", "LARGE three", "SO it is \\boxed{5}"]
PRICES = Prices.model_validate(
    {"small": {"input": 1, "output": 2}, "large": {"input": 10, "output": 20}, "scorer": {"input": 1}}
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "shadow.jsonl"


def build(file, answers="large", *, small=SMALL, large=LARGE, scorer=None, policy=None, **options):
    """A shadow and the application's model; ``small two`` scores 0.1, under ``threshold(0.5)``."""
    models = {
        "small": ScriptedChatModel(script=small, name="tiny"),
        "large": ScriptedChatModel(script=large, name="huge"),
    }
    own = models[answers].model_copy(update={"calls": []})  # the application's own calls
    scorer = ScriptedScorer({"small two": 0.1}) if scorer is None else scorer
    shadow = Shadow(
        models["small"],
        models["large"],
        scorer,
        policy=policy or threshold(0.5),
        answers=answers,
        record=file,
        **options,
    )
    return shadow, own, models


def only(file):
    (record,) = read_shadow(file)
    return record


def recorded(file, answers="large", question="What is 2 + 2?", **options):
    shadow, own, models = build(file, answers, **options)
    with shadow:
        shadow.watch(own).invoke(question)
        assert shadow.drain(10)
    return only(file), models
