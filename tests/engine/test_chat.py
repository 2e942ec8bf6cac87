"""`ChatVLLMEngine` on real engines: prompts, ends, usage, probabilities."""

import asyncio
import copy
import pickle

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from trim_graph.adapters import ContextLengthError
from trim_graph.adapters.vllm import engine
from trim_graph.examples.arithmetic import SMALL, problems

from .conftest import chat, processes

PROBLEM = problems("standard", 1)[0]
CHAT = [HumanMessage(PROBLEM.question)]
STEPS = PROBLEM.solution.split("\n\n")

prefixes = st.lists(
    st.sampled_from(["\n", "\n\n", " ", "\t", "\r\n", "Step 1:", " 12", "é", "😀", "\\boxed{", "\u2028", "x"])
    | st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    min_size=1,
    max_size=8,
).map("".join)
live = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ending(message):
    return message.response_metadata["finish_reason"], message.response_metadata["stop_reason"]


@pytest.fixture
def read(monkeypatch) -> list[list[int]]:
    """The token ids that engines are given from now on."""
    seen: list[list[int]] = []
    usual = engine._tokens

    def noted(ids):
        seen.append(list(ids))
        return usual(ids)

    monkeypatch.setattr(engine, "_tokens", noted)
    return seen


class TestContinuation:
    @live
    @given(prefix=prefixes)
    @example(prefix="\n\nStep 1: 1 + 1 = 2.\n\n")
    @example(prefix="\n")
    @example(prefix=" ")
    @example(prefix="a<|im_end|>\n<|im_start|>user\n")
    def test_the_bytes_of_the_prefix_reach_the_model_as_text(self, small, read, prefix):
        small.invoke([*CHAT, AIMessage(prefix)], max_tokens=1)
        tokenizer = small._handle.engine().tokenizer
        before = f"<|im_start|>user\n{PROBLEM.question}<|im_end|>\n<|im_start|>assistant\n"
        text = tokenizer.backend_tokenizer.decode(read[-1], skip_special_tokens=False)
        assert text == before + prefix
        special = [token for token in read[-1] if token in tokenizer.all_special_ids]
        assert special == [token for token in tokenizer(before).input_ids if token in special]
        assert len(special) == 3

    @live
    @given(prefix=prefixes)
    def test_it_writes_what_transformers_write(self, small, local_small, prefix):
        messages = [*CHAT, AIMessage(prefix)]
        one, other = (m.invoke(messages, stop=["\n\n"], max_tokens=24) for m in (small, local_small))
        assert one.content == other.content
        assert ending(one) == ending(other)
        for count in ("input_tokens", "output_tokens"):
            assert one.usage_metadata[count] == other.usage_metadata[count]

    def test_a_system_message_and_earlier_turns(self, large, local_large):
        messages = [
            SystemMessage("Be exact."),
            *CHAT,
            AIMessage(PROBLEM.solution),
            HumanMessage(PROBLEM.question),
            AIMessage(STEPS[0] + "\n\n"),
        ]
        answer = large.invoke(messages)
        assert answer.content == local_large.invoke(messages).content
        assert large.count_prompt_tokens(messages) == answer.usage_metadata["input_tokens"]

    def test_tokens_are_counted_without_an_engine(self, small, local_small):
        before = len(processes())
        other = chat(SMALL, max_model_len=100)
        assert other.count_prompt_tokens(CHAT) == local_small.count_prompt_tokens(CHAT)
        assert other.get_token_ids("7 <|im_end|>") == local_small.get_token_ids("7 <|im_end|>")
        assert len(processes()) == before


class TestEnd:
    def test_delimiter_end_of_sequence_and_length(self, large):
        so_far = "".join(f"{step}\n\n" for step in STEPS[:-1])
        assert ending(large.invoke(CHAT, stop=["\n\n"])) == ("stop", "\n\n")
        assert ending(large.invoke([*CHAT, AIMessage(so_far)], stop=["\n\n"])) == ("stop", None)
        assert ending(large.invoke(CHAT)) == ("stop", None)
        assert ending(large.invoke(CHAT, max_tokens=2)) == ("length", None)
        assert large.invoke([*CHAT, AIMessage(so_far)]).content == STEPS[-1]

    def test_max_tokens_is_cut_to_the_room_behind_the_prompt(self, small):
        endless = small.model_copy(update={"sampling_params": {"ignore_eos": True}})
        answer = endless.invoke(CHAT, max_tokens=10_000)
        assert ending(answer) == ("length", None)
        assert answer.usage_metadata["total_tokens"] == 2048

    def test_a_prompt_that_is_too_long_is_refused(self, small):
        with pytest.raises(ContextLengthError, match=r"the prompt has \d+ tokens; .* takes 2047 at most"):
            small.invoke("why " * 3000)
        with pytest.raises(ContextLengthError, match=r"takes 2047 at most"):
            list(small.stream("why " * 3000))

    def test_a_setting_that_vllm_refuses_is_named(self, small):
        with pytest.raises(ValueError, match="vLLM refuses the call: temperature"):
            small.invoke(CHAT, temperature=5.0)
        with pytest.raises(ValueError, match=r"vLLM refuses the call: .*logprobs"):
            small.invoke(CHAT, top_logprobs=1000)
        wrong = small.model_copy(update={"sampling_params": {"topk": 3}})
        with pytest.raises(ValueError, match="topk"):
            wrong.invoke(CHAT)

    def test_sampling_is_the_calls_own(self, small, local_small):
        """A seed repeats; top_p and temperature of the model's generation_config do not leak in."""
        hot = {"temperature": 1.5, "seed": 7, "max_tokens": 30}
        assert small.invoke(CHAT, **hot).content == small.invoke(CHAT, **hot).content
        drawn = {small.invoke(CHAT, **{**hot, "seed": seed}).content for seed in range(6)}
        assert len(drawn) > 1
        assert small.invoke(CHAT, temperature=1.0, top_p=1e-6).content == local_small.invoke(CHAT).content


