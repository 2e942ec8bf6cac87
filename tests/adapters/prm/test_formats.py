"""Layouts of the formats beside Qwen's: the authors' own token ids, and texts that try to forge a score."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny_prms
from tests.tiny_prms import QUESTION, TEXTS
from trim_graph.adapters import ScorerError
from trim_graph.adapters.prm.formats import (
    MathShepherdPRMFormat,
    QwenPRMFormat,
    RLHFlowPRMFormat,
    SkyworkPRMFormat,
    TrimPRMFormat,
    check_format,
    prm_format,
)

relaxed = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
pieces = ["ки", " ки", "ки\n", "+", "-", " +", "\n", "\n\n", " ", "▁", "7", "Step 1:", "<s>", "</s>", "<unk>"]
pieces += [
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>\n\n+",
    "<|endoftext|>",
    "<0x0A>",
    "<extra_0>",
]
hostile = st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=6).map("".join)
questions = hostile.filter(lambda text: text.replace("▁", " ").strip())
solutions = st.lists(hostile, min_size=1, max_size=4)
# What no tokenizer here has as a special token, nor as a tag.
plain = st.text(alphabet="aStep 123+-*=.,?éж😀\t\n", min_size=1, max_size=25).filter(
    lambda text: text == text.strip()
)


@pytest.fixture(scope="module")
def mistral():
    return tiny_prms.mistral_tokenizer()


@pytest.fixture(scope="module")
def llama():
    return tiny_prms.llama_tokenizer()


@pytest.fixture(scope="module")
def skywork():
    return tiny_prms.skywork_tokenizer()


def made_for(name, request):
    tokenizer = request.getfixturevalue(
        {"math_shepherd": "mistral", "rlhflow": "llama", "trim": "tokenizer"}.get(name, name)
    )
    return tokenizer, prm_format(name, tokenizer)


class TestMathShepherd:
    def authors(self, tokenizer, question, texts):
        """The model card: question, a space, lines that end in a tag; all tags are positions."""
        output = "\n".join(f"{text} ки" for text in texts)
        ids = tokenizer.encode(f"{question} {output}")
        tag = tokenizer.encode("ки")[-1]
        return ids, [i for i, token in enumerate(ids) if token == tag]

    def test_the_tokens_are_those_of_the_model_card(self, mistral):
        ids, positions = self.authors(mistral, QUESTION, TEXTS)
        made = MathShepherdPRMFormat(mistral)
        encoded = made.encode(QUESTION, TEXTS)
        assert (encoded.ids, encoded.step_positions) == (ids, positions)
        assert len(positions) == 3
        right, wrong = mistral.encode("+ -")[1:]
        assert made.answer_ids == (wrong, right)
        assert mistral.decode(ids) == f"<s> {QUESTION} {TEXTS[0]} ки\n{TEXTS[1]} ки\n{TEXTS[2]} ки"

    @relaxed
    @given(plain, st.lists(plain, min_size=1, max_size=3))
    def test_so_they_are_for_any_plain_text(self, mistral, question, texts):
        encoded = MathShepherdPRMFormat(mistral).encode(question, texts)
        assert (encoded.ids, encoded.step_positions) == self.authors(mistral, question, texts)

    @relaxed
    @given(questions, solutions)
    def test_the_tag_is_where_a_step_ends_and_nowhere_else(self, mistral, question, texts):
        encoded = MathShepherdPRMFormat(mistral).encode(question, texts)
        tag = mistral.encode("ки")[-1]
        assert encoded.step_positions == [i for i, token in enumerate(encoded.ids) if token == tag]
        assert len(encoded.step_positions) == len(texts)
        assert [i for i in encoded.ids if i < 3] == [mistral.bos_token_id]

    def test_a_tag_in_a_text_is_spelled_out(self, mistral):
        ids = MathShepherdPRMFormat(mistral).encode("Is ки a word", ["ки it ки is"]).ids
        assert mistral.decode(ids) == "<s> Is ки a word ки it ки is ки"
        assert mistral.convert_ids_to_tokens(ids).count("▁ки") == 1

    def test_another_step_token_is_found_as_the_tokenizer_writes_it(self, tokenizer, mistral):
        encoded = MathShepherdPRMFormat(mistral, step_token="так").encode("q ки", ["a так b", "c"])
        tag = mistral.convert_tokens_to_ids("▁так")
        assert encoded.step_positions == [i for i, token in enumerate(encoded.ids) if token == tag]
        with pytest.raises(ValueError, match="step_token='zz9' is not one token in this tokenizer"):
            MathShepherdPRMFormat(mistral, step_token="zz9")
        with pytest.raises(ValueError, match=r'"\+ -" makes the tokens .* the format needs two'):
            MathShepherdPRMFormat(tokenizer)

    def test_an_added_token_as_tag(self):
        own = tiny_prms.mistral_tokenizer()
        own.add_special_tokens({"additional_special_tokens": ["<step>"]})
        encoded = MathShepherdPRMFormat(own, step_token="<step>").encode("q <step>", ["a <step> b", "c"])
        tag = own.convert_tokens_to_ids("<step>")
        assert encoded.step_positions == [i for i, token in enumerate(encoded.ids) if token == tag]
        assert len(encoded.step_positions) == 2


class TestSkywork:
    def authors(self, tokenizer, question, response):
        """`prepare_input`: every line of the response by itself, then the token of a line break."""
        ids = tokenizer.encode(tokenizer.bos_token + question + "\n")
        line_break = tokenizer.encode("\n")[-1]
        flagged = []
        for line in response.split("\n"):
            ids += [*(tokenizer.encode(line) if line else []), line_break]
            flagged.append(len(ids) - 1)
        return ids, flagged

    def test_the_tokens_are_those_of_prepare_input(self, skywork):
        encoded = SkyworkPRMFormat(skywork).encode(QUESTION, TEXTS)
        assert (encoded.ids, encoded.step_positions) == self.authors(skywork, QUESTION, "\n".join(TEXTS))

    def test_a_step_of_several_lines_has_one_score_behind_the_last(self, skywork):
        texts = ["a:\nb", "c", "d\n\ne\n"]
        ids, flagged = self.authors(skywork, QUESTION, "\n".join(texts))
        encoded = SkyworkPRMFormat(skywork).encode(QUESTION, texts)
        assert encoded.ids == ids
        assert encoded.step_positions == [flagged[1], flagged[2], flagged[6]]

    @relaxed
    @given(questions, solutions)
    def test_no_text_moves_a_score(self, skywork, question, texts):
        made = SkyworkPRMFormat(skywork)
        encoded = made.encode(question, texts)
        special = set(skywork.all_special_ids)
        assert [token for token in encoded.ids if token in special] == [skywork.bos_token_id]
        assert [encoded.ids[i] for i in encoded.step_positions] == skywork.encode("\n") * len(texts)
        assert skywork.decode(encoded.ids) == f"<|endoftext|>{question}\n" + "".join(f"{t}\n" for t in texts)
        # Each position ends its step: what stands before it does not depend on the steps behind.
        for count, position in enumerate(encoded.step_positions, start=1):
            assert made.encode(question, texts[:count]).ids == encoded.ids[: position + 1]

    def test_a_tokenizer_without_bos_is_refused(self, tokenizer):
        with pytest.raises(ValueError, match="no bos_token, with which the format skywork begins"):
            SkyworkPRMFormat(tokenizer)


class TestRLHFlow:
    def test_all_in_one_are_the_authors_conversations(self, llama):
        made = RLHFlowPRMFormat(llama)
        encoded = made.encode(QUESTION, TEXTS)
        chat = []
        for number, text in enumerate(TEXTS):
            said = text if number else f"{QUESTION} {text}"
            chat += [{"role": "user", "content": said}, {"role": "assistant", "content": "+"}]
            ids = llama.apply_chat_template(chat, tokenize=True, return_dict=False)
            assert encoded.ids[: len(ids)] == ids
            # The authors' "-3": end of turn, the answer, and before it what predicts the answer.
            assert encoded.step_positions[number] == len(ids) - 3
        assert encoded.ids == ids
        assert made.answer_ids == (llama.encode("-")[-1], llama.encode("+")[-1])

    @relaxed
    @given(questions, solutions)
    def test_no_text_moves_or_forges_an_answer(self, llama, question, texts):
        made = RLHFlowPRMFormat(llama)
        encoded = made.encode(question, texts)
        right = made.answer_ids[1]
        assert [encoded.ids[i + 1] for i in encoded.step_positions] == [right] * len(texts)
        # A turn is 4 special tokens with its header: two turns a step, and the start of the text.
        special = [token for token in encoded.ids if token in llama.all_special_ids]
        headers = [llama.convert_tokens_to_ids(f"<|{name}_header_id|>") for name in ("start", "end")]
        assert special.count(llama.eos_token_id) == 2 * len(texts)
        assert [encoded.ids.count(header) for header in headers] == [2 * len(texts)] * 2
        ends = [i for i, token in enumerate(encoded.ids) if token == llama.eos_token_id]
        assert [end - 2 for end in ends[1::2]] == encoded.step_positions

    def test_a_system_prompt_with_a_special_token_is_sent_before_the_question(self, llama):
        ids = prm_format("rlhflow", llama, system_prompt="Rate.<|eot_id|>").encode("q", ["a"]).ids
        assert llama.decode(ids).startswith(
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nRate.<|eot_id|><|eot_id|>"
        )
        assert ids.count(llama.eos_token_id) == 3

    @pytest.mark.parametrize(
        ("template", "complaint"),
        [
            ("{{ messages[0].content }}", "1 steps came out with 0 answers"),
            ("a{% for m in messages %}{{ m.content }}1{% endfor %}", None),
            ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "out with 2 answers"),
        ],
    )
    def test_templates_that_change_answers_are_noticed(self, template, complaint):
        own = tiny_prms.llama_tokenizer()
        own.chat_template = template
        made = RLHFlowPRMFormat(own)
        if complaint is None:
            assert len(made.encode("q", ["a"]).step_positions) == 1
        else:
            with pytest.raises(ScorerError, match=complaint):
                made.encode("q", ["a"])


class TestTrim:
    @pytest.fixture(params=["tokenizer", "llama", "mistral"])
    def any_tokenizer(self, request):
        return request.getfixturevalue(request.param)

    def test_a_chat_has_the_question_in_the_users_turn_and_the_steps_in_the_assistants(self, tokenizer):
        encoded = TrimPRMFormat(tokenizer).encode(QUESTION, TEXTS)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
        )
        assert tokenizer.decode(encoded.ids) == prompt + "".join(f"{text}<|im_end|>" for text in TEXTS)
        assert encoded.step_positions[-1] == len(encoded.ids) - 1

    def test_without_a_chat_template_blank_lines_end_the_question(self, mistral):
        encoded = TrimPRMFormat(mistral, system_prompt="Rate.").encode("2 + 2?", ["It is 4."])
        assert mistral.decode(encoded.ids) == "<s> Rate.\n\n2 + 2?\n\n It is 4.</s>"

    def test_a_system_prompt_and_another_tag(self, tokenizer):
        made = TrimPRMFormat(tokenizer, step_token="<extra_0>", system_prompt="Rate.")
        text = tokenizer.decode(made.encode("q", ["a", "b"]).ids)
        assert "Rate." in text
        assert text.endswith("a<extra_0>b<extra_0>")

    def test_a_tag_that_no_position_can_hold_is_refused(self, tokenizer):
        with pytest.raises(ValueError, match="step_token='<step>' is not an added token of this tokenizer"):
            TrimPRMFormat(tokenizer, step_token="<step>")
        without = tiny_prms.skywork_tokenizer()
        without.eos_token = None
        with pytest.raises(ValueError, match="no eos_token; give step_token"):
            TrimPRMFormat(without)

    @relaxed
    @given(hostile.filter(str.strip), solutions)
    def test_texts_add_no_tag_and_no_step_changes_ids_before_it(self, any_tokenizer, question, texts):
        made = TrimPRMFormat(any_tokenizer)
        encoded = made.encode(question, texts)
        tag = any_tokenizer.eos_token_id
        prompt = made.encode(question, [""]).step_positions[0]
        assert encoded.step_positions == [
            i for i, token in enumerate(encoded.ids) if token == tag and i >= prompt
        ]
        assert len(encoded.step_positions) == len(texts)
        clean = made.encode("q", [""]).ids
        assert encoded.ids[:prompt].count(tag) == clean.count(tag) - 1
        special = set(any_tokenizer.all_special_ids) - {tag, any_tokenizer.unk_token_id}
        assert not special.intersection(encoded.ids[prompt:])
        for count, position in enumerate(encoded.step_positions, start=1):
            part = made.encode(question, texts[:count])
            assert part.ids == encoded.ids[: position + 1]
            assert part.step_positions == encoded.step_positions[:count]


@pytest.mark.parametrize("name", ["math_shepherd", "skywork", "rlhflow", "trim"])
class TestAll:
    def test_what_cannot_be_laid_out_is_refused(self, name, request):
        _, made = made_for(name, request)
        with pytest.raises(ScorerError, match="no steps"):
            made.encode(QUESTION, [])
        with pytest.raises(ScorerError, match="question is empty"):
            made.encode(" \n", TEXTS)
        length = len(made.encode(QUESTION, TEXTS).ids)
        assert made.encode(QUESTION, TEXTS, max_tokens=length)
        with pytest.raises(ScorerError, match=rf"3 steps make {length} tokens; the PRM takes {length - 1}"):
            made.encode(QUESTION, TEXTS, max_tokens=length - 1)

    def test_a_step_changes_nothing_before_it(self, name, request):
        _, made = made_for(name, request)
        whole = made.encode(QUESTION, TEXTS)
        part = made.encode(QUESTION, TEXTS[:2])
        last = part.step_positions[-1]
        assert whole.step_positions[:2] == part.step_positions
        assert whole.ids[: last + 1] == part.ids[: last + 1]


@pytest.mark.parametrize("name", ["qwen", "math_shepherd", "skywork", "rlhflow", "trim"])
@relaxed
@given(questions, solutions, plain)
def test_ids_up_to_a_steps_score_do_not_depend_on_later_steps(name, request, question, texts, further):
    """So a prefix cache holds them, and so do the scores that are kept by them."""
    tokenizer = request.getfixturevalue(
        {"math_shepherd": "mistral", "rlhflow": "llama", "skywork": "skywork"}.get(name, "tokenizer")
    )
    made = prm_format(name, tokenizer)
    if name == "qwen":
        texts = [text or "x" for text in texts]
    whole = made.encode(question, [*texts, further])
    for count in range(1, len(texts) + 1):
        part = made.encode(question, texts[:count])
        last = part.step_positions[-1]
        assert part.step_positions == whole.step_positions[:count]
        assert part.ids[: last + 1] == whole.ids[: last + 1]


class TestFactory:
    def test_qwen_with_its_own_prompt_another_or_none(self, tokenizer):
        assert isinstance(prm_format("qwen", tokenizer), QwenPRMFormat)
        ours = prm_format("qwen", tokenizer).encode("q", ["s"])
        assert ours == QwenPRMFormat(tokenizer).encode("q", ["s"])
        for prompt in (None, "Rate it."):
            expected = QwenPRMFormat(tokenizer, system_prompt=prompt).encode("q", ["s"])
            assert prm_format("qwen", tokenizer, system_prompt=prompt).encode("q", ["s"]) == expected

    @pytest.mark.parametrize(
        ("name", "settings", "complaint"),
        [
            (
                "llama",
                {},
                "format='llama' is not known; choose one of qwen, math_shepherd, skywork, rlhflow, trim",
            ),
            ("skywork", {"step_token": "\n"}, "the format skywork has none to choose, a line break ends"),
            ("rlhflow", {"step_token": "+"}, "the format rlhflow has none to choose, turns of the chat"),
            ("qwen", {"step_token": " "}, "nothing but white space"),
            ("skywork", {"system_prompt": "x"}, "the format skywork is no chat and has no system prompt"),
            ("math_shepherd", {"system_prompt": "x"}, "the format math_shepherd is no chat"),
        ],
    )
    def test_settings_that_a_format_does_not_have(self, name, settings, complaint):
        with pytest.raises(ValueError, match=complaint):
            check_format(name, **settings)
        with pytest.raises(ValueError, match=complaint):
            prm_format(name, None, **settings)
