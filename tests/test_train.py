"""The loop: what it yields, what it writes, what closing it keeps, and that it learns."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from fakes import PROBLEMS, ScriptedBackend, norm_noise, tiny_policy, tiny_session

from ttrl_pop import randomness
from ttrl_pop.errors import CollapseError, StaleRolloutError, UsageError
from ttrl_pop.learn.learner import Learner
from ttrl_pop.population.base import MEAN
from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.report.gold import rollouts_correct
from ttrl_pop.run import collapse
from ttrl_pop.run.progress import Progress, load_history, resume
from ttrl_pop.run.session import Session
from ttrl_pop.run.survey import summarise, survey
from ttrl_pop.sample.backend import Request, Weights
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.train import train
from ttrl_pop.types import Problem, Rollout, StepReport, Tally


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


def weights(session: Session) -> dict[str, torch.Tensor]:
    learner = Learner(session.policy, session.config)
    return {name: p.detach().clone() for name, p in learner.trained.by_name.items()}


def test_every_step_yields_its_phases_its_tallies_and_then_its_report(run: RunDirectory) -> None:
    session = tiny_session(steps=2)
    kinds = [type(event).__name__ for event in train(session, run, Progress())]
    assert kinds == ["Phase", "Tally", "Tally", "Tally", "Phase", "StepReport"] * 2


def test_what_is_written_is_what_was_yielded(run: RunDirectory) -> None:
    session = tiny_session(steps=2, gold={p.id: "56" for p in PROBLEMS})
    events = list(train(session, run, Progress()))
    reports = [event for event in events if isinstance(event, StepReport)]
    assert [{"step": r.step, **r.metrics} for r in reports] == list(files.read_lines(run.metrics))
    tallies = [event for event in events if isinstance(event, Tally)]
    rows = [row for step in (1, 2) for row in files.read_lines(run.rollouts(step))]
    texts = {(r.policy_version, t.group.problem.id, r.mind.seed, r.text) for t in tallies for r in t.group.rollouts_G}
    assert {(row["policy_version"], row["id"], row["mind"], row["text"]) for row in rows} == texts
    for report, part in zip(reports, (tallies[:3], tallies[3:]), strict=True):
        metrics = report.metrics
        assert metrics["vote/agreement"] == pytest.approx(sum(t.agreement for t in part) / 3)
        right = [answer == "56" for t in part for answer in t.answers_G]
        assert metrics["rollout/accuracy"] == pytest.approx(sum(right) / len(right))
        assert metrics["rollout/count"] == 12
        assert metrics["learn/logprob_gap_max"] is None or metrics["learn/logprob_gap_max"] < 1e-9


def test_without_gold_an_accuracy_is_none_and_never_zero(run: RunDirectory) -> None:
    (report,) = [e for e in train(tiny_session(steps=1), run, Progress()) if isinstance(e, StepReport)]
    for key in ("rollout/accuracy", "vote/label_accuracy", "vote/reward_accuracy"):
        assert report.metrics[key] is None


def test_bug_6_and_7_problems_of_any_kind_without_gold_train_and_leave_a_checkpoint(run: RunDirectory) -> None:
    problems = [Problem("a", "Name a colour.", 0), Problem("b", ({"role": "user", "content": "Name a river."},), 1)]
    list(train(tiny_session(problems=problems, steps=1), run, Progress()))
    assert checkpoint.latest(run) == 1
    assert set(load_history(run.checkpoint(1))) == {"a", "b"}


def test_gold_answers_do_not_reach_the_learner(tmp_path: Path) -> None:
    right = {p.id: "56" for p in PROBLEMS}
    shuffled = dict(zip(right, random.Random(0).sample(["1", "2", "3", "4", "5", "6"], 6), strict=True))
    ends = []
    for number, gold in enumerate((right, shuffled, None)):
        session = tiny_session(steps=3, gold=gold)
        list(train(session, RunDirectory(tmp_path / str(number)), Progress()))
        ends.append(weights(session))
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name])
        assert torch.equal(value, ends[2][name])
    assert any(not torch.equal(value, weights(tiny_session())[name]) for name, value in ends[0].items())


@pytest.mark.parametrize("after", [0, 1, 2, 5, 6, 7, 13])
def test_closing_after_any_event_keeps_what_is_finished(run: RunDirectory, after: int) -> None:
    whole = tiny_session(steps=3, checkpoint__every=5)
    list(train(whole, RunDirectory(run.path.parent / "whole"), Progress()))
    first = tiny_session(steps=3, checkpoint__every=5)
    events = train(first, run, Progress())
    for _ in range(after):
        next(events)
    events.close()
    assert checkpoint.latest(run) == (after // 6 or None)
    second = tiny_session(steps=3, checkpoint__every=5)
    progress = resume(run, second)
    assert progress.step == after // 6
    list(train(second, run, progress))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name])


class Undecided:
    """In place of the math grader's worker: replies by length, and many pairs hang."""

    def ask(self, *answers: str) -> dict[str, Any] | None:
        hangs = len(answers) == 2 and sum(map(len, answers)) % 2
        return None if hangs else {"equal": True}


