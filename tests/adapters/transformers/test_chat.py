"""`ChatTransformers` as a caller sees it: what it writes, how it ends, what it counts, what it refuses."""

import asyncio
import copy
import math
import pickle
import subprocess
import sys
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from transformers import AutoModelForCausalLM

from tests.adapters.transformers.conftest import QUESTION, SCRIPT
from trim_graph import ScorableStep
from trim_graph.adapters import ChatTransformers, ContextLengthError, LLMJudge
from trim_graph.adapters.base import CallSettings
from trim_graph.adapters.transformers.batching import GenerationJob, Row


def ending(message):
    return message.response_metadata["finish_reason"], message.response_metadata["stop_reason"]


class TestEnd:
    def test_an_answer_that_ends_by_itself_has_no_stop_reason(self, reciter):
        answer = reciter.invoke(QUESTION)
        assert answer.content == SCRIPT
        assert ending(answer) == ("stop", None)
        assert answer.response_metadata["model_name"] == reciter.model
        assert "timed_out" not in answer.response_metadata

    def test_an_answer_that_ends_at_a_stop_string_names_it(self, reciter):
        answer = reciter.invoke(QUESTION, stop=["never", "\n\n"])
        assert answer.content == "First, add 3 and 4."
        assert ending(answer) == ("stop", "\n\n")

    @pytest.mark.parametrize("stop", ["t, a", "st", " and 4", ".", "Then", "F"])
    def test_a_stop_string_anywhere_in_the_tokens(self, reciter, stop):
        answer = reciter.invoke(QUESTION, stop=[stop])
        assert answer.content == SCRIPT[: SCRIPT.index(stop)]
        assert ending(answer) == ("stop", stop)

    def test_the_earliest_stop_string_counts(self, reciter):
        assert ending(reciter.invoke(QUESTION, stop=["4", "add", "dd"])) == ("stop", "add")

    def test_the_callers_own_function_may_end_it(self, reciter):
        answer = reciter.invoke(QUESTION, stop_when=lambda text: text.endswith("3"))
        assert answer.content == "First, add 3"
        assert ending(answer) == ("stop", "stop_when")
        whole = reciter.invoke(QUESTION)
        assert answer.usage_metadata["output_tokens"] < whole.usage_metadata["output_tokens"]
        assert "".join(c.content for c in reciter.stream(QUESTION, stop_when=lambda t: "3" in t)) == (
            answer.content
        )

    async def test_a_function_that_fails_ends_its_own_call_alone(self, reciter):
        answers = await asyncio.gather(
            reciter.ainvoke(QUESTION, stop_when=lambda text: text[99]),
            reciter.ainvoke(QUESTION),
            return_exceptions=True,
        )
        assert isinstance(answers[0], IndexError)
        assert answers[1].content == SCRIPT

    def test_a_template_that_opens_reasoning_is_reported(self, reciter):
        assert "starts_in_reasoning" not in reciter.invoke(QUESTION).response_metadata
        engine = copy.copy(reciter._load())
        engine.tokenizer = copy.copy(engine.tokenizer)
        engine.__dict__.pop("starts_in_reasoning")
        engine.tokenizer.chat_template += "{{ '<think>\n' }}"
        assert engine.starts_in_reasoning

    def test_an_answer_cut_at_max_tokens_reports_length(self, reciter):
        answer = reciter.invoke(QUESTION, max_tokens=3)
        assert SCRIPT.startswith(answer.content)
        assert ending(answer) == ("length", None)
        assert answer.usage_metadata["output_tokens"] == 3

    def test_a_stop_string_in_the_last_token_allowed_is_a_stop(self, reciter):
        tokens = reciter.invoke(QUESTION, stop=["\n\n"]).usage_metadata["output_tokens"]
        assert ending(reciter.invoke(QUESTION, stop=["\n\n"], max_tokens=tokens)) == ("stop", "\n\n")
        assert ending(reciter.invoke(QUESTION, stop=["\n\n"], max_tokens=tokens - 1)) == ("length", None)

    def test_an_answer_cut_by_the_time_limit_reports_timed_out(self, endless):
        endless.invoke(QUESTION, max_tokens=1)  # loads the weights
        start = time.monotonic()
        answer = endless.invoke(QUESTION, timeout=0.1, max_tokens=400)
        assert time.monotonic() - start < 5
        assert answer.response_metadata["timed_out"] is True
        assert ending(answer) == ("length", None)
        assert answer.usage_metadata["output_tokens"] < 400

    def test_max_tokens_is_cut_to_the_room_behind_the_prompt(self, endless):
        answer = endless.invoke(QUESTION, max_tokens=10_000)
        assert ending(answer) == ("length", None)
        assert answer.usage_metadata["total_tokens"] == 512

    def test_special_tokens_the_model_writes_are_not_text(self, script_model):
        model = ChatTransformers(model=str(script_model("a<extra_0>b")))
        answer = model.invoke(QUESTION)
        assert answer.content == "ab"
        assert answer.usage_metadata["output_tokens"] == 4


