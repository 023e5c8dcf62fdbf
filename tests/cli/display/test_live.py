"""The live view on a terminal."""

import os
import re
import sys
import threading
import time
import tracemalloc

import pytest
from cli.display.drawing import METRICS, SGR, a_step, live, plain, rendered, tally_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.display.live import CURVES, ROWS, Live
from ttrl_pop.cli.display.marks import POINTS
from ttrl_pop.sample.meter import Meter
from ttrl_pop.types import Load, StepReport


def test_the_live_view_shows_the_votes_of_the_step():
    display = live()
    meter = Meter()
    display.begin("a run", 4, 0, meter=meter)
    display.phase("step 1: sampling", 12)
    meter.rollouts, meter.under_way = 5, 70
    display.tally(tally_of("first", "42", votes=3), True)
    display.tally(tally_of("second", "43", votes=1), False)
    display.tally(tally_of("third", None), None)
    shown = plain(display)
    assert shown[0] == "a run"
    assert shown[1].split()[:2] == ["step", "0/4"]
    assert shown[2].endswith("5/12, 70 tokens")
    assert plain(display, 40)[2].endswith("5/12")
    rows = [line.split() for line in shown if line.startswith(("first", "second", "third"))]
    assert rows[0][1:2] + rows[0][3:] == ["0.75", "0.75", "✓", "42"]
    assert rows[1][1:2] + rows[1][3:] == ["0.25", "0.25", "✗", "43"]
    assert rows[2] == ["third", "0.00", "0.00", "no", "answer"]
    assert rows[0][2] > 2 * rows[1][2]


def test_rows_of_the_last_step_wait_until_they_are_replaced():
    display = live()
    display.begin("a run", 4, 0)
    a_step(display, 1, ["old-1", "old-2", "old-3"])
    before = plain(display)
    display.phase("step 2: sampling", 2)
    display.tally(tally_of("new-1"), None)
    during = plain(display)
    assert [line.split()[0] for line in during[-3:]] == ["new-1", "old-2", "old-3"]
    assert len(during) == len(before), "the view keeps its height"
    drawn = rendered(display).splitlines()
    assert "\x1b[2m" in drawn[-1]
    assert not drawn[-3].startswith("\x1b[2m")
    display.tally(tally_of("new-2"), None)
    display.step(StepReport(2, METRICS))
    assert [line.split()[0] for line in plain(display)[-2:]] == ["new-1", "new-2"]
    assert "old-3" not in "\n".join(plain(display))


def test_learning_keeps_the_votes_and_shows_its_time():
    now = [0.0]
    display = live(lambda: now[0])
    display.begin("a run", 4, 0)
    display.phase("step 1: sampling", 1)
    display.tally(tally_of("kept"), None)
    display.phase("step 1: learning", 4, "learn")
    now[0] = 65.0
    shown = plain(display)
    assert shown[2].startswith("step 1: learning")
    assert shown[2].endswith("1:05")
    assert shown[-1].startswith("kept")