def test_questions_about_gold_are_none_of_the_votes_timeouts(run: RunDirectory) -> None:
    """Whoever passes --gold, and looks at it while votes are cast, gets the figures of one who does not."""
    counts = []
    for gold in ({}, {problem.id: "n+1" for problem in PROBLEMS}):
        session = tiny_session(
            steps=3, problems_per_step=6, gold=gold, vote__grader="math", vote__extract="regex:[a-z0-9]+"
        )
        session.grader._worker = Undecided()  # type: ignore[attr-defined]
        place = RunDirectory(run.path / str(len(gold)))
        place.path.mkdir()
        counts.append([])
        for event in train(session, place, Progress()):
            if isinstance(event, Tally):
                rollouts_correct(event, session.gold, session.grader.same)
            elif isinstance(event, StepReport):
                counts[-1].append(event.metrics["vote/timeouts"])
    assert counts[0] == counts[1]
    assert all(counts[0])


def test_a_resumed_run_equals_one_never_stopped_though_the_grader_gives_answers_up(run: RunDirectory) -> None:
    def session() -> Session:
        gold = {problem.id: "n+1" for problem in PROBLEMS}
        made = tiny_session(
            steps=4, problems_per_step=6, gold=gold, vote__grader="math", vote__extract="regex:[a-z0-9]+"
        )
        made.grader._worker = Undecided()  # type: ignore[attr-defined]
        return made

    whole, second = session(), session()
    metrics = []
    for event in train(whole, RunDirectory(run.path.parent / "whole"), Progress()):
        metrics += [event.metrics] if isinstance(event, StepReport) else []
    assert all(row["vote/timeouts"] for row in metrics)
    events = train(session(), run, Progress())
    for _ in range(18):
        next(events)
    events.close()
    progress = resume(run, second)
    assert progress.step == 2
    resumed = [event.metrics for event in train(second, run, progress) if isinstance(event, StepReport)]
    for ours, theirs in zip(resumed, metrics[2:], strict=True):
        assert {k: v for k, v in ours.items() if "time/" not in k} == {
            k: v for k, v in theirs.items() if "time/" not in k
        }
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name])


@pytest.mark.parametrize("calls_until", [1, 2, 3, 4, 5, 6])
def test_an_update_cut_short_is_undone_and_what_was_finished_is_saved(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, calls_until: int
) -> None:
    settings: dict[str, Any] = {"steps": 3, "checkpoint__every": 5, "learn__updates_per_step": 2}
    whole = tiny_session(**settings)
    list(train(whole, RunDirectory(run.path.parent / "whole"), Progress()))
    original = Learner._update
    calls = []

    def interrupted(self: Learner, *args: Any) -> bool:
        done = original(self, *args)
        calls.append(1)
        if len(calls) == calls_until:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Learner, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(train(tiny_session(**settings), run, Progress()))
    finished = (calls_until - 1) // 2
    assert checkpoint.latest(run) == (finished or None)
    second = tiny_session(**settings)
    progress = resume(run, second)
    assert progress.step == finished
    list(train(second, run, progress))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name])
    last = [RunDirectory(run.path.parent / name).checkpoint(3) for name in ("run", "whole")]
    ours, theirs = ((folder / "optimizer.safetensors").read_bytes() for folder in last)
    assert ours == theirs
    assert [checkpoint.load_state(folder)["policy_version"] for folder in last] == [6, 6]


def test_a_run_that_ran_out_of_memory_goes_on_with_what_then_fitted(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"steps": 4, "learn__token_budget": 200}
    backward = Learner._backward
    failed: list[int] = []

    def scarce(self: Learner, batch: Any) -> Any:
        # Once, in the second step, where several rollouts stand together.
        if self.policy.version == 1 and not failed and len(batch) > 1:
            failed.append(len(batch))
            raise MemoryError
        return backward(self, batch)

    monkeypatch.setattr(Learner, "_backward", scarce)
    whole = tiny_session(**settings)
    list(train(whole, RunDirectory(run.path.parent / "whole"), Progress()))
    assert failed
    failed.clear()
    events = train(tiny_session(**settings), run, Progress())
    while checkpoint.latest(run) != 2:
        next(events)
    # As a kill leaves it: nothing more is saved.
    del events
    monkeypatch.undo()
    second = tiny_session(**settings)
    list(train(second, run, resume(run, second)))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name])