class TestContinuation:
    def test_goes_on_right_behind_the_bytes_given(self, reciter):
        for cut in (0, 5, 6, len("First, add 3 and 4.\n\n")):
            answer = reciter.invoke([*QUESTION, AIMessage(SCRIPT[:cut])])
            assert answer.content == SCRIPT[cut:]

    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(
            st.sampled_from(["\n", "\n\n", " ", "\t", "é", "😀", "<|im_end|>", "<extra_0>", "x"]),
            max_size=6,
        ).map("".join)
    )
    def test_the_prompt_is_the_rendered_conversation_and_the_text(self, noisy, tokenizer, text):
        seen = []
        engine = noisy._load()
        encode = engine.guard.encode
        engine.guard.encode = lambda *args: seen.append(encode(*args)) or seen[-1]
        try:
            noisy.invoke([*QUESTION, AIMessage(text)], max_tokens=1)
        finally:
            engine.guard.encode = encode
        expected = "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n" + text
        assert tokenizer.decode(seen[0]) == expected
        assert sum(i in tokenizer.all_special_ids for i in seen[0]) == 3

    def test_a_replacement_character_before_the_answer_is_not_repeated_in_it(self, noisy, tokenizer):
        for before in ("\ufffd", "so\ufffd"):
            chat = [*QUESTION, AIMessage(before)]
            answer = noisy.invoke(chat, max_tokens=1, stop=["never"])
            assert not answer.content.startswith(before)

    def test_newlines_at_the_end_matter(self, noisy):
        answers = {
            noisy.invoke([*QUESTION, AIMessage("so" + tail)]).content for tail in ("", "\n", "\n\n", " ")
        }
        assert len(answers) == 4

    def test_an_answer_of_text_blocks_is_continued_as_one_text(self, reciter):
        block = AIMessage([{"type": "text", "text": "First"}, {"type": "text", "text": ", add"}])
        assert reciter.invoke([*QUESTION, block]).content == " 3 and 4.\n\nThen"

    def test_prompt_tokens_are_counted_exactly(self, noisy):
        chat = [SystemMessage("<|im_end|>"), *QUESTION, AIMessage("so\n\n")]
        used = noisy.invoke(chat, max_tokens=1).usage_metadata
        assert noisy.count_prompt_tokens(chat) == used["input_tokens"]
        assert noisy.get_num_tokens_from_messages(chat) == used["input_tokens"]

    def test_tokens_of_a_text(self, noisy, tokenizer):
        assert noisy.get_num_tokens("First, <|im_end|>") > noisy.get_num_tokens("First, ") + 1
        assert tokenizer.decode(noisy.get_token_ids("a <|im_end|>")) == "a <|im_end|>"


