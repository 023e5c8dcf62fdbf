"""Which display fits a stream, and what all of them have in common."""

import io
import os

import pytest
from cli.display.drawing import METRICS, a_step

from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.display.base import Display
from ttrl_pop.cli.display.lines import Lines
from ttrl_pop.cli.display.live import Live
from ttrl_pop.types import StepReport


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
