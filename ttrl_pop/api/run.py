"""`ttrl_pop.open`: a run directory, to be looked at, asked and exported."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ttrl_pop.api.settings import given
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import ReadingInputs
from ttrl_pop.cli.opening import opened_for_reading
from ttrl_pop.cli.problems import state_rows
from ttrl_pop.cli.trust import check_trusted
from ttrl_pop.config import Config
from ttrl_pop.errors import UsageError
from ttrl_pop.export.export import Exported, Form, export
from ttrl_pop.model.prompts import Prompts
from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.read.problems import read_problems
from ttrl_pop.run.session import Session
from ttrl_pop.store import checkpoint, files, identity, reading
from ttrl_pop.store.directory import RunDirectory, find
from ttrl_pop.store.identity import CONFIG
from ttrl_pop.types import Message, Mind, Tally

KEPT = ("learn", "population.name", "population.options")
"""How keys begin that belong to what was trained."""

IDLE = (
    *("steps", "problems_per_step", "baseline", "answers", "holdout", "eval_every", "track"),
    *("checkpoint", "guard", "problems.", "vote.reward"),
)
"""How keys begin of what is for training alone."""

READ = ("guard.flip", "problems.form", "problems.prompt_template", "problems.date")
"""How keys begin of these by which a question, or a look at the problems, is read all the same."""


class Run:
    """A run directory. Nothing of it is held but the model, once it has been asked."""

    def __init__(self, path: Path, checkpoint_folder: Path | None = None, typed: Given | None = None) -> None:
        """
        Args:
            checkpoint_folder: a checkpoint of the run; None is its newest.
            typed: settings of whoever opens it.
        """
        self.path = path
        self._typed = typed or Given()
        self._checkpoint = checkpoint_folder
        self._session: Session | None = None
        self._held = ExitStack()
        """The engine of the session."""

    @property
    def answers(self) -> list[dict[str, Any]]:
        """Final answers, as `ttrl-pop run` prints them; none before training is over."""
        return self._rows(self._directory.answers)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl: a step each. A row that is being written, or was torn by a kill, is left out."""
        path = self._directory.metrics
        return [reading.parse_object(path, line) for line in files.whole_lines(path)] if path.exists() else []

    @property
    def problems(self) -> list[dict[str, Any]]:
        """What the checkpoint knows of each problem that was visited, as `ttrl-pop problems` prints it."""
        config = self._config(unused={"population.name", "backend", "vote.reward", "vote.extract"})
        return state_rows(self._directory, self.checkpoint, config)

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint that is asked and exported."""
        return self._checkpoint or checkpoint.newest(self._directory)

    def ask(self, question: str | Sequence[Message], minds: int | None = None) -> Tally:
        """Let `minds` minds of the trained population answer, and vote on what they say.

        Args:
            minds: how many; None is as many as the run has, or as it was opened with.
            question: a text, which becomes a turn where the run's problems are turns and else stands as it is; or the
                messages of a chat.

        Raises:
            UsageError: the run or its model cannot be opened, the question is none, or `minds` is less than 1.
        """
        if minds is not None and (type(minds) is not int or minds < 1):
            raise UsageError(f"ask: minds must be a whole number from 1, got {minds!r}")
        session = self._opened(question)
        config = session.config
        count = config.population.minds if minds is None else minds
        spawned = session.policy.population.spawn(config.seed, OUTSIDE_TRAINING, count)
        (group,) = session.sample(
            session.problems, spawned, config.population.samples_per_mind, OUTSIDE_TRAINING, "asked"
        )
        return session.tally(group)

    def export(self, out: str | Path, mind: int | Mind | None = None, form: Form = "auto") -> Exported:
        """Write one mind to a folder, as `ttrl-pop export` does.

        Args:
            mind: its seed, or a mind as rollouts have it; None is the mean mind.

        Raises:
            UsageError: the folder is taken, or the mind cannot be exported in this form.
            ProofError: what was written is another model; it has been removed.
        """
        config = self._config(unused={"backend", "backend_options", "vote.grader", "vote.reward", "vote.extract"})
        seed = mind.seed if isinstance(mind, Mind) else mind
        return export(self._directory, self.checkpoint, config, Path(out), seed, form)

    def close(self) -> None:
        """Let go of the model. The next question loads it again."""
        self._session = None
        self._held.close()

    def __repr__(self) -> str:
        return f"ttrl_pop.open({str(self.path)!r})"

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory(self.path)

    def _config(self, unused: set[str]) -> Config:
        run = self._directory
        text = identity.read(run, identity.load(run), CONFIG)
        config = self._typed.config(run.config, text)
        check_trusted(run, config, self._typed, unused=unused)
        return config

    def _opened(self, question: str | Sequence[Message]) -> Session:
        """The session of the checkpoint, with the question as its only problem."""
        run = self._directory
        config = self._config(unused={"vote.reward"})
        chat = any("messages" in row for row in files.read_lines(run.problems))
        row: Mapping[str, Any] = (
            {"id": "asked", "prompt": question} if isinstance(question, str) else {"id": "asked", "messages": question}
        )
        if not isinstance(question, str):
            form = "chat"
        elif "problems.form" in self._typed.values():
            form = config.problems.form
        else:
            form = "chat" if chat else "raw"
        keys = {"prompt_key": None, "id_key": None, "answer_key": None}
        asked = read_problems([row], config.problems.model_copy(update={"form": form, **keys}))
        if self._session is None:
            folder = self.checkpoint
            inputs = ReadingInputs(config, asked, "asked", run, folder, rewards=False)
            opened = self._held.enter_context(opened_for_reading(inputs))
            checkpoint.load_policy(folder, opened.session.policy)
            self._session = opened.session
        session = self._session
        prompts = Prompts(
            session.policy.model, asked.problems, config.sampling.max_new_tokens, session.config.problems.date
        )
        return replace(session, problems=asked.problems, prompts=prompts)

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        return list(files.read_lines(path)) if path.exists() else []


def open(run: str | Path, *, trust: bool = False, **settings: Any) -> Run:
    """The run at `run`: a run directory (its newest checkpoint), `RUN/best`, or any checkpoint.

    >>> run = ttrl_pop.open("runs/mine")
    >>> len(run.metrics)
    2
    >>> tally = run.ask("What is 7 times 8?", minds=3)
    >>> len({rollout.mind for rollout in tally.group.rollouts_G})
    3

    Args:
        trust: import code that the run's own files name, as the flag `--trust`.
        settings: over those of the run, as `ttrl_pop.train` takes them.

    Raises:
        UsageError: `run` stands in no run, or a setting is wrong or has nothing to set.
    """
    directory, folder = find(Path(run))
    identity.load(directory)
    typed = replace(given(settings), trust=trust)
    for key in typed.values():
        if key.startswith(KEPT):
            raise UsageError(f"a trained run keeps its population and its adapter; leave {key} out")
        if key.startswith(IDLE) and not key.startswith(READ):
            raise UsageError(f"{key} decides nothing of a run that is asked or exported; leave it out")
    if settings:
        # What is wrong is said before the first question.
        text = identity.read(directory, identity.load(directory), CONFIG)
        typed.config(directory.config, text)
    return Run(directory.path, folder, typed)