class TestCounts:
    def test_stop_string_and_end_of_sequence_count_as_output(self, reciter, tokenizer):
        whole = reciter.invoke(QUESTION).usage_metadata
        assert whole["output_tokens"] == len(tokenizer(SCRIPT).input_ids) + 1
        stopped = reciter.invoke(QUESTION, stop=["\n\n"]).usage_metadata
        assert stopped["output_tokens"] == len(tokenizer("First, add 3 and 4.\n\n").input_ids)
        assert stopped["input_tokens"] == whole["input_tokens"]
        assert stopped["total_tokens"] == stopped["input_tokens"] + stopped["output_tokens"]

    def test_usage_callbacks_see_the_model_once(self, reciter):
        with get_usage_metadata_callback() as usage:
            answer = reciter.invoke(QUESTION)
            streamed = list(reciter.stream(QUESTION))[-1]
        assert streamed.usage_metadata == answer.usage_metadata
        assert (
            usage.usage_metadata[reciter.model]["output_tokens"] == 2 * answer.usage_metadata["output_tokens"]
        )

    def test_mean_token_probability_is_the_models_own(self, noisy, tokenizer):
        answer = noisy.invoke(QUESTION, logprobs=True, max_tokens=12)
        ids = noisy._load().encode(QUESTION)
        model = AutoModelForCausalLM.from_pretrained(noisy.model)
        expected = []
        with torch.no_grad():
            for _ in range(answer.usage_metadata["output_tokens"]):
                p = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
                expected.append(p.max().item())
                ids.append(int(p.argmax()))
        assert ids[-1] != tokenizer.eos_token_id
        mean = answer.response_metadata["mean_token_probability"]
        assert mean == pytest.approx(sum(expected) / len(expected), abs=1e-5)
        windowed = noisy.invoke(QUESTION, probability_window=3, max_tokens=12).response_metadata
        lowest = min(sum(expected[i : i + 3]) / 3 for i in range(10))
        assert windowed["lowest_window_probability"] == pytest.approx(lowest, abs=1e-5)
        assert windowed["mean_token_probability"] == mean
        assert "lowest_window_probability" not in answer.response_metadata

    def test_temperature_does_not_change_a_tokens_probability(self, noisy):
        sampled = noisy.invoke(QUESTION, logprobs=True, max_tokens=1, temperature=1e-3)
        greedy = noisy.invoke(QUESTION, logprobs=True, max_tokens=1)
        key = "mean_token_probability"
        assert sampled.response_metadata[key] == pytest.approx(greedy.response_metadata[key])

    def test_no_probability_unless_asked(self, noisy):
        assert "mean_token_probability" not in noisy.invoke(QUESTION).response_metadata

    @pytest.mark.parametrize("settings", [{}, {"temperature": 5.0, "seed": 1}, {"logprobs": True}])
    def test_the_first_tokens_entropy_is_that_of_the_whole_vocabulary(self, noisy, settings):
        model = AutoModelForCausalLM.from_pretrained(noisy.model)
        for chat in (QUESTION, [*QUESTION, AIMessage("It is 3")]):
            with torch.no_grad():
                logits = model(torch.tensor([noisy._load().encode(chat)])).logits[0, -1]
            expected = torch.distributions.Categorical(logits=logits.double()).entropy().item()
            for tokens in (1, 9):
                answer = noisy.invoke(chat, first_token_entropy=True, max_tokens=tokens, **settings)
                assert answer.response_metadata["first_token_entropy"] == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("settings", [{}, {"temperature": 5.0, "seed": 1}, {"logprobs": True}])
    def test_labels_have_the_probability_of_all_tokens_that_spell_them(self, noisy, settings):
        engine = noisy._load()
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(noisy.model)(
                torch.tensor([engine.encode(QUESTION)])
            )
        p = logits.logits[0, -1].softmax(-1)
        ids = {
            label: [engine.guard.encode("", f":{text}")[-1] for text in (label, f" {label}")]
            for label in "37"
        }
        asked = {"label_tokens": ("3", "7", "nowhere one token"), "max_tokens": 3}
        found = noisy.invoke(QUESTION, **asked, **settings).response_metadata
        assert found["label_tokens_exact"]
        assert found["label_probabilities"] == {
            label: pytest.approx(sum(p[token].item() for token in set(tokens)), abs=1e-6)
            for label, tokens in ids.items()
        }

    def test_only_those_of_a_batch_that_ask_get_labels_and_each_its_own(self, noisy):
        chats = [[HumanMessage(text)] for text in ("a", "what is 3 and 4", "b")]
        alone = [noisy.invoke(chat, label_tokens=["3"]).response_metadata for chat in chats]

        async def gather():
            asked = zip(chats, (["3"], [], ["3"]), strict=True)
            return await asyncio.gather(*(noisy.ainvoke(c, label_tokens=labels) for c, labels in asked))

        key = "label_probabilities"
        one, none, other = (message.response_metadata for message in asyncio.run(gather()))
        assert key not in none
        assert one[key] == pytest.approx(alone[0][key])
        assert other[key] == pytest.approx(alone[2][key])

    def test_a_judge_reads_the_expected_grade_not_the_one_written(self, noisy, monkeypatch):
        """With random weights digits are as likely as anything else."""
        monkeypatch.setattr("trim_graph.adapters.prompted.judge.MIN_MASS", 0.0)
        digits, seen = tuple("0123456789"), []

        class Noting(ChatTransformers):
            def _result(self, job, done):
                seen.append(done.label_probabilities)
                return super()._result(job, done)

        judge = LLMJudge(Noting(model=noisy.model))
        (score,) = judge.score("What is 3 + 4?", [ScorableStep("7")]).scores
        (labels,) = seen
        mass = sum(labels.values())
        assert set(labels) == set(digits)
        assert score == pytest.approx(sum(labels[d] * int(d) / 9 for d in digits) / mass)

    def test_only_those_of_a_batch_that_ask_get_an_entropy_and_each_its_own(self, noisy):
        chats = [[HumanMessage(text)] for text in ("a", "what is 3 and 4", "b")]
        alone = [noisy.invoke(chat, first_token_entropy=True).response_metadata for chat in chats]

        async def gather():
            asked = zip(chats, (True, False, True), strict=True)
            return await asyncio.gather(
                *(noisy.ainvoke(c, first_token_entropy=wanted) for c, wanted in asked)
            )

        key = "first_token_entropy"
        one, none, other = (message.response_metadata for message in asyncio.run(gather()))
        assert key not in none
        assert (one[key], other[key]) == (pytest.approx(alone[0][key]), pytest.approx(alone[2][key]))
        assert one[key] != pytest.approx(other[key], abs=1e-6)

    def test_a_streamed_answer_reports_it_too(self, noisy):
        last = list(noisy.stream(QUESTION, first_token_entropy=True))[-1]
        assert last.response_metadata["first_token_entropy"] > 0

    def test_a_wish_for_an_entropy_is_true_or_false(self, noisy):
        with pytest.raises(ValueError, match="first_token_entropy=2"):
            noisy.invoke(QUESTION, first_token_entropy=2)


