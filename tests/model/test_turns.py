"""Which texts a chat model is asked, and which it continues."""

from typing import Any

import pytest
from fakes import tiny_tokenizer

from ttrl_pop.model.turns import notice_of_turns, template_marks, with_turns
from ttrl_pop.read.question import INSTRUCTION
from ttrl_pop.types import Problem

LOOP = "{% for m in messages %}"
TEMPLATES = {
    "chatml": LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    "llama-2": LOOP + "<s>[INST] {{ m.content }} [/INST]{% endfor %}",
    "gemma": "<s>" + LOOP + "<start_of_turn>user\n{{ m.content }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n",
    "vicuna": "A chat of a user and a helper. " + LOOP + "USER: {{ m.content }} {% endfor %}ASSISTANT:",
    "alpaca": "Answer.\n\n" + LOOP + "### Instruction:\n{{ m.content }}\n\n{% endfor %}### Response:\n",
    "zephyr": LOOP + "<|user|>\n{{ m.content }}</s>\n{% endfor %}<|assistant|>\n",
    "r1": "<s>" + LOOP + "<｜User｜>{{ m.content }}{% endfor %}<｜Assistant｜><think>\n",
    "plain": LOOP + "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:",
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "!", "\n"]
MARKED = {
    "chatml": ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hi<|im_end|>"],
    "llama-2": ["[INST] Hi [/INST]", "<s>Hi", "Hi</s>"],
    "gemma": ["<start_of_turn>user\nHi", "<s>Hi"],
    "vicuna": ["USER: Hi ASSISTANT:", "Q\nASSISTANT:"],
    "alpaca": ["### Instruction:\nHi", "Hi\n\n### Response:\n"],
    "zephyr": ["<|user|>\nHi</s>\n<|assistant|>\n", "Hi</s>"],
    "r1": ["<｜User｜>Hi<｜Assistant｜>"],
    "plain": ["user: Hi\nassistant:", "Hi\nassistant:"],
}
QUESTIONS = [
    "What is 2 + 2?",
    "Which user is the assistant of the system?",
    "A superuser: who is that!",
    "Name a model.\nAnswer briefly.",
    "Q: What is 7 times 8?\nA:",
    r"Let $x < 3$ and $y > [2]$. Find |x|.",
    "Wie groß ist 2 < s > 1?",
]


def tokenizer_of(family: str | None) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = None if family is None else TEMPLATES[family]
    return tokenizer


def texts(*prompts: str) -> tuple[Problem, ...]:
    return tuple(Problem(str(i), prompt, i) for i, prompt in enumerate(prompts))


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_bare_question_becomes_the_turn_that_a_question_field_is(family: str, question: str) -> None:
    (asked,) = with_turns(tokenizer_of(family), texts(question))
    assert asked.prompt == ({"role": "user", "content": f"{question}\n\n{INSTRUCTION}"},)


@pytest.mark.parametrize(("family", "text"), [(family, text) for family, all_ in MARKED.items() for text in all_])
def test_a_text_that_holds_marks_of_the_template_stays_as_it_is(family: str, text: str) -> None:
    assert with_turns(tokenizer_of(family), texts(text)) == texts(text)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_model_without_a_template_or_with_one_that_takes_no_turn_continues(question: str) -> None:
    assert with_turns(tokenizer_of(None), texts(question)) == texts(question)
    refusing = tokenizer_of("plain")
    refusing.chat_template = "{{ raise_exception('no') }}"
    assert template_marks(refusing) is None
    assert with_turns(refusing, texts(question)) == texts(question)


def test_done_again_it_changes_nothing() -> None:
    chat = Problem("c", ({"role": "user", "content": "Hi"},), 2)
    tokenizer = tokenizer_of("plain")
    once = with_turns(tokenizer, (*texts("Hi", "user: Hi"), chat))
    assert [problem.is_chat for problem in once] == [True, False, True]
    assert once[2] == chat
    assert with_turns(tokenizer, once) == once


def test_the_notice_counts_and_says_how_to_undo_it() -> None:
    before = (*texts("Hi", "user: Hi", "Ho"), Problem("c", ({"role": "user", "content": "Hi"},), 3))
    after = with_turns(tokenizer_of("plain"), before)
    told = notice_of_turns(before, after)
    assert told is not None
    assert told.startswith("2 text prompts made chat turns that ask for a boxed answer")
    assert "(1 others hold its marks and stay as they are); --raw leaves them as they stand" in told
    assert notice_of_turns(before, before) is None
    assert notice_of_turns(after, after) is None
