"""Prompts are the same tokens whenever they are rendered."""

import datetime
import tomllib
from typing import Any

import pytest
import transformers.utils.chat_template_utils as templates
from fakes import tiny_model, tiny_policy, tiny_session, tiny_tokenizer

from ttrl_pop.config import Config
from ttrl_pop.config_file import dump_config, validate
from ttrl_pop.model.prompts import Prompts, encode, opens_thoughts
from ttrl_pop.run.session import resolve
from ttrl_pop.types import Problem

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
