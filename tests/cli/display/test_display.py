"""What the display shows, and what hostile text cannot make it do."""

import errno
import io
import os
import re
import sys
import threading
import time
import tracemalloc
import unicodedata
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.display.base import Display
from ttrl_pop.cli.display.lines import Lines
from ttrl_pop.cli.display.live import CURVES, ROWS, Live
from ttrl_pop.cli.display.marks import BLOCKS, POINTS, bar, clock_time, number, sparkline
from ttrl_pop.cli.display.tables import answers_table, summary_table
from ttrl_pop.text import safe
from ttrl_pop.types import Cluster, Group, Problem, StepReport, Tally

SGR = re.compile(r"\x1b\[[\d;]*m")
HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b[2J\x1b[H\x1b]0;title\x07",
    "\x9b31m\x90q\x9c",
    "[bold red]loud[/bold red] [link=x]y[/] :boom: [/]",
    "\u202eabc\u2066def\u200f\u061c",
    "nul\x00bell\x07back\x08tab\tline\nreturn\rfeed\x0c",
    "\ud800\udfff lone",
    "\u2028para\u2029 zero\u200bwidth\ufeff \U000e0041",
    "x" * 1_000_000,
    "好" * 100,
    "\x1b" * 100,
]
METRICS = {
    "vote/agreement": 0.7123,
    "rollout/accuracy": 0.62,
    "vote/label_accuracy": 0.8125,
    "reward/mean": 0.66,
    "rollout/entropy": 0.41,
    "population/sigma": 0.0049,
    "learn/kl": None,
    "learn/bad_updates": 0,
    "time/step": 12.34,
    "time/tokens_per_s": 410.4,
}


def tally_of(problem: str = "p", label: str | None = "7", votes: int = 3, of: int = 4) -> Tally:
    answers = (label,) * votes + (None,) * (of - votes)
    clusters = () if label is None else (Cluster(label, tuple(range(votes)), Fraction(votes, of)),)
    return Tally(Group(Problem(problem, "?", 0), ()), answers, clusters, label, 0 if clusters else None, (0.0,) * of)


def rendered(renderable, width: int = 80, height: int = 24, **options) -> str:
    file = io.StringIO()
    settings = {"force_terminal": True, "color_system": "truecolor", "legacy_windows": False} | options
    Console(file=file, width=width, height=height, **settings).print(renderable)
    return file.getvalue()


def plain(renderable, width: int = 80, height: int = 24) -> list[str]:
    return [line.rstrip() for line in SGR.sub("", rendered(renderable, width, height)).splitlines()]


def live(clock=lambda: 0.0) -> Live:
    return Live(Console(file=io.StringIO(), force_terminal=True, width=80, height=24), clock)


def a_step(display: Display, step: int, problems: list[str], **metrics) -> None:
    display.phase(f"step {step}: sampling", len(problems))
    for problem in problems:
        display.tally(tally_of(problem), correct=None)
    display.step(StepReport(step, METRICS | metrics))


@pytest.fixture
def terminal(monkeypatch):
    """The two ends of an 80 × 24 terminal: what a program writes to, and a function that reads the screen's bytes."""
    pty = pytest.importorskip("pty")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")
    seen = bytearray()

    def read_to_the_end() -> None:
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError as error:
                if error.errno in (errno.EIO, errno.EBADF):
                    return
                raise
            if not piece:
                return
            seen.extend(piece)

    reader = threading.Thread(target=read_to_the_end)
    reader.start()

    def screen() -> str:
        stream.close()
        reader.join(timeout=10)
        return seen.decode("utf-8")

    yield stream, screen
    stream.close()
    reader.join(timeout=10)
    os.close(master)


# --- text that others wrote ---------------------------------------------------------------------------------------


