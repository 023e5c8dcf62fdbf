"""`ttrl-pop vote`: label rollouts that something else made, by the votes of training. Needs no torch.

A problem's row is printed once its rollouts are voted on, and nothing of them is kept: sums are. A row that cannot be
read is told and left out, and costs neither the others of its problem nor the problems behind it.

Simplifications:

1. A label is that of the rollouts' own majority, whatever `vote.labels` says: there is no model to ask.
2. Rewards that look at lengths know the token limit only where a configuration gives one.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rich.text import Text

from ttrl_pop.cli import interrupts
from ttrl_pop.cli.display.console import console_on
from ttrl_pop.cli.display.marks import NOTICE
from ttrl_pop.cli.display.tables import answers_table, measures_table
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import check_one_stdin, notices
from ttrl_pop.cli.printing import print_row, print_rows
from ttrl_pop.config import Config
from ttrl_pop.errors import UsageError
from ttrl_pop.read.problems import read_gold
from ttrl_pop.read.rollouts import Layout, read_rollouts
from ttrl_pop.read.rows import Notice
from ttrl_pop.report.gold import gold_metrics, label_correct, outcome_table
from ttrl_pop.report.rows import answer_row, vote_row
from ttrl_pop.text import safe, shown
from ttrl_pop.types import AnswerKey, Tally
from ttrl_pop.vote.rules import Rules, build_rules
from ttrl_pop.vote.vote import vote

SHOWN = 10
"""Rows left out that are told one by one."""


@dataclass(slots=True)
class LeftOut:
    """Rows that could not be read."""

    count: int = 0

    def add(self, error: UsageError) -> None:
        """Tell of one on stderr."""
        self.count += 1
        if self.count <= SHOWN:
            print(f"ttrl-pop: {shown(str(error), limit=None)} The row is left out.", file=sys.stderr)

    def end(self) -> None:
        """Raise what all of them come to.

        Raises:
            UsageError: there are some.
        """
        if self.count:
            rows = "1 row" if self.count == 1 else f"{self.count} rows"
            raise UsageError(f"{rows} could not be read and had no vote; all others had")


@dataclass(slots=True)
class Totals:
    """Running sums over the problems of one source of rollouts."""

    problems: int = 0
    rollouts: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    doubts: int = 0
    """Votes that a doubtful rule of reading decided."""
    first_doubt: str = ""
    """What is to be told of the first of them."""
    right: dict[str, bool] = field(default_factory=dict)
    """Problem id → whether its label is right, where gold is known."""

    def add(self, tally: Tally, rules: Rules, answers: AnswerKey) -> None:
        against_gold = gold_metrics([tally], answers, rules.grader.same)
        figures = {
            "agreement": tally.agreement,
            "margin": tally.margin,
            "no answer": tally.abstained / len(tally.answers_G),
            "label accuracy": against_gold["vote/label_accuracy"],
            "rollout accuracy": against_gold["rollout/accuracy"],
            "reward accuracy": against_gold["vote/reward_accuracy"],
        }
        if doubt := rules.grader.doubt(tally.answers_G):
            self.doubts += 1
            self.first_doubt = self.first_doubt or f"problem {tally.group.problem.id}: {doubt}"
        self.problems += 1
        self.rollouts += len(tally.answers_G)
        for name, value in figures.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
        if (correct := label_correct(tally, answers, rules.grader.same)) is not None:
            self.right[tally.group.problem.id] = correct

    def row(self, name: str) -> dict[str, Any]:
        """Means over problems, as `measures_table` takes them."""
        return {"system": name, "intervals": {}, **{key: self.sums[key] / self.counts[key] for key in self.sums}}


def label(
    rollouts: str,
    before: str | None,
    gold: str | None,
    layout: Layout,
    given: Given,
    quiet: bool,
) -> None:
    """Vote on each problem and print its row; figures on stderr at the end.

    Args:
        rollouts: file or `-`.
        before: rollouts to compare with, voted on first.
        gold: file of gold answers.
        layout: of both; its form is that of the configuration.

    Raises:
        UsageError: whatever of it is wrong; votes of what could be read have been printed.
    """
    check_one_stdin({"ROLLOUTS": rollouts, "--before": before, "--gold": gold})
    config = given.config()
    notice = notices(quiet)
    left_out = LeftOut()
    key = {} if layout.id_key is None else {"id_key": layout.id_key}
    reading = config.problems.model_copy(update=key)
    answers = AnswerKey() if gold is None else read_gold(gold, reading, notice)
    layout = replace(layout, form=config.problems.form)
    rules = build_rules(config.vote, answers, token_limit=_token_limit(config))
    for told in rules.grader.notices:
        notice(told)
    earlier, later = Totals(), Totals()
    if before is not None:
        for tally in _tallies(before, layout, rules, left_out, notice):
            earlier.add(tally, rules, answers)
    shown: list[dict[str, Any]] = []
    for tally in _tallies(rollouts, layout, rules, left_out, notice):
        later.add(tally, rules, answers)
        if sys.stdout.isatty():
            shown.append(answer_row(tally, answers, rules.grader.same))
        else:
            print_row(vote_row(tally, answers, rules.grader.same))
    if shown:
        print_rows(shown, answers_table)
    if not quiet:
        _print_totals(None if before is None else earlier, later, len(answers))
    left_out.end()


def _token_limit(config: Config) -> int | None:
    return config.sampling.max_new_tokens if "max_new_tokens" in config.sampling.model_fields_set else None


def _tallies(source: str, layout: Layout, rules: Rules, left_out: LeftOut, notice: Notice) -> Iterator[Tally]:
    for group in read_rollouts(source, layout, refused=left_out.add, notice=notice):
        interrupts.check()
        yield vote(group, rules)


def _print_totals(before: Totals | None, after: Totals, gold: int) -> None:
    console = console_on(sys.stderr)
    for name, totals in (("before: ", before), ("", after)):
        if totals is not None:
            console.print(Text(f"{name}{totals.problems} problems, {totals.rollouts} rollouts"))
            if totals.doubts:
                votes = "this decides 1 vote" if totals.doubts == 1 else f"such rules decide {totals.doubts} votes"
                console.print(Text(f"{safe(totals.first_doubt, NOTICE)} ({votes})"))
    if gold and not after.right:
        console.print(Text(f"no problem has an id of the {gold} gold answers"))
    if before is None:
        rows = [after.row("votes")]
    else:
        rows = [before.row("before"), after.row("after")]
        if after.right:
            rows[-1]["labels"] = outcome_table(before.right, after.right)
    console.print(measures_table(rows))