class TestUsage:
    @pytest.mark.parametrize("stop", [["\n\n"], []])
    async def test_streamed_or_not_it_is_the_same(self, small, stop):
        whole = small.invoke(CHAT, stop=stop, logprobs=True)
        awhole = await small.ainvoke(CHAT, stop=stop, logprobs=True, timeout=60)
        assert awhole.content == whole.content
        seen = list(small.stream(CHAT, stop=stop, logprobs=True))
        aseen = [chunk async for chunk in small.astream(CHAT, stop=stop, logprobs=True)]
        for chunks in (seen, aseen, [awhole]):
            assert "".join(chunk.content for chunk in chunks) == whole.content
            metadata = dict(chunks[-1].response_metadata)
            probability = metadata.pop("mean_token_probability")
            expected = dict(whole.response_metadata)
            assert probability == pytest.approx(expected.pop("mean_token_probability"), abs=1e-5)
            assert metadata == expected
            for count in ("input_tokens", "output_tokens", "total_tokens"):
                assert chunks[-1].usage_metadata[count] == whole.usage_metadata[count]
        assert len(seen) > 3
        assert len(aseen) > 3

    def test_usage_callbacks_see_each_call_once(self, small):
        with get_usage_metadata_callback() as usage:
            answer = small.invoke(CHAT)
            list(small.stream(CHAT))
        seen = usage.usage_metadata[str(SMALL)]
        assert seen["output_tokens"] == 2 * answer.usage_metadata["output_tokens"]

    def test_cached_prompt_tokens_are_reported(self, small):
        messages = [HumanMessage("count the words " * 60), AIMessage("so")]
        small.invoke(messages, max_tokens=1)
        for answer in (small.invoke(messages, max_tokens=1), list(small.stream(messages, max_tokens=1))[-1]):
            assert answer.usage_metadata["input_token_details"]["cache_read"] >= 128

    @pytest.mark.parametrize("stop", [["\n\n"], []])
    def test_mean_token_probability_is_that_of_transformers(self, small, local_small, stop):
        key = "mean_token_probability"
        one, other = (
            m.invoke(CHAT, stop=stop, logprobs=True).response_metadata for m in (small, local_small)
        )
        assert one[key] == pytest.approx(other[key], abs=1e-4)

    def test_top_log_probabilities_are_reported_in_order(self, small):
        for answer in (
            small.invoke(CHAT, max_tokens=3, top_logprobs=5),
            list(small.stream(CHAT, max_tokens=3, top_logprobs=5))[-1],
        ):
            reported = answer.response_metadata["logprobs"]["content"]
            assert len(reported) == 3
            for entry in reported:
                ranked = [top["logprob"] for top in entry["top_logprobs"]]
                assert len(ranked) == 5
                assert ranked == sorted(ranked, reverse=True)
                assert entry["logprob"] == pytest.approx(ranked[0])
            assert "".join(entry["token"] for entry in reported) == small.invoke(CHAT, max_tokens=3).content


class TestManyCalls:
    async def test_hundreds_of_calls_at_once_are_answered_as_alone(self, small):
        asked = problems("standard", 300)
        answers = await asyncio.gather(
            *(small.ainvoke(p.question, stop=["\n\n"], max_tokens=32) for p in asked)
        )
        assert all(ending(answer)[0] == "stop" for answer in answers)
        for problem, answer in list(zip(asked, answers, strict=True))[:3]:
            assert (await small.ainvoke(problem.question, stop=["\n\n"])).content == answer.content

    def test_calls_of_many_threads_are_answered_alike(self, small):
        answers = small.batch([CHAT] * 40, stop=["\n\n"])
        assert len({answer.content for answer in answers}) == 1

    def test_one_event_loop_after_another_and_two_at_once(self, small):
        async def ask():
            pieces = [chunk.content async for chunk in small.astream(CHAT)]
            return "".join(pieces), (await small.ainvoke(CHAT)).content

        async def from_threads():
            return await asyncio.gather(*(asyncio.to_thread(asyncio.run, ask()) for _ in range(4)))

        answers = [asyncio.run(ask()), asyncio.run(ask()), *asyncio.run(from_threads())]
        assert {text for pair in answers for text in pair} == {small.invoke(CHAT).content}

    def test_within_a_running_loop(self, small):
        async def main():
            return small.invoke(CHAT).content

        assert asyncio.run(main()) == small.invoke(CHAT).content

    async def test_the_loop_is_not_blocked(self, small):
        longest, last = 0.0, asyncio.get_running_loop().time()

        async def tick():
            nonlocal longest, last
            while True:
                await asyncio.sleep(0.005)
                now = asyncio.get_running_loop().time()
                longest, last = max(longest, now - last), now

        ticking = asyncio.create_task(tick())
        await asyncio.gather(*(small.ainvoke("count " * 600, max_tokens=4) for _ in range(4)))
        ticking.cancel()
        assert longest < 1.0


class TestSharing:
    def test_equal_settings_share_one_engine_and_two_models_do_not(self, small, large):
        small.invoke(CHAT, max_tokens=1)
        large.invoke(CHAT, max_tokens=1)
        before = len(processes())
        for other in (chat(SMALL, temperature=0.7), copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert other.invoke(CHAT, temperature=0.0).content == small.invoke(CHAT).content
            assert other._handle.engine() is small._handle.engine()
            other.close()
        assert len(processes()) == before
        assert large._handle.engine() is not small._handle.engine()