@given(text=st.text(st.characters(exclude_categories=())), limit=st.integers(1, 80))
def test_safe_text_is_short_visible_and_stays_as_it_is(text, limit):
    shown = safe(text, limit)
    assert len(shown) <= limit
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert safe(shown, limit) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[red] ½ 好 é ✓", "[red] ½ 好 é ✓"),
        ("\x1b[31m", "␛[31m"),
        ("a\x00b\nc\td\x7f", "a␀b␊c␉d␡"),
        ("\u202e\u2066\u200e\x9b\ud800\ufe0f", "������"),
        ("x" * 61, "x" * 59 + "…"),
        ("x" * 60, "x" * 60),
    ],
)
def test_safe_text_by_example(text, shown):
    assert safe(text) == shown


def everything_with(text: str):
    """Each door through which foreign text reaches the screen."""
    display = live()
    display.begin(text, 3, 0)
    display.phase(text, 2)
    display.tally(tally_of(text, text), True)
    display.tally(tally_of("other", None), False)
    yield display
    yield summary_table(text, [(text, 0.1, 0.2), ("b", None, 1.0)], text, text)
    yield answers_table(
        [{"id": text, "answer": text, "agreement": 0.5, "margin": 0.1, "votes": {text: 3}, "correct": True}]
    )


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_text_cannot_style_move_or_widen_anything(text, width):
    for hostile, harmless in zip(everything_with(text), everything_with("harmless"), strict=True):
        drawn = rendered(hostile, width)
        assert set(SGR.findall(drawn)) <= set(SGR.findall(rendered(harmless, width)))
        rest = SGR.sub("", drawn)
        assert not {c for c in rest if unicodedata.category(c) in {"Cc", "Cf", "Cs"}} - {"\n"}
        assert all(cell_len(line) <= width for line in rest.splitlines())


def test_markup_is_shown_as_it_stands():
    for renderable in everything_with("[red]x[/red]"):
        assert "[red]x[/red]" in SGR.sub("", rendered(renderable, 100))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_notices_reach_a_terminal_as_text(text, terminal):
    stream, screen = terminal
    with open_display(False, stream) as display:
        display.notice(text)
        display.notice("done")
    rest = re.sub(r"\x1b\[(\?25[lh]|2K|1?A|[\d;]*m)", "", screen())
    assert "done" in rest
    assert not {c for c in rest if unicodedata.category(c) in {"Cc", "Cf", "Cs"}} - {"\n", "\r"}


# --- which display ------------------------------------------------------------------------------------------------


def test_a_terminal_gets_the_live_view(terminal):
    assert isinstance(open_display(False, terminal[0]), Live)


def test_quiet_wins_over_a_terminal(terminal):
    stream, screen = terminal
    with open_display(True, stream) as display:
        assert type(display) is Display
        display.begin("t", 1, 0)
        a_step(display, 1, ["a"], **{"learn/bad_updates": 1})
        display.notice("n")
    assert screen() == ""


def test_a_file_gets_lines_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    assert isinstance(open_display(False, io.StringIO()), Lines)


def test_a_terminal_that_cannot_draw_gets_lines(terminal, monkeypatch):
    stream, _ = terminal
    with open(os.dup(stream.fileno()), "w", encoding="ascii") as ascii_only:
        assert isinstance(open_display(False, ascii_only), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_display(False, stream), Lines)


def test_no_stream_or_a_closed_one_is_silence():
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        with open_display(False, stream) as display:
            a_step(display, 1, ["a"])
            display.notice("nobody hears")


# --- lines --------------------------------------------------------------------------------------------------------


def lines_of(*reports: StepReport, steps: int = 8) -> list[str]:
    stream = io.StringIO()
    with Lines(stream) as display:
        display.begin("run", steps, 0)
        for report in reports:
            display.step(report)
    return stream.getvalue().splitlines()


def test_a_line_per_step():
    assert lines_of(StepReport(3, METRICS | {"learn/logprob_gap": 2.5e-6})) == [
        "run  8 steps",
        "step 3/8  agreement 0.71  accuracy 0.62  label_accuracy 0.81  reward 0.66  entropy 0.41  sigma 0.0049"
        "  kl -  gap 2.5e-06  12.3 s  410 tok/s",
    ]


