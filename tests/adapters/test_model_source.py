"""Tests of sources of weights: the settings `model`, `device` and `dtype`, tokenizers, and shared weights."""

from __future__ import annotations

import builtins
import gc
import logging
import os
import re
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from trim_graph.adapters.model_source import (
    check_available,
    check_dtype,
    check_model,
    import_transformers,
    load_tokenizer,
    local_file,
    max_positions,
    pick_device,
    shared_engine,
)
from trim_graph.errors import SettingsError

# The setting `model`


@pytest.mark.parametrize("model", ["gpt2", "Qwen/Qwen2.5-Math-1.5B-Instruct", "a.b/c_d-1"])
def test_a_hub_id_stays_as_it_is(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    assert check_model(model) == model


@pytest.mark.parametrize(
    "model", ["./missing", "/missing/model", "a/b/c", "-x/y", "a b", "owner/", "~/missing"]
)
def test_a_path_of_no_folder_is_refused_with_what_to_give(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(f"model={os.path.expanduser(model)!r}: no such folder.")):
        check_model(model)


def test_a_path_that_may_hold_a_secret_is_not_repeated():
    with pytest.raises(ValueError, match="model holds what may be a secret: no such folder") as raised:
        check_model("https://user:hunter2@host/model")
    assert "hunter2" not in str(raised.value)


def test_a_folder_is_named_by_text_path_or_from_home(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert (
        check_model(tmp_path)
        == check_model(str(tmp_path))
        == check_model(f"~/{tmp_path.name}")
        == str(tmp_path)
    )


def test_a_folder_without_a_config_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        check_model(tmp_path)


# The settings `device` and `dtype`


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_a_known_dtype_stays_as_it_is(dtype):
    assert check_dtype(dtype) == dtype


@pytest.mark.parametrize("dtype", ["", "float64", "Float32", "half"])
def test_another_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match="is not known; choose one of auto, float32, bfloat16, float16"):
        check_dtype(dtype)


@pytest.mark.parametrize("device", ["", "gpu", "cuda:x", "cpu:cpu"])
def test_a_device_that_torch_does_not_know_is_refused(device):
    with pytest.raises(ValueError, match=re.escape(f"device={device!r} is not known")):
        pick_device(device)


@pytest.mark.parametrize(
    ("gpus", "device", "picked"),
    [
        (0, "auto", "cpu"),
        (2, "auto", "cuda"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
)
def test_the_device_is_the_one_that_is_named_and_auto_is_a_gpu_where_there_is_one(
    monkeypatch, gpus, device, picked
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert pick_device(device) == torch.device(picked)


@pytest.mark.parametrize(
    ("gpus", "built", "said"),
    [
        (1, "12.8", "torch sees 1 GPU here, counted from 0: choose cuda:0 or lower"),
        (2, "12.8", "torch sees 2 GPUs here, counted from 0: choose cuda:1 or lower"),
        (0, "12.8", "finds no GPU here: choose device cpu or auto, or check nvidia-smi"),
        (0, None, "is a build without CUDA: choose device cpu or auto, or install a torch with CUDA"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_with_the_reason(monkeypatch, gpus, built, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.version.cuda", built)
    monkeypatch.setattr("torch.version.hip", None)
    for check in (pick_device, lambda device: check_available(SimpleNamespace(device=device))):
        with pytest.raises(SettingsError, match=re.escape(said)):
            check("cuda:5")


def test_an_apple_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(SettingsError, match="torch finds no Apple GPU here"):
        pick_device("mps")


def test_what_names_neither_a_device_nor_weights_is_available():
    assert check_available(SimpleNamespace(base_url="http://127.0.0.1:1")) is None


# Tokenizers and files


def test_the_tokenizer_is_the_one_in_the_file(random_model, tokenizer):
    """AutoTokenizer would replace the pre-tokenizer, which goes unnoticed until texts come out wrong."""
    loaded = load_tokenizer(str(random_model))
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_a_missing_tokenizer_file_is_named(random_model, tmp_path):
    shutil.copy(random_model / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_chat_template_is_refused_only_where_one_is_needed(random_model, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(random_model / name, tmp_path)
    with pytest.raises(ValueError, match="its tokenizer has no chat template"):
        load_tokenizer(str(tmp_path))
    assert load_tokenizer(str(tmp_path), chat=False).chat_template is None


def test_only_the_advice_to_install_torch_is_left_out_of_the_log_and_only_at_the_import(monkeypatch):
    shown, log = [], logging.getLogger("transformers")
    monkeypatch.setattr(
        log, "handle", lambda record: log.filter(record) and shown.append(record.getMessage())
    )
    importing = builtins.__import__

    def announced(name, *rest, **more):
        if name == "transformers":
            log.warning("PyTorch was not found. Models won't be available.")
            log.warning("another warning")
        return importing(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", announced)
    import_transformers()
    monkeypatch.undo()
    assert shown == ["another warning"]
    assert log.filter(logging.makeLogRecord({"msg": "PyTorch was not found"}))


def test_a_file_of_a_model_is_found_in_its_folder_and_nothing_is_downloaded(tmp_path):
    (tmp_path / "trim_scorer.json").write_text("{}")
    assert local_file(str(tmp_path), "trim_scorer.json") == tmp_path / "trim_scorer.json"
    assert local_file(str(tmp_path), "other.json") is None
    (tmp_path / "folder.json").mkdir()
    assert local_file(str(tmp_path), "folder.json") is None
    assert local_file("owner/that-nobody-has-cached", "config.json") is None
    assert local_file("no hub id/at/all", "config.json") is None


@pytest.mark.parametrize(("limit", "positions"), [(512, 512), (0, None), (None, None), ("512", None)])
def test_the_longest_sequence_is_a_positive_number_of_the_config(limit, positions):
    text = SimpleNamespace(max_position_embeddings=limit)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    assert max_positions(model) == positions


# Shared weights


class Weights:
    """Weights of a model, and what they were loaded with."""

    def __init__(self, *given):
        self.given = given


def test_weights_of_one_place_are_loaded_once_for_each_device_dtype_and_variant(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    one = shared_engine(Weights, str(tmp_path / "model"), "cpu", "float32")
    assert one.given == (str(tmp_path / "model"), torch.device("cpu"), "float32")
    for same in ("model", str(tmp_path / "link")):
        assert shared_engine(Weights, same, "cpu", "float32") is one
    others = [
        shared_engine(Weights, "model", "cpu", "bfloat16"),
        shared_engine(Weights, "model", "cpu", "float32", variant="head"),
        shared_engine(Weights, "owner/model", "cpu", "float32"),
    ]
    assert len({id(engine) for engine in (one, *others)}) == 4


def test_weights_are_freed_with_their_last_user(tmp_path):
    loads = []

    def build(*given):
        loads.append(given)
        return Weights(*given)

    first = shared_engine(build, str(tmp_path), "cpu", "float32")
    second = shared_engine(build, str(tmp_path), "cpu", "float32")
    assert first is second
    del first
    gc.collect()
    assert shared_engine(build, str(tmp_path), "cpu", "float32") is second
    del second
    gc.collect()
    shared_engine(build, str(tmp_path), "cpu", "float32")
    assert len(loads) == 2


def test_threads_that_ask_together_load_once(tmp_path):
    loads, engines = [], []

    def build(*given):
        loads.append(given)
        time.sleep(0.05)
        return Weights(*given)

    def ask():
        engines.append(shared_engine(build, str(tmp_path), "cpu", "float32"))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(set(map(id, engines))) == 1


def test_weights_that_could_not_be_loaded_are_tried_again(tmp_path):
    attempts = []

    def build(*given):
        attempts.append(given)
        if len(attempts) == 1:
            raise OSError("no such file")
        return Weights(*given)

    with pytest.raises(OSError, match="no such file"):
        shared_engine(build, str(tmp_path), "cpu", "float32")
    assert isinstance(shared_engine(build, str(tmp_path), "cpu", "float32"), Weights)
