"""Prompts are the same tokens whenever they are rendered."""

import datetime
import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import transformers.utils.chat_template_utils as templates
from fakes import tiny_model, tiny_policy, tiny_session, tiny_tokenizer
from tokenizers import normalizers, processors

from ttrl_pop.config import Config
from ttrl_pop.config_file import dump_config, validate
from ttrl_pop.errors import UsageError
from ttrl_pop.model.prompts import Prompts, decode, encode, has_special_marks, opens_thoughts, tokenizer_fingerprint
from ttrl_pop.run.session import resolve
from ttrl_pop.thoughts import spoken
from ttrl_pop.types import Problem

MODEL = tiny_model()
PROBLEM = Problem("p", ({"role": "user", "content": "What is 7 times 8?"},), 0)
DATED = """
{%- if strftime_now is defined %}
    {%- set today = strftime_now("%d %b %Y") %}
{%- endif %}
  today: {{ today }}, {{ strftime_now('%Y-%m-%d') }}
{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}
{% endfor %}"""


def with_template(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that templates are given, years ahead."""

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Later":
            return cls(2031, 5, 17)

    monkeypatch.setattr(templates, "datetime", Later)


def test_a_template_that_prints_the_date_is_told_the_day_that_is_asked_for(later: None) -> None:
    tokenizer = with_template(DATED)
    day = datetime.date(2026, 1, 9)
    text = tokenizer.decode(encode(tokenizer, PROBLEM, day))
    assert "today: 09 jan 2026, 2026-01-09".casefold() in text.casefold()
    assert "2031" in tokenizer.decode(encode(tokenizer, PROBLEM))


@pytest.mark.parametrize("template", [DATED, DATED.strip(), "\n\n" + DATED, "{{ messages[0]['content'] }}"])
def test_the_rest_of_the_template_is_as_it_was(template: str) -> None:
    tokenizer = with_template(template)
    assert encode(tokenizer, PROBLEM, datetime.date.today()) == encode(tokenizer, PROBLEM)


def test_prompts_of_a_run_do_not_change_overnight(later: None) -> None:
    model = tiny_model()
    model.tokenizer.chat_template = DATED
    first, resumed = (Prompts(model, (PROBLEM,), 4, datetime.date(2026, 1, 9)) for _ in range(2))
    assert first["p"] == resumed["p"]
    assert first["p"] != Prompts(model, (PROBLEM,), 4)["p"]


def test_the_day_on_which_a_run_begins_is_resolved_and_kept() -> None:
    policy = tiny_policy()
    backend = tiny_session(policy).backend
    resolved = resolve(Config(), "hf", policy, backend)
    assert resolved.problems.date == datetime.date.today()
    day = datetime.date(2025, 2, 3)
    asked = Config(problems={"date": day})
    assert resolve(asked, "hf", policy, backend).problems.date == day
    saved = validate(Config, tomllib.loads(dump_config(resolve(asked, "hf", policy, backend))), "saved")
    assert saved.problems.date == day


def ending_with(*tokens: tuple[str, int], begins: str = "") -> Any:
    """A tokenizer whose post-processor puts these tokens behind every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([begins, "$A", *(name for name, _ in tokens)]).strip(),
        pair=None,
        special_tokens=[*{("<s>", 0), *tokens}],
    )
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "first"),
    [
        (ending_with(("</s>", 1)), []),
        (ending_with(("</s>", 1), ("</s>", 1)), []),
        (ending_with(("</s>", 1), begins="<s>"), [0]),
        (ending_with(("<unk>", 2), ("</s>", 1), begins="<s> <s>"), [0, 0]),
        (ending_with(begins="<s>"), [0]),
        (tiny_tokenizer(), []),
    ],
)
@pytest.mark.parametrize("text", ["1+1=", "1+1=</s>", "</s>", "</s></s>", "<s>1</s>", "<s>", "a b\n"])
def test_a_text_goes_on_where_it_ends(tokenizer: Any, first: list[int], text: str) -> None:
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, Problem("p", text, 0)) == (*first, *own)


