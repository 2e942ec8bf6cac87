"""A shadow in a process of its own: the same records, and an application that survives its end."""

import os
import signal
import time

import pytest
from langchain_core.messages import AIMessage

from trim_graph import Quota, SettingsError
from trim_graph.shadow import ShadowProcess, read_shadow

CONFIG = """\
small: {type: example}
large: {type: example}
scorer: {type: example}
policy: {type: threshold, t: 0.9}
prices: {large: {input: 1, output: 2}}
"""
QUESTION = "Start with 47. Add 38. Multiply by 7."
ANSWER = AIMessage(
    "Step 1: 47 + 38 = 85.\n\nStep 2: 85 * 7 = 595.\n\nThe answer is \\boxed{595}.",
    usage_metadata={"input_tokens": 9, "output_tokens": 30, "total_tokens": 39},
)


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "trim.yaml"
    file.write_text(CONFIG)
    return file


def test_answers_are_examined_in_another_process_which_is_started_again_if_it_ends(config, tmp_path):
    file = tmp_path / "shadow.jsonl"
    with ShadowProcess(
        config, answers="large", record=file, text=True, run_rate=1.0, shadow_budget=Quota(large_tokens=10**6)
    ) as shadow:
        assert shadow.submit(QUESTION, ANSWER, seconds=1.0)
        assert shadow.submit("", ANSWER)
        assert shadow.drain(250)
        first = shadow._child
        os.kill(_pid(first), signal.SIGKILL)
        while not first.ended:
            time.sleep(0.05)
        assert shadow.submit(QUESTION, ANSWER)
        assert shadow.drain(250)
    records = list(read_shadow(file))
    by_error = {bool(record["error"]): record for record in records}
    assert len(records) == 3
    assert "question is empty" in by_error[True]["error"]
    record = by_error[False]
    assert (record["kind"], record["priced"], record["question"]["text"]) == ("run", True, QUESTION)
    assert record["would"]["small_tokens"] > 0
    assert record["answered"]["cost"] == (9 + 60) / 1e6
    assert (shadow.counts.recorded, shadow.counts.failed) == (2, 1)


def _pid(child):
    return child._ready.result().pid


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"answers": "medium"}, "answers is 'medium'"),
        ({"run_rate": 0.5}, "shadow_budget sets no"),
        ({"grade": "no.such:function"}, "grade is 'no.such:function'"),
        ({"agreement": "trim_graph:__version__"}, "is no function"),
        ({"record": "shadow.txt"}, "must end in"),
    ],
)
def test_a_wrong_option_is_refused_before_a_process_is_started(config, tmp_path, wrong, complaint):
    with pytest.raises(SettingsError, match=complaint):
        ShadowProcess(config, **{"answers": "large", "record": tmp_path / "shadow.jsonl", **wrong})


def test_a_configuration_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"no\.yaml"):
        ShadowProcess(tmp_path / "no.yaml", answers="large", record=tmp_path / "shadow.jsonl")
