"""A trained scorer by its hub id: format and step token come from the hub's cache, here one made by hand."""

import json
import shutil

import httpx
import pytest

from tests import tiny_prms
from tests.adapters.recorded_server import RecordedServer
from tests.adapters.vllm.test_step_scores import classifies, of
from trim_graph import ScorableStep
from trim_graph.adapters import TransformersProcessReward, VLLMProcessReward
from trim_graph.adapters.model_source import load_tokenizer
from trim_graph.adapters.prm.formats import TrimPRMFormat
from trim_graph.adapters.prm.scorer_file import SCORER_FILE, FormatChoice, chosen_format
from trim_graph.adapters.settings import TransformersPRMSettings
from trim_graph.adapters.vllm import client
from trim_graph.config import make_config
from trim_graph.doctor.examination import segmentation
from trim_graph.errors import SettingsError
from trim_graph.serving.plan import plan_servers, weights_bytes

HUB_ID = "owner/step-scorer"
COMMIT = "0" * 39 + "1"
QUESTION = "Start with 47. Step 1: add 38. Step 2: double the result."
TEXTS = ["Step 1: 47 + 38 = 85.", "Step 2: 85 * 2 = 170, keep 70."]
STEPS = [ScorableStep(text) for text in TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_prms.save_trim(tmp_path_factory.mktemp("trained") / "scorer")


@pytest.fixture
def cache(folder, tmp_path, monkeypatch):
    """The cache of a hub that cannot be reached, with the scorer in it as a download leaves it."""
    from huggingface_hub import constants

    place = tmp_path / "hub" / "models--owner--step-scorer"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return place / "snapshots" / COMMIT


def configured(**scorer):
    model = {"type": "vllm", "model": "org/m", "base_url": "http://elsewhere:8000"}
    scorer = {"type": "vllm_prm", "model": HUB_ID, "base_url": "http://localhost:8003", **scorer}
    return make_config(
        {"small": model, "large": {**model, "model": "org/n"}, "scorer": scorer, "policy": "large_only"}
    )


def test_its_file_says_how_it_reads_a_solution(cache, folder):
    token = load_tokenizer(str(folder)).eos_token
    found = chosen_format(TransformersPRMSettings(model=HUB_ID), HUB_ID)
    assert found == FormatChoice("trim", token, None)


def test_in_this_process_it_scores_as_its_folder_does(cache, folder):
    from_hub = TransformersProcessReward(HUB_ID).score(QUESTION, STEPS)
    from_folder = TransformersProcessReward(folder).score(QUESTION, STEPS)
    assert from_hub.scores == pytest.approx(from_folder.scores, abs=1e-6)
    assert from_hub.input_tokens == from_folder.input_tokens


def of_one_label(request):
    """A server that pools LAST with a head of one label: the first of two that `classifies` gives."""
    found = classifies(request)
    if found.status_code != 200:
        return found
    return httpx.Response(
        200, json={"data": [{**entry, "data": entry["data"][:1]} for entry in found.json()["data"]]}
    )


async def test_behind_a_server_that_has_it_from_the_hub_its_own_tokens_are_sent(cache, folder, monkeypatch):
    tokenizer = load_tokenizer(str(folder))
    server = RecordedServer(of_one_label)
    server.models = {"data": [{"id": "scorer", "root": HUB_ID, "max_model_len": 512}]}
    server._tokenizer = lambda body: {"tokens": tokenizer.encode(body["prompt"], add_special_tokens=False)}
    monkeypatch.setattr(client, "new_client", server.client)
    scorer = VLLMProcessReward("scorer", base_url="http://from-hub.test:8000/v1")
    reply = await scorer.ascore(QUESTION, STEPS)
    asked = TrimPRMFormat(tokenizer).encode(QUESTION, TEXTS)
    wanted = [asked.ids[: position + 1] for position in asked.step_positions]
    sent = [body["input"] for _, body in server.generations if body["task"] == "classify"]
    assert sent == [wanted]
    assert reply.scores == pytest.approx([1 - of(ids) for ids in wanted])


@pytest.mark.parametrize("serve", [{}, {"path": HUB_ID}], ids=["by name", "by path"])
def test_up_serves_it_with_the_flags_of_its_format(cache, tmp_path, serve):
    config = configured(serve=serve, **({"model": "scorer"} if serve else {}))
    (server,) = plan_servers(config, tmp_path).servers
    arguments = list(server.arguments)
    assert server.weights == HUB_ID
    assert arguments[arguments.index("--convert") + 1] == "classify"
    pooler = json.loads(arguments[arguments.index("--pooler-config") + 1])
    assert pooler == {"pooling_type": "LAST", "task": "classify"}
    assert weights_bytes(HUB_ID) == (cache / "model.safetensors").stat().st_size


def test_doctor_compares_steps_with_no_published_reward_model(cache):
    assert segmentation(configured()) is None


def test_a_scorer_that_is_not_in_the_cache_is_an_error_with_the_id(cache, tmp_path):
    with pytest.raises(
        SettingsError, match=r"the arguments for format \w+ cannot be determined.*owner/other"
    ):
        plan_servers(configured(model="owner/other"), tmp_path)


def test_a_spoilt_file_in_the_cache_is_named(cache):
    (cache / SCORER_FILE).write_text("{}")
    with pytest.raises(ValueError, match=f"{SCORER_FILE} of {HUB_ID} is not a trained scorer's"):
        chosen_format(TransformersPRMSettings(model=HUB_ID), HUB_ID)
