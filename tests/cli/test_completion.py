"""What a shell offers: asked for as a shell does, in a process of its own, without torch."""

import os
import subprocess
import sys

import pytest

from ttrl_pop.plugins import BUILT_IN
from ttrl_pop.presets import NAMES


def offered(*words: str) -> list[str]:
    """What bash would show behind these words, of which the last is not finished."""
    script = (
        "import sys; sys.argv = ['ttrl-pop']; sys.modules['torch'] = None; from ttrl_pop.cli.app import main; main()"
    )
    asked = {"_TTRL_POP_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["ttrl-pop", *words])}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **asked, "COMP_CWORD": str(len(words))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "--preset", ""], [*NAMES]),
        (["config", "--preset", "ma"], ["math-chat", "math-raw"]),
        (["vote", "--grader", ""], [*BUILT_IN["grader"]]),
        (["run", "--reward", "g"], ["gated", "gold"]),
        (["eval", "--extract", ""], ["auto", *BUILT_IN["extractor"]]),
        (["run", "--backend", ""], ["auto", *BUILT_IN["backend"]]),
        (["run", "--population", "no"], ["norm-noise", "none"]),
        (["run", "--set", "learn.lora."], ["learn.lora.rank=", "learn.lora.alpha=", "learn.lora.targets="]),
        (["run", "--set", "population.options.sig"], ["population.options.sigma="]),
        (["dem"], ["demo"]),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_a_shell_is_offered_what_there_is(words: list[str], expected: list[str]) -> None:
    assert offered(*words) == expected
