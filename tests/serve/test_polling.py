"""The vote on what minds have written, as vLLM's server gives it back."""

from typing import Any

import pytest

from ttrl_pop.config import VoteConfig
from ttrl_pop.serve.polling import Ballots, tally
from ttrl_pop.types import Mind
from ttrl_pop.vote.rules import build_rules


def answer(content: str | None, reasoning: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "reasoning": reasoning}
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


@pytest.mark.parametrize("parted", [True, False])
def test_thoughts_that_a_parser_has_taken_out_need_no_mark_that_ends_them(parted: bool) -> None:
    """The template opens the thoughts, so that a text without their closing mark would be nothing but thoughts."""
    rules = build_rules(VoteConfig(thinking=True), rewards=False)
    given = Ballots(({},) * 3, (Mind(1), Mind(2), Mind(3)), chat=True, logprobs=False)
    said = [("\\boxed{4}", "3 or 4?"), ("\\boxed{4}", "4"), (None, "\\boxed{7} is wrong, or not")]
    texts = [answer(*each) if parted else answer(f"{each[1]}</think>{each[0] or ''}", None) for each in said]
    told = tally(rules, given, texts)
    assert (told.label, told.answers_G) == ("4", ("4", "4", None))