def test_lines_without_gold_do_not_speak_of_accuracy():
    without = METRICS | {"rollout/accuracy": None, "vote/label_accuracy": None}
    assert "accuracy" not in lines_of(StepReport(1, without))[1]
    assert "accuracy 0.00" in lines_of(StepReport(1, without | {"rollout/accuracy": 0.0}))[1]


def test_the_history_of_a_resumed_run_fills_the_curves_and_is_not_told_again(terminal):
    history = [StepReport(step, METRICS | {"learn/bad_updates": 1}) for step in (1, 2)]
    log = io.StringIO()
    stream, screen = terminal
    with Lines(log) as lines, open_display(False, stream) as view:
        for display in (lines, view):
            display.begin("run", 4, 2)
            for report in [*history, StepReport(3, METRICS)]:
                display.step(report)
    assert [line[:8] for line in log.getvalue().splitlines()] == ["run  4 s", "step 3/4"]
    assert log.getvalue().startswith("run  4 steps  2 done\n")
    seen = screen()
    assert "not finite" not in seen
    assert "▅▅▅" in seen


def test_a_survey_has_no_steps():
    assert lines_of(steps=0) == ["run"]


def test_bad_updates_are_warned_of():
    assert len(lines_of(StepReport(1, METRICS))) == 2
    assert "not finite: 2" in lines_of(StepReport(1, METRICS | {"learn/bad_updates": 2}))[2]


def test_lines_hold_nothing_but_text_and_nothing_per_problem():
    stream = io.StringIO()
    with Lines(stream) as display:
        for text in HOSTILE:
            display.begin(text, 2, 1)
            display.phase(text, 1)
            display.tally(tally_of(text, text), False)
            display.notice(text)
    lines = stream.getvalue().split("\n")
    assert len(lines) == 2 * len(HOSTILE) + 1
    assert not {c for line in lines for c in line if unicodedata.category(c) in {"Cc", "Cf", "Cs"}}
    assert max(map(len, lines)) < 500


def test_each_line_is_flushed():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(writer, "w", encoding="utf-8") as stream, Lines(stream) as display:
        display.notice("now")
        assert os.read(reader, 100) == b"now\n"
    os.close(reader)


def test_lines_survive_an_encoding_that_lacks_the_characters():
    raw = io.BytesIO()
    with Lines(io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True)) as display:
        display.notice("2 × ✓ \ud800")
        assert raw.getvalue() == b"2 ? ? ?\n"


def test_a_reader_that_goes_away_does_not_stop_the_run():
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    with open_display(False, stream) as display:
        for step in range(3):
            a_step(display, step + 1, ["a"])
            display.notice("to nobody")
    with pytest.raises(BrokenPipeError):
        stream.close()


# --- the live view ------------------------------------------------------------------------------------------------


def test_the_live_view_shows_the_votes_of_the_step():
    display = live()
    display.begin("a run", 4, 0)
    display.phase("step 1: sampling", 3)
    display.tally(tally_of("first", "42", votes=3), True)
    display.tally(tally_of("second", "43", votes=1), False)
    display.tally(tally_of("third", None), None)
    shown = plain(display)
    assert shown[0] == "a run"
    assert shown[1].split()[:2] == ["step", "0/4"]
    assert shown[2].endswith("3/3")
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
    display.phase("step 1: learning", 0)
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


def test_time_left_goes_by_the_steps_of_this_process():
    now = [0.0]
    display = live(lambda: now[0])
    display.begin("resumed", 10, 4)
    assert plain(display)[1].endswith("0:00")
    now[0] = 30.0
    display.step(StepReport(5, METRICS))
    assert plain(display)[1].endswith("0:30, 2:30 left")
    assert plain(display, 40)[1].endswith(" 2:30 left")
    now[0] = 40.0
    assert plain(display)[1].endswith("0:40, 2:20 left")


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


