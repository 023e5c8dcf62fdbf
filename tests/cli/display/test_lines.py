"""One plain line a step, for logs."""

import io
import itertools
import os
import threading
import unicodedata

from cli.display.drawing import HOSTILE, METRICS, tally_of

from ttrl_pop.cli.display.lines import SIGNS, SILENCE, Lines
from ttrl_pop.sample.meter import Meter
from ttrl_pop.types import Load, StepReport


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


def test_a_long_silence_is_broken_by_how_far_it_is():
    now, meter, stream = [0.0], Meter(), io.StringIO()
    display = Lines(stream, lambda: now[0])
    display.begin("run", 2, 0, Load(survey=8, sample=8, steps=1), meter)
    display.phase("before training: answering", 8, "survey")
    now[0], meter.rollouts, meter.finished, meter.under_way = SILENCE - 1, 4, 30, 5
    assert display.sign_of_life() == 1
    now[0] = SILENCE
    assert display.sign_of_life() == SILENCE
    assert display.sign_of_life() == SILENCE
    now[0] += SILENCE
    display.notice("told")
    assert display.sign_of_life() == SILENCE
    now[0] += SILENCE
    display.phase("step 1: learning", 8, "learn")
    now[0] += 1
    display.sign_of_life()
    assert stream.getvalue().splitlines() == [
        "run  2 steps",
        "before training: answering  4/8 rollouts  35 tokens  0:50  over 2:30 left",
        "told",
        "step 1: learning  0:01  over 2:30 left",
    ]


def test_signs_of_life_come_by_themselves_and_end_with_the_display():
    said = threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            said.set()
            return super().write(text)

    clock = itertools.count(step=SILENCE)
    with Lines(Stream(), lambda: float(next(clock))):
        assert said.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name == SIGNS]


def test_a_step_says_how_long_it_goes_on():
    now, stream = [0.0], io.StringIO()
    display = Lines(stream, lambda: now[0])
    display.begin("run", 2, 0, Load(sample=8, steps=2))
    for step in (1, 2):
        display.phase("sampling", 4, "sample")
        now[0] += 20
        display.phase("learning", 4, "learn")
        now[0] += 10
        display.step(StepReport(step, METRICS))
    assert [line.split("  ")[-1] for line in stream.getvalue().splitlines()[1:]] == ["0:28 left", "410 tok/s"]


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
