"""What is said of a model that the hub does not give, by the hub's own client and its own errors."""

import shutil
from pathlib import Path

import pytest

from tests.adapters.hub_server import serve
from trim_graph.adapters import ChatTransformers, TransformersProcessReward
from trim_graph.adapters.hub import hub_options
from trim_graph.adapters.model_source import load_tokenizer, pick_device
from trim_graph.adapters.prm.convert import convert_value_head
from trim_graph.errors import SettingsError
from trim_graph.examples.arithmetic import PRM, SMALL

MODEL = "owner/name"
COMMIT = "0" * 40


@pytest.mark.parametrize(
    ("answer", "token", "said"),
    [
        (
            "unreachable",
            None,
            r"hub \(https://.*\) cannot be reached \(.*service not known\), and the cache .* lacks it",
        ),
        (
            "gated",
            "hf_x",
            r"is gated, and the account of the token has no access.*: ask for it at https://.*owner/name",
        ),
        (
            "gated, no token",
            None,
            r"is gated, and there is no token.*: accept its licence at .*, and set HF_TOKEN",
        ),
        (
            "not found",
            "hf_x",
            r"has no such model, or it is private: check the spelling.*needs a token of an account",
        ),
        (
            "not found, no token",
            None,
            r"no such model, or it is private: check the spelling.*needs a token in HF_TOKEN",
        ),
        ("token", "hf_bad", r"the hub refuses the token \(401\).*: set HF_TOKEN to a valid token"),
        ("no config", None, r"the model on the hub has no config\.json, .*: choose a model in that layout"),
        ("disabled", None, r"the hub has disabled this model"),
    ],
)
def test_one_request_and_one_line_say_why_a_model_cannot_be_had(monkeypatch, tmp_path, answer, token, said):
    requests = serve(monkeypatch, answer, token=token, cache=tmp_path)
    with pytest.raises(SettingsError, match=said) as refused:
        hub_options(MODEL)
    assert len(requests) == 1
    message = str(refused.value)
    assert message.startswith("model='owner/name': ")
    assert "\n" not in message
    assert token is None or token not in message


@pytest.mark.parametrize("answer", ["ok", "busy"])
def test_a_hub_that_answers_or_is_only_busy_is_left_to_its_client(monkeypatch, tmp_path, answer):
    serve(monkeypatch, answer, cache=tmp_path)
    assert hub_options(MODEL) == {}


def test_an_answer_is_remembered_and_a_refusal_is_not(monkeypatch, tmp_path):
    requests = serve(monkeypatch, "not found", cache=tmp_path)
    for _ in range(2):
        with pytest.raises(SettingsError):
            hub_options(MODEL)
    assert len(requests) == 2
    requests = serve(monkeypatch, "ok", cache=tmp_path)
    for _ in range(2):
        hub_options(MODEL)
    assert len(requests) == 1


def test_a_forbidden_hub_is_not_asked(monkeypatch, tmp_path):
    requests = serve(monkeypatch, "ok", cache=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        SettingsError, match=r"HF_HUB_OFFLINE .* forbids asking the hub.*hf download owner/name"
    ):
        hub_options(MODEL)
    assert requests == []


def test_a_model_in_the_cache_loads_without_the_hub_and_without_retries(monkeypatch, tmp_path):
    place = tmp_path / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(SMALL, place / "snapshots" / COMMIT)
    requests = serve(monkeypatch, "unreachable", cache=tmp_path)
    assert hub_options(MODEL) == {"local_files_only": True}
    assert load_tokenizer(MODEL).chat_template
    assert len(requests) == 1


@pytest.mark.parametrize(
    "load",
    [
        lambda: ChatTransformers(model=MODEL).invoke("1 + 1"),
        lambda: TransformersProcessReward(MODEL).score("1 + 1?", ["2"]),
        lambda: TransformersProcessReward(MODEL, format="skywork").score("1 + 1?", ["2"]),
        lambda: convert_value_head(MODEL, Path("converted")),
    ],
    ids=["chat", "reward model", "value head", "convert"],
)
def test_every_way_to_load_says_so(monkeypatch, tmp_path, load):
    requests = serve(monkeypatch, "not found", cache=tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="the hub has no such model, or it is private"):
        load()
    assert len(requests) == 1


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (None, r"is a build without CUDA: .*install a torch with CUDA"),
        ("13.0", r"finds no GPU here: .*nvidia-smi"),
    ],
)
def test_a_gpu_that_is_not_there_is_said_before_weights_are_read(monkeypatch, device, cuda, said):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    for load in (
        lambda: pick_device(device),
        lambda: ChatTransformers(model=str(SMALL), device=device).invoke("1 + 1"),
        lambda: TransformersProcessReward(str(PRM), device=device).score("1 + 1?", ["2"]),
    ):
        with pytest.raises(SettingsError, match=rf"device='{device}', but torch .* {said}"):
            load()
    assert pick_device("auto").type == "cpu"


def test_a_gpu_beyond_the_last_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(pick_device("cuda:1")) == "cuda:1"
    with pytest.raises(
        SettingsError, match=r"device='cuda:2', but torch sees 2 GPUs .*: choose cuda:1 or lower"
    ):
        pick_device("cuda:2")