@given(problems=st.integers(1, 400), height=st.integers(5, 60), width=st.integers(30, 130), steps=st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_the_view_fits_the_terminal_and_counts_what_it_hides(problems, height, width, steps):
    display = live()
    display.begin("a run", 4, 0)
    for step in range(steps):
        a_step(display, step + 1, [f"s{step}-{i}" for i in range(5)])
    display.phase("sampling", problems)
    for i in range(problems):
        display.tally(tally_of(f"p{i}"), True)
    shown = plain(display, width, height)
    assert len(shown) <= height - 1
    rows = [line for line in shown if re.match(r"p\d", line) or re.match(r"s\d-\d", line)]
    hidden = next((int(line.split()[2]) for line in shown if line.startswith("… and")), 0)
    if rows:
        assert len(rows) + hidden == max(problems, 5 * bool(steps))
        assert any(line.split()[0] == f"p{problems - 1}" for line in rows), "the newest is in sight"


def test_time_left_stands_beside_the_time_so_far_and_alone_where_it_is_narrow():
    now, meter = [0.0], Meter()
    display = live(lambda: now[0])
    display.begin("resumed", 10, 4, Load(sample=60, steps=6), meter)
    assert plain(display)[1].endswith("0:00")
    display.phase("step 5: sampling", 10, "sample")
    now[0], meter.rollouts = 20.0, 10
    display.phase("step 5: learning", 10, "learn")
    assert plain(display)[1].endswith("0:20, over 1:40 left")
    now[0] = 30.0
    display.step(StepReport(5, METRICS))
    display.phase("step 6: sampling", 10, "sample")
    assert plain(display)[1].endswith("0:30, 2:06 left")
    assert plain(display, 40)[1].endswith(" 2:06 left")


def test_before_it_is_known_what_runs_the_view_says_what_is_loaded():
    now = [0.0]
    display = live(lambda: now[0])
    display.phase("loading smollm2")
    now[0] = 7.0
    (line,) = plain(display)
    assert line.startswith("loading smollm2")
    assert line.endswith("0:07")


def test_curves_show_the_first_and_the_newest_value_and_only_what_is_known():
    display = live()
    display.begin("a run", 100, 0)
    without_gold = METRICS | {"rollout/accuracy": None}
    for step in range(1, 91):
        display.step(StepReport(step, without_gold | {"vote/agreement": step / 100}))
    shown = {line.split()[0]: line.split() for line in plain(display, 120)[3:] if line}
    assert shown["agreement"][1:4] == ["0.01", "→", "0.90"]
    assert len(shown["agreement"][4]) == POINTS
    assert "accuracy" not in shown
    assert "kl" not in shown
    display.step(StepReport(91, METRICS | {"learn/kl": 0.5}))
    shown = {line.split()[0] for line in plain(display, 120)[3:] if line}
    assert {"accuracy", "kl"} <= shown


def test_memory_does_not_grow_with_steps_or_with_what_models_write():
    display = live()
    display.begin("a run", 10_000, 0)
    many = [f"p{i}" for i in range(2 * ROWS)]

    def work(steps: range) -> int:
        for step in steps:
            display.tally(tally_of("long", str(step) * 100_000), None)
            a_step(display, step, many[:3], **{key: step / i for i, key in enumerate(CURVES.values(), 1)})
        return tracemalloc.get_traced_memory()[0]

    a_step(display, 1, many)
    tracemalloc.start()
    try:
        early = work(range(2, POINTS + 20))
        late = work(range(POINTS + 20, POINTS + 80))
    finally:
        tracemalloc.stop()
    assert late - early < 5_000
    display.phase("answers", 2 * ROWS)
    for problem in many:
        display.tally(tally_of(problem), None)
    assert plain(display, height=4 * ROWS)[-1] == f"… and {ROWS} more"


def test_a_row_does_not_hold_what_it_cannot_show():
    display = live()
    tracemalloc.start()
    try:
        for i in range(20):
            display.tally(tally_of(f"{i}" * 500_000, f"{i}" * 500_000), None)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 100_000


def test_a_phase_of_problems_starts_a_new_table_without_a_step_between():
    display = live()
    for phase in ("before", "after"):
        display.phase(phase, 2)
        for i in range(2):
            display.tally(tally_of(f"{phase}-{i}"), None)
    assert [line.split()[0] for line in plain(display)[-3:]] == ["problem", "after-0", "after-1"]


def test_no_color_leaves_no_colour_and_the_same_text():
    display = live()
    display.begin("a run", 4, 0)
    a_step(display, 1, ["a", "b"])
    drawn = rendered(display, no_color=True)
    assert not re.search(r"\x1b\[[\d;]*(3|4|9|10)[0-7]", drawn)
    assert "\x1b[36m" in rendered(display)
    assert SGR.sub("", drawn).split("\n")[4:] == SGR.sub("", rendered(display)).split("\n")[4:]


def test_leaving_by_an_exception_keeps_the_last_frame_and_shows_the_cursor(terminal):
    stream, screen = terminal
    before = sys.stdout, sys.stderr

    def crash() -> None:
        with open_display(False, stream) as display:
            assert sys.stdout is before[0], "stdout carries data"
            display.begin("a run", 4, 0)
            a_step(display, 1, ["early"])
            display.phase("step 2: learning", 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert (sys.stdout, sys.stderr) == before
    seen = screen()
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    last_frame = seen.rpartition("\x1b[2K")[2]
    assert "early" in last_frame
    assert "step 2: learning" in last_frame
    assert "1/4" in last_frame


def test_a_clean_end_shows_no_phase(terminal):
    stream, screen = terminal
    with open_display(False, stream) as display:
        display.begin("a run", 1, 0)
        a_step(display, 1, ["a"], **{"learn/bad_updates": 3})
        display.phase("writing answers", 0)
    seen = screen()
    assert "writing answers" not in seen.rpartition("\x1b[2K")[2]
    assert "not finite: 3" in seen


def test_a_terminal_that_goes_away_does_not_stop_the_run(monkeypatch):
    pty = pytest.importorskip("pty")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")
    with open_display(False, stream) as display:
        assert isinstance(display, Live)
        display.begin("a run", 2, 0)
        os.close(master)
        a_step(display, 1, ["a"])
        display.notice("to nobody")
    stream.close()


def test_drawing_and_reporting_at_once_neither_fails_nor_hangs():
    display = live()
    failures = []

    def draw() -> None:
        try:
            for _ in range(100):
                rendered(display)
        except BaseException as error:
            failures.append(error)

    drawer = threading.Thread(target=draw, daemon=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with display:
            display.begin("a run", 1000, 0)
            drawer.start()
            deadline = time.monotonic() + 60
            step = 0
            while drawer.is_alive() and time.monotonic() < deadline:
                step += 1
                a_step(display, step, ["p"] * (20 if step % 2 else 1))
                if step % 50 == 0:
                    display.notice("n")
    finally:
        sys.setswitchinterval(interval)
    assert not drawer.is_alive()
    assert failures == []


def test_a_notice_from_a_signal_handler_does_not_hang():
    display = live(clock := lambda: 0.0)
    finished = threading.Event()

    def interrupted() -> float:
        display._clock = clock
        display.notice("stopping after this step")
        return 0.0

    def work() -> None:
        with display:
            display._clock = interrupted
            display.begin("a run", 2, 0)
        finished.set()

    threading.Thread(target=work, daemon=True).start()
    assert finished.wait(timeout=10)