# --- tables and figures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80])
def test_the_summary_shows_both_values_and_the_change(width):
    rows = [("maj@16", 0.75, 0.875), ("sigma", 0.0049, 0.0037), ("kl", None, 0.02), ("nan", float("nan"), 1.0)]
    shown = [line.split() for line in plain(summary_table("Result", rows, "before", "after"), width)]
    assert shown[0] == ["Result"]
    assert shown[1] == ["before", "after", "change"]
    assert shown[2] == ["maj@16", "0.75", "0.88", "+0.12"]
    assert shown[3] == ["sigma", "0.0049", "0.0037", "-0.0012"]
    assert shown[4] == ["kl", "-", "0.02"]
    assert shown[5] == ["nan", "nan", "1.00", "nan"]


def test_answers_show_their_votes():
    answers = [
        {"id": "a", "answer": "56", "agreement": 0.75, "margin": 0.5, "votes": {"54": 4, "56": 12}, "correct": True},
        {"id": "b", "answer": None, "agreement": 0.0, "margin": 0.0, "votes": {}, "correct": None},
        {
            "id": "c",
            "answer": "1",
            "agreement": 0.2,
            "margin": 0.1,
            "votes": dict.fromkeys("123456", 1),
            "correct": False,
        },
    ]
    shown = [line.split() for line in plain(answers_table(answers))]
    assert shown[1] == ["a", "0.75", "0.50", "█▃", "12·4", "✓", "56"]
    assert shown[2] == ["b", "0.00", "0.00", "no", "answer"]
    assert shown[3] == ["c", "0.20", "0.10", "█████", "1·1·1·1·1…", "✗", "1"]
    narrow = [line.split() for line in plain(answers_table(answers), 40)]
    assert narrow[1] == ["a", "0.75", "✓", "56"]


def test_sparkline_by_example():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BLOCKS
    assert sparkline([5.0, 5.0, 5.0]) == BLOCKS[4] * 3
    assert sparkline([0.0, None, 1.0, float("nan"), float("inf"), float("-inf")]) == "▁ █   "
    assert sparkline([]) == ""
    assert sparkline([None]) == " "
    assert sparkline([0.0] * 100 + [1.0] * 3, width=4) == "▁███"
    assert set(sparkline([1.0, 1.001, 0.999])) <= set(BLOCKS[3:5]), "noise around a constant is flat"


@given(values=st.lists(st.none() | st.floats(), max_size=80), width=st.integers(-2, 70))
def test_sparkline_of_any_floats(values, width):
    drawn = sparkline(values, width)
    assert len(drawn) == min(len(values), max(1, width))
    assert set(drawn) <= set(BLOCKS + " ")


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_sparkline_keeps_the_order_of_values(values):
    drawn = sparkline(values)
    for (value, block), (other, other_block) in zip(
        sorted(zip(values, drawn, strict=True)), sorted(zip(values, drawn, strict=True))[1:], strict=False
    ):
        assert value <= other
        assert block <= other_block


@given(share=st.floats(-1, 2), width=st.integers(1, 30))
def test_a_bar_is_as_wide_as_asked_and_as_full_as_its_share(share, width):
    drawn = bar(share, width)
    assert len(drawn) == width
    filled = drawn.count("━") + drawn.count("╸") / 2
    assert abs(filled - min(1, max(0, share)) * width) <= 0.25


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0, "0.00"),
        (0.714, "0.71"),
        (-0.0012, "-0.0012"),
        (1e-5, "1e-05"),
        (410.4, "410"),
        (1e300, "1e+300"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


def test_clock_times():
    assert [clock_time(s) for s in (0.0, 65.9, 3600.0, 36_061.0)] == ["0:00", "1:05", "1:00:00", "10:01:01"]
