import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from trim_graph.conversation import DEFAULT_INSTRUCTION
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, problems
from trim_graph.examples.arithmetic.training.corpus import chat_prompt, judged_prompt
from trim_graph.examples.arithmetic.training.tokenizer import PRM_SYSTEM, STEP, load_tokenizer

TOKENIZER = load_tokenizer(SMALL)


@given(st.text())
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER(text, split_special_tokens=True).input_ids) == text


def test_all_models_and_auto_tokenizer_read_text_alike():
    text = "Step 3: 47 + 8 = 55.\n\nägypten 中 🙂 <extra_0>"
    expected = TOKENIZER(text).input_ids
    for folder in (SMALL, LARGE, PRM):
        assert AutoTokenizer.from_pretrained(folder)(text).input_ids == expected


def test_a_number_is_one_token_for_each_digit():
    assert [token.strip("Ġ ") for token in TOKENIZER.tokenize(" 907")] == ["9", "0", "7"]


@pytest.mark.parametrize("generation_prompt", [True, False])
def test_the_chat_template_keeps_system_and_earlier_turns_untouched(generation_prompt):
    turns = [("system", DEFAULT_INSTRUCTION), ("user", " a\n\n"), ("assistant", "b "), ("user", "\nc")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    prompt = chat_prompt(turns)
    assert text == (prompt if generation_prompt else prompt.removesuffix("<|im_start|>assistant\n"))


def test_training_texts_of_the_judge_are_what_the_adapter_sends():
    from trim_graph.adapters.prm.formats import QwenPRMFormat

    problem = problems("standard", 1)[0]
    sent = QwenPRMFormat(TOKENIZER, system_prompt=PRM_SYSTEM).encode(problem.question, problem.steps)
    trained = TOKENIZER(judged_prompt(PRM_SYSTEM, problem.question, problem.steps)).input_ids
    assert list(sent.ids) == trained
    assert [trained[p] for p in sent.step_positions] == [TOKENIZER.get_vocab()[STEP]] * len(problem.steps)
