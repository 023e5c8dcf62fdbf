"""The process in which answers are parsed: JSON lines on pipes.

    python -m ttrl_pop.vote.graders.math_worker CPU_SECONDS WALL_SECONDS BYTES

It imports sympy once and forks a child that answers questions, one at a time. A child that computes for longer than
CPU_SECONDS or dies is replaced by a new fork within milliseconds, so a hostile answer costs its own time and no more.
The limit is on CPU time, lest a busy machine change a verdict; WALL_SECONDS by the clock are for a child that waits.

    {"answers": [a]}     is `a` read and evaluated in time?    {"equal": true}
    {"answers": [a, b]}  are both equal?                       {"equal": false}
                                                               {"failed": "time"} or {"failed": "death"}

The first line that it writes is `{"ready": true}`. It ends when its standard input closes, also in the middle of a
question, and the kernel ends a child that outlives it: CPU seconds are limited for each question, memory by BYTES.

Simplification: POSIX only (fork, resource limits).
"""

import gc
import json
import os
import resource
import select
import signal
import sys
from dataclasses import dataclass
from typing import IO

from ttrl_pop.vote.graders.algebra.comparing import equal
from ttrl_pop.vote.graders.algebra.reading import read

QUESTIONS = 5000
"""Questions after which a fresh child takes the place of the old: libraries keep what they have seen."""
WARM_UP = (
    (r"\frac{1}{2}x^{2}+\sqrt{3}\pi(x-1)", r"\pi\sqrt{3}(x-1)+0.5x^2"),
    (r"x_{1}+e^{x}\sin(x)-2i", r"|x|\cdot 3!"),
    ("(x-1)(x+1)", "x^2-1"),
    (r"\{(1,2),\sqrt{12}\}", r"\{2\sqrt{3},(1,2)\}"),
    ("x<2y", "2x<4y"),
)
"""Pairs that a fork need not read as its first: parsers and simplifiers build tables as they go."""


@dataclass(slots=True)
class _Child:
    """A fork of this process that answers questions until it dies."""

    pid: int
    questions: IO[bytes]
    verdicts: IO[bytes]
    asked: int = 0

    def end(self) -> int:
        """Kill it; returns the signal that it died of, which may have been another before."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.questions.close()
        self.verdicts.close()
        return os.waitstatus_to_exitcode(status)


def main(arguments: list[str]) -> int:
    """Answer the questions on standard input until it closes; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which closes this process when it ends
    cpu_seconds, wall_seconds, memory = float(arguments[0]), float(arguments[1]), int(arguments[2])
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    for a, b in WARM_UP:
        equal(read(a), read(b))
    os.dup2(nowhere, 2)
    gc.freeze()
    child: _Child | None = None
    try:
        replies.write(b'{"ready": true}\n')
        for question in sys.stdin.buffer:
            if child is None or child.asked == QUESTIONS:
                if child:
                    child.end()
                child = _fork(cpu_seconds, memory, replies)
            verdict = _ask(child, question, wall_seconds)
            if b"failed" in verdict:
                if child.end() in (-signal.SIGPROF, -signal.SIGXCPU):
                    verdict = b'{"failed": "time"}\n'
                child = None
            replies.write(verdict)
    except BrokenPipeError:
        return 0  # nobody listens any more
    finally:
        if child:
            child.end()
    return 0


def _ask(child: _Child, question: bytes, wall_seconds: float) -> bytes:
    """The child's verdict as a line; raises BrokenPipeError if the asking process has gone."""
    child.asked += 1
    try:
        child.questions.write(question)
    except BrokenPipeError:
        return b'{"failed": "death"}\n'
    ready, _, _ = select.select([child.verdicts, sys.stdin], [], [], wall_seconds)
    if sys.stdin in ready:  # no second question comes before the first is answered: it can only be closed
        raise BrokenPipeError
    if not ready:
        return b'{"failed": "time"}\n'
    verdict = child.verdicts.readline()
    return verdict if verdict.endswith(b"\n") else b'{"failed": "death"}\n'


def _fork(cpu_seconds: float, memory: int, replies: IO[bytes]) -> _Child:
    """A fresh child; in the child itself it never returns."""
    questions_out, questions_in = os.pipe()
    verdicts_out, verdicts_in = os.pipe()
    pid = os.fork()
    if pid:
        os.close(questions_out)
        os.close(verdicts_in)
        return _Child(pid, os.fdopen(questions_in, "wb", buffering=0), os.fdopen(verdicts_out, "rb"))
    status = 1
    try:
        os.close(questions_in)
        os.close(verdicts_out)
        replies.close()  # or its reader would wait for the child when this process is gone
        memory = _allowed(resource.RLIMIT_AS, memory)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with os.fdopen(questions_out, "rb") as questions, os.fdopen(verdicts_in, "wb", buffering=0) as verdicts:
            for question in questions:
                verdicts.write(_verdict(question, cpu_seconds))
        status = 0
    finally:
        os._exit(status)  # nothing of the parent's is to be flushed or closed twice


def _allowed(kind: int, most: int) -> int:
    """`most`, or less where this process was started under a lower limit (`ulimit`), which it cannot raise."""
    _, hard = resource.getrlimit(kind)
    return most if hard == resource.RLIM_INFINITY else min(most, hard)


def _verdict(question: bytes, cpu_seconds: float) -> bytes:
    """The reply to a question, in a child; past its time it is killed here."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = _allowed(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + cpu_seconds) + 2)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    # Its signal kills, in the midst of C code too.
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    forms = [read(answer) for answer in json.loads(question)["answers"]]
    verdict = {"equal": equal(forms[0], forms[-1])}
    signal.setitimer(signal.ITIMER_PROF, 0)
    return json.dumps(verdict).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
