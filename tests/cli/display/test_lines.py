"""One plain line a step, for logs."""

import io
import os
import unicodedata

from cli.display.drawing import HOSTILE, METRICS, tally_of

from ttrl_pop.cli.display.lines import Lines
from ttrl_pop.types import StepReport


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