class TestBatches:
    CHATS = tuple([HumanMessage("why " * n), AIMessage("so" * (n % 3))] for n in (1, 40, 3, 17, 2, 9, 5, 30))

    @pytest.fixture
    def single(self, noisy):
        return [noisy.invoke(chat) for chat in self.CHATS]

    def batches_of(self, model):
        """Records the batch sizes of a model."""
        worker = model._load().worker
        sizes = []
        run = worker._run
        worker._run = lambda jobs: (sizes.append(len(jobs)), run(jobs))[1]
        return sizes

    @staticmethod
    def facts(answers):
        return [(a.content, a.usage_metadata, a.response_metadata) for a in answers]

    async def test_tasks_run_together_and_answer_as_alone(self, noisy, single):
        sizes = self.batches_of(noisy)
        together = await asyncio.gather(*(noisy.ainvoke(chat) for chat in self.CHATS))
        assert self.facts(together) == self.facts(single)
        assert sizes == [len(self.CHATS)]

    def test_threads_run_together_and_answer_as_alone(self, noisy, single):
        sizes = self.batches_of(noisy)
        together = noisy.batch(self.CHATS)
        assert self.facts(together) == self.facts(single)
        assert len(sizes) < len(self.CHATS)

    def test_every_row_keeps_its_own_settings(self, reciter):
        asked = [
            {"stop": ["\n\n"]},
            {"max_tokens": 2},
            {},
            {"stop": ["add"], "logprobs": True},
            {"temperature": 0.01, "seed": 3},
        ]
        alone = [reciter.invoke(QUESTION, **kwargs) for kwargs in asked]

        async def gather():
            return await asyncio.gather(*(reciter.ainvoke(QUESTION, **kwargs) for kwargs in asked))

        sizes = self.batches_of(reciter)
        for one, other in zip(alone, asyncio.run(gather()), strict=True):
            assert one.content == other.content
            assert one.usage_metadata == other.usage_metadata
            assert one.response_metadata == pytest.approx(other.response_metadata)
        assert sizes == [len(asked)]

    def test_one_event_loop_after_another(self, reciter):
        for _ in range(3):
            assert asyncio.run(reciter.ainvoke(QUESTION)).content == SCRIPT

    async def test_no_batch_exceeds_max_batch_size(self, random_model):
        model = ChatTransformers(model=str(random_model), max_tokens=4, max_batch_size=3)
        sizes = self.batches_of(model)
        await asyncio.gather(*(model.ainvoke(QUESTION) for _ in range(7)))
        assert sizes == [3, 3, 1]

    def test_rows_that_would_leave_the_models_positions_get_their_own_batch(self, noisy):
        fits = noisy._load()._fits
        job = lambda prompt, new: GenerationJob([1] * prompt, CallSettings(max_tokens=new), batch_limit=9)  # noqa: E731
        assert fits([job(100, 10)], job(90, 400))
        assert not fits([job(500, 10)], job(90, 400))

    def test_prompts_of_very_different_length_get_their_own_batches(self, noisy):
        engine = copy.copy(noisy._load())
        engine.max_positions = None
        job = lambda prompt: GenerationJob([1] * prompt, CallSettings(max_tokens=1), batch_limit=9)  # noqa: E731
        assert engine._fits([job(10)], job(1000))
        assert not engine._fits([job(10)] * 3, job(4000))
        assert engine._fits([job(3900)] * 3, job(4000))

    async def test_an_error_reaches_every_call_and_the_next_one_works(self, noisy, monkeypatch):
        engine = noisy._load()

        def fail(*args, **kwargs):
            raise MemoryError("out of memory")

        with monkeypatch.context() as patched:
            patched.setattr(engine._model, "generate", fail)
            outcomes = await asyncio.gather(
                *(noisy.ainvoke(QUESTION) for _ in range(3)), return_exceptions=True
            )
        assert [str(outcome) for outcome in outcomes] == ["out of memory"] * 3
        assert (await noisy.ainvoke(QUESTION)).content


