r"""The default grader: canonical keys first, then algebra in a process of its own that can be killed at any moment.

    MathGrader().same(r"2\sqrt{3}", r"\sqrt{12}")       True

`equal` sees only what no key can decide. Plain numbers and words with different keys are different; whatever else
differs goes to `ttrl_pop.vote.graders.math_worker`, one pair at a time, which starts when the first such pair comes.

Each answer is tried alone before it meets others: if the worker cannot read it in time, that answer alone equals
nothing but its own spelling until `forget` is called. If a pair takes too long although both were read, the longer text
is at fault. A verdict that did not come in time is "not equal" and counted in `timeouts`.

Simplifications:

1. What is too long, too deep, too large or looks like code is never sent; only its key is compared (`is_refused`).
2. A verdict depends on the machine where an answer takes about as long as the limit.
3. Where a system cannot fork a process there is no worker, and keys alone decide; a notice says so.
"""

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from ttrl_pop.errors import TtrlPopError
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.graders.spelling import TEXT_COMMAND, clean, unwrapped

MAX_LENGTH = 400
"""Longest answer that is parsed, in characters."""
MAX_DEPTH = 12
"""Deepest nesting of brackets that is parsed."""
MAX_DIGITS = 60
"""Most digits in a row that are parsed."""
MAX_POWER_DIGITS = 4
"""Most digits of an exponent."""
MAX_FACTORIAL_DIGITS = 3
"""Most digits of any number in an answer with a factorial or a binomial."""
SECONDS = 0.8
"""Limit on the CPU time of one question."""
PATIENCE = 10.0
"""Limit by the clock on the wall, as a multiple of the limit on CPU time, which what computes meets first, on a busy
machine too."""
MEMORY = 2 << 30
"""Limit on the address space of the process that parses, in bytes."""
REMEMBERED = 20_000
"""Verdicts, and answers that were read, of which each as many are kept."""
START_SECONDS = 60.0
"""Time that the worker may take to start, on a slow disk; nothing hostile is read before."""
PACKAGE_FOLDER = str(Path(__file__).parents[3])
"""Where this package is imported from, which the search path may call "", the working directory."""

KEYS_ALONE = (
    "grader math: this system cannot fork a process, so answers are compared by their keys alone, without algebra, as "
    "the grader exact does"
)
"""What a user is told where there is no worker."""

K = TypeVar("K")
V = TypeVar("V")

_CODE = re.compile(
    r"""__ | ["'`;@\x00-\x08\x0b-\x1f\x7f] | \b(?:import|lambda|eval|exec|open|getattr|globals|class|def|return|yield)\b
    | [A-Za-z_)\]]\.[A-Za-z_]""",
    re.VERBOSE,
)
_LONG_POWER = re.compile(rf"(?:\^|\*\*)[\s{{(+-]*[0-9]{{{MAX_POWER_DIGITS + 1},}}")
_TOWER = re.compile(
    r"""(?:\^|\*\*)\s*[{(][^{}()]*[0-9]\s*(?:\^|\*\*) | (?:\^|\*\*)\s*[0-9a-zA-Z]+\s*(?:\^|\*\*)
    | (?:\^|\*\*)\s*[{(][^{}()]*(?:\^|\*\*)\s*[{(][^{}()]*(?:\^|\*\*)""",
    re.VERBOSE,
)
_COUNTED = re.compile(r"!|\\[dt]?binom|\\choose")
_COUNTED_TWICE = re.compile(r"!\s*[)}\]]+\s*!|\\[dt]?binom\s*\{[^{}]*[\^!]")
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:/[0-9]+)?")
_PLAIN_WORDS = re.compile(r"[^\W\d_]{3,}(?:[ .'-]+[^\W\d_]+)*")
_INDIAN = re.compile(r"(?<![\w.,])[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9,])")
_DOUBLE = re.compile(rf"{TEXT_COMMAND}|{_INDIAN.pattern}")
"""A text with two readings, of which the key takes one."""
_BRACED_DIGIT = re.compile(r"\^\{([0-9])\}")
_PROSE = re.compile(
    r"[^\\]*(?<![\\a-zA-Z])(?!(?:and|sqrt|arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|sec|csc|log|exp|infty)(?![a-zA-Z]))"
    r"[a-zA-Z]{3}[^\\]*"
)
"""A text with a word and without a single command."""