def test_a_prompt_with_a_token_that_the_model_does_not_know_is_refused_and_others_are_not() -> None:
    model = tiny_model()
    rows = model.network.get_input_embeddings().weight.shape[0]
    model.tokenizer.add_tokens(["ZZZ", "QQQ"])
    assert len(Prompts(model, (Problem("a", "1+1=", 0),), 4)["a"]) == 4
    for prompt in ("1+QQQ=", ({"role": "user", "content": "QQQ"},)):
        with pytest.raises(UsageError, match=rf"problem 'b': .* {rows} tokens, .* token {rows + 1} \('QQQ'\)"):
            Prompts(model, (Problem("a", "1+1=", 0), Problem("b", prompt, 1)), 4)


@pytest.mark.parametrize(
    "template", ["{{ messages[0]['content'] + 1 }}", "{% for m in messages %}", "{{ ''.__class__.__mro__[1].x() }}"]
)
def test_a_template_that_fails_refuses_chats_in_a_line(template: str) -> None:
    tokenizer = with_template(template)
    with pytest.raises(UsageError, match="problem 'p': the model's chat template refuses it") as refused:
        encode(tokenizer, PROBLEM)
    assert len(str(refused.value).splitlines()) == 1
    assert not opens_thoughts(tokenizer)


@pytest.mark.parametrize(
    ("end", "opens"),
    [
        ("<think>\n", True),
        ("<thinking>\n", True),
        ("[THINK]", True),
        ("◁think▷", True),
        ("<|channel|>analysis<|message|>", True),
        ("<|START_THINKING|>", True),
        ("<think>\n\n</think>\n\n", False),
        ("Put your thoughts between <think> and </think>.", False),
        ("", False),
    ],
)
def test_a_template_tells_whether_it_opens_thoughts(end: str, opens: bool) -> None:
    assert opens_thoughts(with_template(DATED + end)) is opens


def test_a_template_may_open_thoughts_by_a_mark_of_the_users() -> None:
    tokenizer = with_template(DATED + "<plan>\n")
    assert opens_thoughts(tokenizer) is False
    assert opens_thoughts(tokenizer, "<plan>") is True
    assert opens_thoughts(with_template(DATED), "") is False


def test_models_whose_prompts_or_ends_differ_are_told_apart_whatever_the_day(later: None) -> None:
    def known(change: Callable[[Any], None] = lambda tokenizer: None, eos: frozenset[int] = frozenset({1})) -> str:
        tokenizer = with_template(DATED)
        change(tokenizer)
        return tokenizer_fingerprint(replace(MODEL, tokenizer=tokenizer, eos_ids=eos))

    def lowered(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    def begun(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )

    others = [
        known(lambda tokenizer: setattr(tokenizer, "chat_template", DATED + " ")),
        known(lambda tokenizer: setattr(tokenizer, "chat_template", None)),
        known(lambda tokenizer: tokenizer.add_tokens(["new"])),
        known(lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["z"]})),
        known(lowered),
        known(begun),
        known(eos=frozenset({1, 2})),
    ]
    assert len({known(), *others}) == len(others) + 1
    # Asked for a prompt in between, or on another day, it is the same.
    assert known(lambda tokenizer: encode(tokenizer, PROBLEM, datetime.date(2026, 1, 9)) and None) == known()


def test_marks_of_thoughts_that_are_special_tokens_stay_in_the_text() -> None:
    """Magistral, Gemma 4 and gpt-oss mark thoughts by special tokens: left out, what was thought would be an answer."""
    assert not has_special_marks(tiny_tokenizer())
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<|channel>", "<|tool|>"]})

    def written(text: str) -> str:
        return decode(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])

    assert has_special_marks(tokenizer)
    assert written("[THINK]5?[/THINK]4</s>") == "[THINK]5?[/THINK]4"
    assert written("<|channel>thought5") == "<|channel>thought5"
    # Any other special token says nothing.
    assert written("<|tool|>4</s>") == "4"
    assert spoken(written("[THINK]5?[/THINK]4</s>")) == "4"