def labels_of(events: Sequence[Any]) -> list[dict[str, str | None]]:
    """Labels by problem id, step by step."""
    steps: list[dict[str, str | None]] = [{}]
    for event in events:
        if isinstance(event, Tally):
            steps[-1][event.group.problem.id] = event.label
        elif isinstance(event, StepReport):
            steps.append({})
    return steps[:-1]


def test_labels_by_the_base_model_are_its_majority_and_never_change(run: RunDirectory) -> None:
    settings: dict[str, Any] = {"steps": 3, "problems_per_step": 6, "vote__labels": "base", "vote__label_rollouts": 5}
    session = tiny_session(**settings)
    groups = session.sample(PROBLEMS, [None], 5, OUTSIDE_TRAINING, purpose="label", weights="base")
    expected = {group.problem.id: session.tally(group).label for group in groups}
    assert labels_of(list(train(session, run, Progress()))) == [expected] * 3
    own = labels_of(list(train(tiny_session(steps=1, problems_per_step=6), run, Progress())))
    assert own != [expected]


def test_an_engine_with_weights_of_its_own_samples_the_minds_after_the_labellers(run: RunDirectory) -> None:
    class Copying(HfBackend):
        """Rolls out from the weights that it had at the last refresh."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.refresh()

        def refresh(self) -> None:
            parameters = {**self.policy.adapter_parameters(), **self.policy.population_parameters()}
            self.copies = {name: (p, p.detach().clone()) for name, p in parameters.items()}

        def rollouts(self, *asked: Any) -> Iterator[tuple[int, Rollout]]:
            own = {name: p.detach().clone() for name, (p, _) in self.copies.items()}
            with torch.no_grad():
                for p, copied in self.copies.values():
                    p.copy_(copied)
                yield from list(super().rollouts(*asked))
                for name, (p, _) in self.copies.items():
                    p.copy_(own[name])

    settings: dict[str, Any] = {"steps": 3, "vote__labels": "average", "vote__reward": "frequency", "learn__lr": 0.1}
    copying, sharing = tiny_session(backend=Copying, **settings), tiny_session(**settings)
    list(train(copying, run, Progress()))
    list(train(sharing, RunDirectory(run.path.parent / "sharing"), Progress()))
    for name, value in weights(sharing).items():
        assert torch.equal(value, weights(copying)[name])


def test_labels_of_the_base_model_are_elected_once_also_over_a_resume(run: RunDirectory) -> None:
    settings: dict[str, Any] = {"steps": 4, "vote__labels": "base", "checkpoint__every": 2}
    whole = tiny_session(**settings)
    list(train(whole, RunDirectory(run.path.parent / "whole"), Progress()))
    events = train(tiny_session(**settings), run, Progress())
    for _ in range(15):
        next(events)
    events.close()
    second = tiny_session(**settings)
    progress = resume(run, second)
    assert (progress.step, len(progress.labels)) == (2, 6)
    requests: list[Request] = []
    original = second.backend.rollouts
    second.backend.rollouts = lambda new, weights: (requests.extend(new), original(new, weights))[1]  # type: ignore
    list(train(second, run, progress))
    assert not [request for request in requests if request.stream_key[0] == "label"]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name])


def test_labels_that_are_known_ask_nothing_of_the_engine(run: RunDirectory) -> None:
    class Counting(HfBackend):
        refreshed = 0
        asked: ClassVar[list[tuple[int | str, ...]]] = []

        def refresh(self) -> None:
            self.refreshed += 1

        def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
            self.asked.append((*{request.stream_key[0] for request in requests}, weights))
            return super().rollouts(requests, weights)

    session = tiny_session(backend=Counting, steps=2, problems_per_step=6, vote__labels="base")
    list(train(session, run, Progress()))
    assert Counting.asked == [("label", "base"), ("token", "policy"), ("token", "policy")]
    assert session.backend.refreshed == 2, "once for each update"  # type: ignore[attr-defined]


def test_labels_by_the_average_are_those_of_its_mean_mind(run: RunDirectory) -> None:
    settings: dict[str, Any] = {"steps": 2, "problems_per_step": 6, "vote__labels": "average", "learn__lr": 0.3}
    # Answers of TinyLM rarely equal a label elected elsewhere; this reward does not ask for it.
    settings |= {"vote__reward": "novelty"}
    # At decay 0 the average is the policy itself.
    session = tiny_session(**settings, vote__average_decay=0.0, vote__average_decay_end=0.0, vote__label_rollouts=5)
    events = train(session, run, Progress())
    steps = [[next(events) for _ in range(10)]]
    groups = session.sample(PROBLEMS, [MEAN], 5, 2, purpose="label")
    expected = {group.problem.id: session.tally(group).label for group in groups}
    steps.append(list(events))
    assert labels_of([*steps[0], *steps[1]])[1] == expected
    slow = tiny_session(**settings, vote__label_rollouts=5)
    slow_run = RunDirectory(run.path.parent / "slow")
    assert labels_of(list(train(slow, slow_run, Progress())))[1] != expected


def test_the_history_goes_into_the_checkpoint_and_comes_back(run: RunDirectory) -> None:
    session = tiny_session(steps=3, problems_per_step=4)
    tallies = [event for event in train(session, run, Progress()) if isinstance(event, Tally)]
    history = resume(run, tiny_session(steps=3, problems_per_step=4)).history
    assert sum(state.visits for state in history.values()) == 12
    for state in history.values():
        visits = [tally for tally in tallies if tally.group.problem.id == state.id]
        assert (state.visits, state.agreement) == (len(visits), visits[-1].agreement)
    assert load_history(run.checkpoint(2)) != history


def test_flip_weights_reach_the_learner(tmp_path: Path) -> None:
    ends = []
    for number, scaled in enumerate((False, True)):
        session = tiny_session(steps=4, guard__flip_scaling=scaled)
        run = RunDirectory(tmp_path / str(number))
        list(train(session, run, Progress()))
        ends.append(weights(session))
        assert any(state.flips for state in load_history(run.checkpoint(4)).values())
    assert any(not torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_collapse_is_told_is_not_the_best_and_stops_the_run_if_asked_to(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse, "SIGNS", (lambda first, now: "all the same",))
    session = tiny_session(steps=8, guard__stop_on_collapse=True, checkpoint__every=5)
    reports: list[Any] = []
    events = train(session, run, Progress())
    with pytest.raises(CollapseError, match="step 6 looks like a collapse: all the same"):
        reports.extend(events)
    reports = [event for event in reports if isinstance(event, StepReport)]
    assert [report.alarm for report in reports] == [None] * 5 + ["all the same"]
    assert [row.get("alarm") for row in files.read_lines(run.metrics)] == [None] * 5 + ["all the same"]
    assert checkpoint.latest(run) == 6
    # Step 6 measured the checkpoint of step 5, the only one there was.
    assert not (run.path / "best").exists()
    going_on = tiny_session(steps=8, checkpoint__every=5)
    progress = resume(run, going_on)
    more = [event for event in train(going_on, run, progress) if isinstance(event, StepReport)]
    assert [(report.step, report.alarm) for report in more] == [(7, "all the same"), (8, "all the same")]


def test_a_backend_that_missed_an_update_is_an_error(run: RunDirectory) -> None:
    class Stale(HfBackend):
        def rollout(self, *args: Any) -> Rollout:
            from dataclasses import replace

            return replace(super().rollout(*args), policy_version=0)

    with pytest.raises(StaleRolloutError, match="missed a refresh"):
        list(train(tiny_session(backend=Stale), run, Progress()))


def test_minds_are_shared_by_the_problems_of_a_step_and_new_in_each(run: RunDirectory) -> None:
    tallies = [e for e in train(tiny_session(steps=2), run, Progress()) if isinstance(e, Tally)]
    minds = [[r.mind.seed for r in t.group.rollouts_G] for t in tallies]
    assert minds[0] == minds[1] == minds[2]
    assert not set(minds[0]) & set(minds[3])


def test_best_is_the_soundest_checkpoint_and_not_that_of_highest_agreement(run: RunDirectory) -> None:
    # How many of a problem's four minds give its first answer; the rest answer 4.
    faithful = iter([3, 3, 2, 0])

    class Changing(ScriptedBackend):
        def rollouts(self, *asked: Any) -> Any:
            count = next(faithful)
            self.script = lambda i: f" {10 + i // 4}\n" if i % 4 < count else " 4\n"
            return super().rollouts(*asked)

    session = tiny_session(steps=4, backend=Changing, checkpoint__keep=2, problems_per_step=6)
    reports = [event for event in train(session, run, Progress()) if isinstance(event, StepReport)]
    assert [report.metrics["vote/agreement"] for report in reports] == [0.75, 0.75, 0.5, 1.0]
    # The rollouts of step 2, most of which agree on the first answers, were written by the policy that step 1 saved.
    assert (run.path / "best").resolve() == run.checkpoint(1).resolve()
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_0001", "step_0003", "step_0004"]


@pytest.mark.parametrize("stop", [None, 3])
def test_what_an_interruption_saves_between_two_checkpoints_is_never_the_best(
    run: RunDirectory, stop: int | None
) -> None:
    faithful = iter([3, 3, 2, 3])

    class Changing(ScriptedBackend):
        def rollouts(self, *asked: Any) -> Any:
            count = next(faithful)
            self.script = lambda i: f" {10 + i // 4}\n" if i % 4 < count else " 4\n"
            return super().rollouts(*asked)

    settings: dict[str, Any] = {"steps": 4, "backend": Changing, "checkpoint__every": 2, "problems_per_step": 6}
    events = train(tiny_session(**settings), run, Progress())
    for event in events:
        if isinstance(event, StepReport) and event.step == stop:
            break
    events.close()
    if stop is not None:
        # Its rollouts, in step 4, agree more on first answers than those of step 2 did.
        assert run.checkpoint(stop).exists()
        session = tiny_session(**settings)
        assert len([*train(session, run, resume(run, session))]) > 1
    assert (run.path / "best").resolve() == run.checkpoint(2).resolve()


def test_a_planted_preference_grows(run: RunDirectory) -> None:
    """TinyLM learns end to end: gold reward for a capital, from chance to most."""
    # With mu of the last norm, by which a model of few tokens learns most.
    session = tiny_session(
        tiny_policy(population=norm_noise(final_mu=True)),
        steps=12,
        gold={p.id: "capital" for p in PROBLEMS},
        vote__reward="gold",
        problems_per_step=6,
        population__minds=16,
        sampling__max_new_tokens=1,
        sampling__temperature=2.0,
        vote__extract="fakes:kind_of_letter",
        learn__lr=3e-2,
        learn__population_lr=3e-2,
    )
    reports = [e for e in train(session, run, Progress()) if isinstance(e, StepReport)]
    first, last = (r.metrics["rollout/accuracy"] for r in (reports[0], reports[-1]))
    assert first is not None
    assert last is not None
    assert first < 0.6
    assert last > first + 0.3


def test_a_survey_answers_every_problem_in_order_and_repeats() -> None:
    session = tiny_session()
    one, two = (list(survey(session)) for _ in range(2))
    assert [t.group.problem.id for t in one] == [p.id for p in PROBLEMS]
    assert [t.answers_G for t in one] == [t.answers_G for t in two]
    quiet = list(survey(session, noise=False))
    assert {r.mind.seed for t in quiet for r in t.group.rollouts_G} == {0}
    assert len({r.text for r in quiet[0].group.rollouts_G}) > 1
    measures = summarise(session, one)
    assert measures.values["agreement"] == pytest.approx(sum(t.agreement for t in one) / len(one))


def test_batches_of_the_loop_follow_the_stream(run: RunDirectory) -> None:
    session = tiny_session(steps=3, problems_per_step=4)
    tallies = [e for e in train(session, run, Progress()) if isinstance(e, Tally)]
    expected = randomness.batches(0, len(PROBLEMS), 4)
    for step in range(3):
        ids = [t.group.problem.index for t in tallies[4 * step : 4 * step + 4]]
        assert sorted(ids) == sorted(next(expected))


def test_a_step_whose_row_was_not_written_is_repeated(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    session = tiny_session(steps=2)
    events = train(session, run, Progress())
    for _ in range(6):
        next(events)
    monkeypatch.setattr(files, "append_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(events)
    assert checkpoint.latest(run) == 1
    assert [row["step"] for row in files.read_lines(run.metrics)] == [1]


def test_a_template_that_refuses_a_prompt_is_a_usage_error() -> None:
    policy = tiny_policy()
    policy.model.tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    chat = Problem("c", ({"role": "system", "content": "x"}, {"role": "user", "content": "y"}), 1)
    with pytest.raises(UsageError, match="'c': the model's chat template refuses it"):
        tiny_session(policy, problems=[PROBLEMS[0], chat])