class MathGrader(Grader):
    """Equality by key or by algebra. Safe to use from several threads.

    Args:
        seconds: CPU time that the worker may take for one question.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.questions = 0
        """Pairs of distinct answers that were put to the worker."""
        self.notices = () if hasattr(os, "fork") else (KEYS_ALONE,)
        self._exact: Final = ExactGrader()
        self._lock = threading.Lock()
        self._worker = _Worker(seconds)
        self._verdicts: _Recent[tuple[str, str], bool] = _Recent()
        """Replies of the worker to pairs, which depend on the pair alone."""
        self._readable: _Recent[str, bool] = _Recent()
        """Answers that the worker has read."""
        self._given_up = _GivenUp()

    @property
    def timeouts(self) -> int:
        """Questions of the calling thread that got no verdict, because time ran out or the process died over them."""
        return self._given_up.count

    @timeouts.setter
    def timeouts(self, count: int) -> None:
        self._given_up.count = count

    def key(self, answer: str) -> str:
        return self._exact.key(answer)

    def equal(self, a: str, b: str) -> bool:
        if len(a) > MAX_LENGTH or len(b) > MAX_LENGTH:
            return False
        if any(map(_DOUBLE.search, (a, b))) and self._plain_key(a) == self._plain_key(b) != "":
            return True
        if (self._is_plain(a) and self._is_plain(b)) or is_refused(clean(a)) or is_refused(clean(b)):
            return False
        if self.notices:
            return False
        # Before what is known of the pair: a grader that knows less must say the same.
        if not self._given_up.answers.isdisjoint((a, b)):
            return False
        with self._lock:
            return self._verdict((a, b) if a < b else (b, a))

    def doubt(self, answers: Iterable[str | None]) -> str | None:
        return self._exact.doubt(answers)

    def forget(self) -> None:
        self._given_up.answers.clear()

    def close(self) -> None:
        """End the worker; the next question starts another."""
        with self._lock:
            self._worker.close()

    def _plain_key(self, answer: str) -> str:
        r"""The key in a reading that counts where another answer has it: without `\text{}`, as `40 N` is `40\text{ N}`
        whatever `N` is, and with the groups of India, as `12,34,567` is 1234567 beside that and otherwise a list."""
        text = _BRACED_DIGIT.sub(r"^\1", unwrapped(clean(answer)))
        return self._exact.key(text if set("([{") & set(text) else _INDIAN.sub(lambda m: m[0].replace(",", ""), text))

    def _is_plain(self, answer: str) -> bool:
        """Whether an answer is a number or words, of which the key says all that there is to say."""
        key = self.key(answer)
        return bool(_PLAIN_NUMBER.fullmatch(key) or _PLAIN_WORDS.fullmatch(key) or _PROSE.fullmatch(answer))

    def _verdict(self, pair: tuple[str, str]) -> bool:
        verdict = self._verdicts.get(pair)
        if verdict is not None or not all(map(self._is_readable, pair)):
            return bool(verdict)
        self.questions += 1
        reply = self._worker.ask(*pair)
        if reply is None:
            # By text, not by time measured: the same answer is at fault in every run.
            self._give_up(max(pair, key=lambda answer: (len(answer), answer)))
            return False
        self._verdicts.put(pair, bool(reply["equal"]))
        return bool(reply["equal"])

    def _is_readable(self, answer: str) -> bool:
        """Whether the worker reads an answer in time."""
        if self._readable.get(answer):
            return True
        if self._worker.ask(answer) is None:
            self._give_up(answer)
            return False
        self._readable.put(answer, True)
        return True

    def _give_up(self, answer: str) -> None:
        self.timeouts += 1
        self._given_up.answers.add(answer)


def is_refused(answer: str) -> bool:
    """Whether an answer must not reach a parser: a cheap look at its text, linear in `MAX_LENGTH`."""
    if len(answer) > MAX_LENGTH or _CODE.search(answer) or _LONG_POWER.search(answer) or _TOWER.search(answer):
        return True
    if _COUNTED_TWICE.search(answer):
        return True
    digits = max(map(len, re.findall(r"[0-9]+", answer)), default=0)
    if digits > (MAX_FACTORIAL_DIGITS if _COUNTED.search(answer) else MAX_DIGITS):
        return True
    depth = deepest = 0
    for bracket in re.findall(r"[(\[{}\])]", answer):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


class _GivenUp(threading.local):
    """Answers over which time ran out, for each thread: what is compared with gold leaves no trace in the votes."""

    def __init__(self) -> None:
        self.answers: set[str] = set()
        self.count = 0
        """How often that happened."""


class _Recent(Generic[K, V]):
    """A table of what was put or asked for last, up to `REMEMBERED` entries."""

    def __init__(self) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        self._entries[key] = value
        if len(self._entries) > REMEMBERED:
            self._entries.popitem(last=False)


class _Worker:
    """A `math_worker` process that starts when asked, and again after it has gone."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *answers: str) -> dict[str, Any] | None:
        """The reply to a question about one or two answers, or None where it failed.

        A death may have come from outside, so it is asked once more; time that ran out is not.

        Raises:
            TtrlPopError: the worker cannot be started.
        """
        question = json.dumps({"answers": answers}).encode() + b"\n"
        for _ in range(2):
            reply = self._reply(question)
            if reply.get("failed") != "death":
                break
        return None if "failed" in reply else reply

    def close(self) -> None:
        if self._process:
            self._process = None
            self._end()

    def _reply(self, question: bytes) -> dict[str, Any]:
        line = b""
        try:
            process = self._process or self._start()
            assert process.stdin
            process.stdin.write(question)
            # The worker keeps the time itself; a reply that is later says that it was stopped.
            line = _line(process, PATIENCE * self._seconds + 2)
        except BrokenPipeError:
            pass
        finally:
            # Also where Ctrl-C came in between: a line that nobody read would answer the next question.
            if not line:
                self.close()
        if not line:
            return {"failed": "death"}
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        # -P and this process's own search path: nothing that lies in the working directory is imported by accident.
        paths = [path for path in sys.path if path]
        if PACKAGE_FOLDER not in paths:
            paths.insert(0, PACKAGE_FOLDER)
        cpu_seconds, wall_seconds = str(self._seconds), str(PATIENCE * self._seconds)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ttrl_pop.vote.graders.math_worker", cpu_seconds, wall_seconds, str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,  # Ctrl-C on a terminal is for the run, not for the worker
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self._end = weakref.finalize(self, _stop, process)
        self._process = process
        if not _line(process, START_SECONDS):
            self.close()
            raise TtrlPopError(
                f"the process of the math grader must start within {START_SECONDS:.0f} s, got exit status "
                f"{process.returncode}; its error stands above, if it wrote one. --set vote.grader=exact does without"
            )
        return process


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The line that the process writes, or nothing where it ends or writes none in time."""
    assert process.stdout
    line = b""
    deadline = time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        if not piece:
            return b""
        line += piece
    return line


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Close its input, at which it ends itself and its child; kill it where it does not."""
    assert process.stdin
    assert process.stdout
    process.stdin.close()
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
