"""`ttrl-pop sample`: rollouts, printed as they are written."""

import json
import sys

from ttrl_pop.cli import interrupts
from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.inputs import ReadingInputs
from ttrl_pop.cli.opening import opened_for_reading
from ttrl_pop.fit.prepare import prepare
from ttrl_pop.report.rows import rollout_rows
from ttrl_pop.run.lessons import CutOff
from ttrl_pop.run.survey import survey
from ttrl_pop.store import checkpoint
from ttrl_pop.types import Load


def sample(given: ReadingInputs, quiet: bool) -> None:
    """Print rollouts, a problem's as soon as the last of them and those of the problems before it are written.

    Raises:
        UsageError: the model or the run does not go with the inputs.
    """
    # On a terminal the rows themselves show how far it is; a live view would be drawn among them.
    with (
        open_display(quiet, sys.stderr, among_rows=sys.stdout.isatty()) as display,
        opened_for_reading(given, display.phase) as opened,
    ):
        session, folder = opened.session, opened.checkpoint
        if folder is not None:
            checkpoint.load_policy(folder, session.policy)
        rollouts = len(session.problems) * session.config.group_size
        display.begin(f"sample {given.source}", 0, 0, Load(survey=rollouts), session.backend.meter)
        for text in (*session.notices, *opened.notices):
            display.notice(text)
        prepare(session, display.notice, display.phase)
        display.phase("sampling", rollouts, "survey")
        cut_off = CutOff(session.config.sampling.max_new_tokens)
        for tally in survey(session, given.noise):
            interrupts.check()
            display.tally(tally, None)
            for row in rollout_rows(tally):
                print(json.dumps(row))
            sys.stdout.flush()
            cut_off.see(tally)
        if told := cut_off.notice():
            display.warning(told)