class TestStreams:
    STOPS = ([], ["\n\n"], ["4.\n\nThe answer"], ["t, a", "and"])

    @pytest.mark.parametrize("stop", STOPS)
    async def test_chunks_make_up_the_answer(self, reciter, stop):
        whole = reciter.invoke(QUESTION, stop=stop)
        chunks = list(reciter.stream(QUESTION, stop=stop))
        achunks = [chunk async for chunk in reciter.astream(QUESTION, stop=stop)]
        for seen in (chunks, achunks):
            assert "".join(chunk.content for chunk in seen) == whole.content
            assert len(seen) > 2
            assert seen[-1].usage_metadata == whole.usage_metadata
            assert seen[-1].response_metadata == whole.response_metadata
            assert seen[-1].chunk_position == "last"
            assert not any(chunk.usage_metadata or chunk.response_metadata for chunk in seen[:-1])

    @pytest.mark.parametrize("seed", range(6))
    def test_chunks_of_noise_make_up_the_answer(self, noisy, seed):
        kwargs = {"temperature": 1.5, "seed": seed, "stop": ["a", "\n"], "max_tokens": 60}
        chunks = [chunk.content for chunk in noisy.stream(QUESTION, **kwargs)]
        assert "".join(chunks) == noisy.invoke(QUESTION, **kwargs).content

    def test_what_may_begin_a_stop_string_is_held_back(self, reciter):
        chunks = [chunk.content for chunk in reciter.stream(QUESTION, stop=["add 3 and 5"])]
        assert "".join(chunks) == SCRIPT
        assert next(i for i, c in enumerate(chunks) if "a" in c) == next(
            i for i, c in enumerate(chunks) if "4" in c
        )

    def test_a_character_of_several_tokens_is_streamed_whole(self, script_model):
        text = "a😀é"
        model = ChatTransformers(model=str(script_model(text)))
        assert [c.content for c in model.stream(QUESTION) if c.content] == ["a", "😀", "é"]
        cut = model.invoke(QUESTION, max_tokens=3)
        assert cut.content == "a"
        assert cut.usage_metadata["output_tokens"] == 3

    async def test_events_of_a_call_report_the_usage(self, reciter):
        ends = [
            event["data"]["output"]
            async for event in reciter.astream_events(QUESTION, version="v2")
            if event["event"] == "on_chat_model_end"
        ]
        assert ends[0].content == SCRIPT
        assert ends[0].response_metadata["stop_reason"] is None
        assert ends[0].usage_metadata["output_tokens"] > 0


