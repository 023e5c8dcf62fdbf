"""`ttrl_pop.vote`: `ttrl-pop vote` as a function. Needs no torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from ttrl_pop.api.settings import Files, Rows, given, rows_of_gold, source_of
from ttrl_pop.read.problems import read_gold
from ttrl_pop.read.rollouts import Layout, read_rollouts
from ttrl_pop.read.rows import Notice, Refuse, refuse, unsaid
from ttrl_pop.report.rows import vote_row
from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.rules import build_rules
from ttrl_pop.vote.vote import vote as cast


def vote(
    rollouts: Rows,
    gold: Rows | Mapping[str, Any] | None = None,
    *,
    id_key: str | None = None,
    text_key: str | None = None,
    shuffled: bool = False,
    preset: str | None = None,
    config: Files = None,
    refused: Refuse = refuse,
    notice: Notice = unsaid,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    r"""Yield the row of each problem that `ttrl-pop vote` prints, as soon as its last rollout is read.

    >>> rows = [{"id": "7x8", "responses": [r"It is \boxed{56}.", r"\boxed{54}", r"So \boxed{56}"]}]
    >>> [(row["label"], round(row["agreement"], 2)) for row in vote(rows, gold={"7x8": "56"})]
    [('56', 0.67)]

    Args:
        rollouts: a file, `-` for standard input, rows, or a table of pandas: each row a problem's id and a
            completion, or a list of them.
        gold: a file or rows of gold answers, or answers by problem id; adds `gold` and `correct`.
        id_key, text_key, shuffled: as the flags of the command.
        refused: gets the error of a row that cannot be read, which is left out where this returns.
        notice: is told what was read in a way that may surprise.
        preset, config, settings: as `ttrl_pop.train` takes them.

    Raises:
        UsageError: a source or a setting is wrong; and what `refused` raises.
    """
    options = given(settings, preset, config).config()
    key = {} if id_key is None else {"id_key": id_key}
    answers = AnswerKey()
    if gold is not None:
        answers = read_gold(rows_of_gold(gold), options.problems.model_copy(update=key), notice)
    limit = options.sampling.max_new_tokens if "max_new_tokens" in options.sampling.model_fields_set else None
    rules = build_rules(options.vote, answers, token_limit=limit)
    layout = Layout(id_key, text_key, form=options.problems.form, shuffled=shuffled)
    for group in read_rollouts(source_of(rollouts), layout, refused=refused, notice=notice):
        yield vote_row(cast(group, rules), answers, rules.grader.same)
