import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration

from trim_graph import SettingsError, create_trim_graph
from trim_graph.adapters import ChatTransformers, ChatVLLM
from trim_graph.config import build_parts, make_config
from trim_graph.errors import StorageError
from trim_graph.examples.arithmetic import SMALL, stream_problems
from trim_graph.policies import small_only, threshold
from trim_graph.segmentation import as_segmentation, delimiter, markdown, pattern, stop_arguments
from trim_graph.storage.response_cache import ResponseCache
from trim_graph.testing import ScriptedChatModel, ScriptedScorer

STEPS = ["one is 1", "two is wrong", "the answer is \\boxed{3}"]
RIGHT = ["ONE IS 1", "TWO IS 2", "THE ANSWER IS \\boxed{3}"]


@pytest.fixture
def cache(tmp_path):
    opened = ResponseCache(tmp_path / "calls.db")
    yield opened
    opened.close()


def _response(text="a", **metadata):
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    return [ChatGeneration(message=AIMessage(text, response_metadata=metadata, usage_metadata=usage))]


def test_runs_with_equal_calls_ask_the_models_once_and_count_alike(tmp_path):
    caches = [ResponseCache(tmp_path / "calls.db", scope=name) for name in ("small", "large")]
    small, large = (ScriptedChatModel(script=s, cache=c) for s, c in zip((STEPS, RIGHT), caches, strict=True))
    scorer = ScriptedScorer({"two is wrong": 0.1}, default=0.9)

    def run(t):
        graph = create_trim_graph(small, large, scorer, policy=threshold(t))
        return graph.invoke({"messages": [("user", "1 + 2?")]})["trim"]

    first = run(0.5)
    asked = len(small.calls), len(large.calls)
    again, other = run(0.5), run(0.0)

    assert (again["stopped"], again["answer"]) == (first["stopped"], first["answer"])
    for part in ("small", "large", "scorer"):
        for key in ("calls", "input_tokens", "output_tokens"):
            assert again["usage"][part][key] == first["usage"][part][key]
    assert (len(small.calls), len(large.calls)) == (asked[0] + 1, asked[1])  # the step after the kept draft
    assert other["usage"]["large"]["calls"] == 0
    assert caches[0].hits > 0


def test_another_process_reads_what_one_has_kept(tmp_path):
    first, second = (ResponseCache(tmp_path / "calls.db") for _ in range(2))
    first.update("prompt", "model", _response("x", stop_reason="\n\n"))

    (found,) = second.lookup("prompt", "model")

    assert (found.message.content, found.message.response_metadata) == ("x", {"stop_reason": "\n\n"})
    assert found.message.usage_metadata["output_tokens"] == 2
    assert second.lookup("prompt", "other model") is None
    assert (second.hits, second.misses) == (1, 1)


@pytest.mark.parametrize("metadata", [{"timed_out": True}, {"failed_attempts": [{"output_tokens": 3}]}])
def test_responses_that_another_call_would_not_have_are_not_kept(cache, metadata):
    cache.update("prompt", "model", _response(**metadata))

    assert cache.lookup("prompt", "model") is None


@given(st.text(), st.text(), st.text())
def test_any_text_is_read_as_it_was_kept(prompt, model, text):
    cache = ResponseCache(":memory:")
    cache.update(prompt, model, _response(text))

    (found,) = cache.lookup(prompt, model)

    assert found.message.content == text
    cache.close()


def test_limits_on_time_and_attempts_are_no_part_of_a_request():
    model = ChatVLLM(model="m", base_url="http://localhost:1")

    assert model._get_llm_string(timeout=1.5, retry_tokens=print, max_tokens=7) == model._get_llm_string(
        max_tokens=7
    )
    assert model._get_llm_string(max_tokens=7) != model._get_llm_string(max_tokens=8)
    other = ChatVLLM(model="other", base_url="http://localhost:1")
    assert model._get_llm_string() != other._get_llm_string()


def test_a_step_that_is_watched_is_a_request_of_its_segmentation():
    model = ChatVLLM(model="m")

    def key(segmentation, partial_text=""):
        made = stop_arguments(segmentation, None, None, partial_text=partial_text, takes_stop_when=True)
        return model._get_llm_string(**made)

    different = [
        *(pattern(r"\n+(?=Step)"), pattern(r"\n+"), markdown(), delimiter()),
        *(markdown().continuing(cut) for cut in ("```", "$$")),
    ]
    keys = [key(one) for one in different]
    assert keys == [key(one.model_copy()) for one in different]
    assert len({*keys, key(different[0], "a"), key(different[0], "b")}) == len(different) + 2
    ends = as_segmentation(lambda text: None)
    assert key(ends) != key(ends)  # what a function does may have changed since
    at_once = bool
    assert model._get_llm_string(stop_when=at_once) != model._get_llm_string(stop_when=at_once)
    assert model._get_llm_string(stop_when=None) == model._get_llm_string(stop_when=None)


def test_equal_calls_of_watched_steps_are_made_once_by_two_processes(tmp_path):
    """As two commands make them: nothing but the file is common to both graphs."""
    asked = []
    for _ in range(2):
        cache = ResponseCache(tmp_path / "calls.db")
        model = ChatTransformers(model=str(SMALL), cache=cache)
        graph = create_trim_graph(
            model, model, policy=small_only(), segmentation=pattern(r"\n\s*"), max_steps=3
        )
        graph.invoke(
            {"messages": [("user", next(stream_problems("standard", part="test", seed=0)).question)]}
        )
        asked.append((cache.hits, cache.misses))
        cache.close()
    assert asked[0][1] > 1
    assert asked[1] == (sum(asked[0]), 0)


def test_a_damaged_response_is_an_error_that_names_the_file(cache):
    cache.update("prompt", "model", _response())
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE responses SET response = ?", (b"no zlib",))

    with pytest.raises(StorageError, match=r"calls\.db holds a response that cannot be read"):
        cache.lookup("prompt", "model")


def test_a_file_of_another_program_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "calls.db") as connection:
        connection.execute("CREATE TABLE responses (id INTEGER PRIMARY KEY)")

    with pytest.raises(StorageError, match="belongs to another program"):
        ResponseCache(tmp_path / "calls.db")


def test_a_configuration_gives_both_models_the_cache_beside_it(tmp_path):
    vllm = {"type": "vllm", "model": "m", "base_url": "http://localhost:1"}
    data = {"small": vllm, "large": vllm, "policy": "small_only", "response_cache": "calls.db"}

    parts = build_parts(make_config(data, base=tmp_path))

    for model in parts.small, parts.large:
        assert model.cache.path == str(tmp_path / "calls.db")
        model.cache.close()


def test_a_model_that_draws_is_refused_with_a_cache():
    vllm = {"type": "vllm", "model": "m", "base_url": "http://localhost:1"}
    data = {
        "small": {**vllm, "temperature": 0.7},
        "large": vllm,
        "policy": "small_only",
        "response_cache": "calls.db",
    }

    with pytest.raises(SettingsError, match=r"small draws \(temperature 0\.7\): set its temperature to 0"):
        make_config(data)