class TestLeaving:
    """A caller who leaves frees the worker at the next token, not after max_tokens."""

    @pytest.fixture
    def slow(self, endless, monkeypatch):
        """Every token takes 10 ms, so the 400 asked for take 4 s."""
        push = Row.push

        def push_slowly(row, token, probability):
            time.sleep(0.01)
            push(row, token, probability)

        endless.invoke(QUESTION, max_tokens=1)
        monkeypatch.setattr(Row, "push", push_slowly)
        return endless.model_copy(update={"max_tokens": 400})

    def check_free(self, slow):
        start = time.monotonic()
        slow.invoke(QUESTION, max_tokens=1)
        assert time.monotonic() - start < 1.5

    async def test_a_cancelled_task_frees_the_model(self, slow):
        task = asyncio.create_task(slow.ainvoke(QUESTION))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(self.check_free, slow)

    async def test_cancelling_one_task_leaves_its_neighbours(self, slow):
        tasks = [asyncio.create_task(slow.ainvoke(QUESTION, max_tokens=n)) for n in (400, 30)]
        await asyncio.sleep(0.1)
        tasks[0].cancel()
        assert (await tasks[1]).usage_metadata["output_tokens"] == 30

    def test_a_stream_closed_early(self, slow):
        stream = slow.stream(QUESTION)
        next(stream)
        stream.close()
        self.check_free(slow)

    async def test_an_async_stream_closed_early(self, slow):
        stream = slow.astream(QUESTION)
        await anext(stream)
        await stream.aclose()
        await asyncio.to_thread(self.check_free, slow)

    async def test_the_loop_runs_on_while_the_model_writes(self, slow):
        task = asyncio.create_task(slow.ainvoke(QUESTION, max_tokens=30))
        beats = 0
        while not task.done():
            await asyncio.sleep(0.005)
            beats += 1
        assert beats >= 20

    async def test_a_time_limit_passes_in_the_queue(self, slow):
        first = asyncio.create_task(slow.ainvoke(QUESTION, max_tokens=100))
        await asyncio.sleep(0.1)
        answer = await slow.ainvoke(QUESTION, timeout=0.1)
        assert not first.done()
        assert answer.content == ""
        assert answer.response_metadata["timed_out"] is True
        assert answer.usage_metadata["output_tokens"] == 0
        await first


