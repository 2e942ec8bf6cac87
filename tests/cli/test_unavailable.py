"""A model that cannot be had is named in one line, by every command that loads it."""

import json

import pytest

from tests.adapters.hub_server import serve

PROBLEM = (
    "Start with 34. Step 1: add 12. Step 2: multiply by 7. Step 3: take away 5. "
    "Step 4: take the larger of it and 20. Always keep only the last two digits. What is the final number?"
)
CONFIG = """
small: {type: transformers, model: owner/name}
large: {type: transformers, model: owner/large}
scorer: {type: transformers_prm, model: owner/prm}
policy: {type: threshold, t: 0.5}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trim.yaml").write_text(CONFIG)
    (tmp_path / "cuda.yaml").write_text(
        "small: {type: example}\nlarge: {type: example, device: cuda}\npolicy: small\n"
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [("unreachable", "cannot be reached"), ("not found", "has no such model"), ("gated", "is gated")],
)
def test_solve_says_so_after_one_request(run, config, monkeypatch, tmp_path, answer, said):
    requests = serve(monkeypatch, answer, token="hf_x", cache=tmp_path)
    done = run("solve", "--config", "trim.yaml", "What is 2 + 2?")
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("trim-graph: small: model='owner/name': ")
    assert said in line
    assert len(requests) == 1


def test_doctor_finds_it_for_each_part(run, config, monkeypatch, tmp_path):
    serve(monkeypatch, "unreachable", cache=tmp_path)
    done = run("doctor", "--config", "trim.yaml", "--json")
    assert done.exit_code == 1
    found = {
        one["part"]: one["found"] for one in json.loads(done.stdout)["checks"] if one["status"] == "error"
    }
    assert found.keys() == {"small", "large", "scorer"}
    assert all(
        "the Hugging Face hub (https://huggingface.co) cannot be reached" in text for text in found.values()
    )


def test_a_gpu_that_is_not_there_is_said_before_the_first_model_loads(run, config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "trim_graph.cli.common.load_chat_model", lambda model: pytest.fail("a model was loaded")
    )
    done = run("solve", "--config", "cuda.yaml", PROBLEM)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("trim-graph: large: device='cuda', but torch ")


def test_doctor_names_the_gpu(run, config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = run("doctor", "--config", "cuda.yaml", "--json")
    (found,) = [
        one
        for one in json.loads(done.stdout)["checks"]
        if one["part"] == "large" and one["status"] == "error"
    ]
    assert (found["check"], found["fix"]) == ("loading", "")
    assert found["found"].startswith("device='cuda', but torch ")