class TestSettings:
    @pytest.mark.parametrize(
        ("kwargs", "complaint"),
        [
            ({"max_tokens": 0}, "max_tokens=0"),
            ({"max_tokens": 2.5}, "max_tokens=2.5"),
            ({"temperature": -1}, "temperature=-1"),
            ({"temperature": math.nan}, "temperature=nan"),
            ({"top_p": 0.0}, "top_p=0.0"),
            ({"seed": "x"}, "seed='x'"),
            ({"timeout": 0}, "timeout=0"),
            ({"stop": ["a", ""]}, "non-empty"),
            ({"max_new_tokens": 3, "beams": 2}, "beams, max_new_tokens"),
        ],
    )
    def test_a_call_refuses_what_it_cannot_do(self, noisy, kwargs, complaint):
        with pytest.raises(ValueError, match=complaint):
            noisy.invoke(QUESTION, **kwargs)

    def test_none_means_the_models_own(self, reciter):
        assert reciter.invoke(QUESTION, max_tokens=None, stop=None, seed=None, timeout=None).content == SCRIPT

    def test_one_stop_string_may_stand_alone(self, reciter):
        assert reciter.invoke(QUESTION, stop="\n\n").content == "First, add 3 and 4."

    def test_bound_settings_and_stops(self, reciter):
        assert reciter.bind(stop=[","], max_tokens=50).invoke(QUESTION).content == "First"

    @pytest.mark.parametrize(
        "kwargs",
        [{"max_tokens": 0}, {"temperature": -0.1}, {"top_p": 1.1}, {"dtype": "int3"}, {"max_batch_size": 0}],
    )
    def test_the_constructor_refuses_nonsense(self, random_model, kwargs):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            ChatTransformers(model=str(random_model), **kwargs)

    def test_a_model_folder_that_does_not_exist_is_refused(self, tmp_path):
        for missing in (str(tmp_path / "none"), "./none", "a/b/c"):
            with pytest.raises(ValueError, match="no such folder"):
                ChatTransformers(model=missing)

    def test_a_folder_that_is_no_model(self, tmp_path):
        with pytest.raises(ValueError, match=r"no config\.json"):
            ChatTransformers(model=tmp_path)

    def test_a_hub_id_is_not_looked_up_at_construction(self):
        assert ChatTransformers(model="Qwen/none").model == "Qwen/none"

    def test_a_device_that_is_not_known_is_refused(self, random_model):
        with pytest.raises(ValueError, match="device='abacus'"):
            ChatTransformers(model=str(random_model), device="abacus").invoke(QUESTION)

    def test_auto_device_and_dtype(self, random_model, noisy):
        auto = ChatTransformers(model=random_model, device="auto", dtype="auto", max_tokens=24)
        assert auto.invoke(QUESTION).content == noisy.invoke(QUESTION).content

    def test_a_prompt_that_is_too_long(self, noisy):
        with pytest.raises(
            ContextLengthError, match=r"\d+ tokens; .* takes 511 at most .*max_position_embeddings=512"
        ):
            noisy.invoke("why " * 600)

    def test_tools_are_refused_when_tokens_are_counted(self, noisy):
        with pytest.raises(ValueError, match="tools"):
            noisy.get_num_tokens_from_messages(QUESTION, tools=[{"name": "f"}])


class TestSharing:
    def test_instances_of_one_folder_share_its_weights(self, random_model, noisy):
        other = ChatTransformers(model=str(random_model), temperature=0.5)
        assert other._load() is noisy._load()
        assert copy.deepcopy(noisy)._load() is noisy._load()
        assert noisy.model_copy()._load() is noisy._load()

    def test_a_pickle_holds_settings_only(self, noisy):
        noisy.invoke(QUESTION)
        again = pickle.loads(pickle.dumps(noisy))
        assert again._engine is None
        assert again.invoke(QUESTION).content == noisy.invoke(QUESTION).content

    def test_first_use_from_many_threads_loads_once(self, random_model, monkeypatch):
        from trim_graph.adapters.transformers import generation

        loads = []
        build = generation.GenerationEngine.__init__
        monkeypatch.setattr(
            generation.GenerationEngine, "__init__", lambda *args: (loads.append(1), build(*args))[1]
        )
        model = ChatTransformers(model=str(random_model), dtype="bfloat16", max_tokens=2)
        threads = [threading.Thread(target=model.invoke, args=("hi",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert loads == [1]

    def test_langchain_is_told_provider_and_model(self, noisy):
        assert noisy._llm_type == "trim-graph-transformers"
        assert noisy._identifying_params["model"] == noisy.model
        params = noisy._get_ls_params()
        assert (params["ls_provider"], params["ls_model_name"]) == ("transformers", noisy.model)
        assert noisy.model in repr(noisy)

    def test_importing_loads_neither_torch_nor_transformers(self):
        code = (
            "import sys, trim_graph.adapters as a; a.ChatTransformers, a.TransformersProcessReward, dir(a); "
            "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_a_missing_extra_says_how_to_install_it(self, random_model, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ImportError, match=r'pip install "trim-graph\[local\]"'):
            ChatTransformers(model=str(random_model), dtype="float16").invoke(QUESTION)

    def test_every_public_name_exists(self):
        from trim_graph import adapters

        for name in adapters.__all__:
            assert getattr(adapters, name).__name__ == name or name in ("StepEnd", "ScorerFunction")
        assert set(adapters.__all__) <= set(dir(adapters))
        with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
            _ = adapters.Nothing
