"""The process that parses: limits, deaths, interrupts and ends."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from fakes import CASES, text_of

from ttrl_pop.vote.graders import math
from ttrl_pop.vote.graders.algebra import reading
from ttrl_pop.vote.graders.math import MAX_LENGTH, MathGrader

HOSTILE = json.loads((CASES / "hostile.json").read_text(encoding="utf-8"))
T = TypeVar("T")


def pid_of(grader: MathGrader) -> int:
    assert grader._worker._process
    return grader._worker._process.pid


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_child(worker: int) -> int | None:
    """The child that has computed for much longer than what it was asked before could take."""
    return next((child for child in children(worker) if cpu_seconds(child) > 0.5), None)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_until(condition: Callable[[], T]) -> T:
    """What the condition gives once it holds."""
    end = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


@pytest.mark.parametrize("limit", ["RLIMIT_AS, (1 << 30, 1 << 30)", "RLIMIT_CPU, (600, 600)", "RLIMIT_CPU, (2, 600)"])
def test_a_process_with_limits_of_its_own_grades_all_the_same(limit: str) -> None:
    # The limit holds for the worker too, which cannot raise it to what it would choose.
    code = f"""
import resource
from ttrl_pop.vote.graders.math import MathGrader
resource.setrlimit(resource.{limit})
grader = MathGrader(seconds=1000.0)
print(grader.same("x+1", "1+x"), grader.timeouts)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True 0\n", done.stderr


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("victim", ["worker", "child"])
def test_a_process_killed_from_outside_in_the_middle_of_a_question_costs_at_most_that_question(victim: str) -> None:
    grader = MathGrader(seconds=60.0)
    assert grader.same("x+1", "1+x")
    worker = pid_of(grader)
    verdicts: list[tuple[bool, int]] = []
    asking = threading.Thread(
        target=lambda: verdicts.append((grader.same("2^{999!}", "x"), grader.timeouts)), daemon=True
    )
    asking.start()

    def busy_pair() -> tuple[int, int] | None:
        process = grader._worker._process
        child = busy_child(process.pid) if process else None
        return (process.pid, child) if process and child and child not in killed else None

    # Once more after the first death, not after the second.
    killed: list[int] = []
    for _ in range(2):
        parent, child = wait_until(busy_pair)
        killed.append(child)
        os.kill(parent if victim == "worker" else child, signal.SIGKILL)
    asking.join(timeout=30)
    assert verdicts == [(False, 1)]
    assert grader.timeouts == 0, "those of another thread"
    assert grader.same("x+2", "2+x")
    assert (pid_of(grader) == worker) == (victim == "child")
    grader.close()


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("victim", ["worker", "child"])
def test_a_process_killed_between_questions_costs_nothing(hasty: MathGrader, victim: str) -> None:
    timeouts, worker = hasty.timeouts, pid_of(hasty)
    assert hasty.same("x+4", "4+x")
    os.kill(worker if victim == "worker" else children(worker)[0], signal.SIGKILL)
    answer = {"worker": "x+5", "child": "x+6"}[victim]
    assert hasty.same(answer, answer[::-1])
    assert hasty.timeouts == timeouts


@pytest.mark.slow
@needs_proc
def test_a_stopped_worker_is_replaced(hasty: MathGrader) -> None:
    worker = pid_of(hasty)
    os.kill(worker, signal.SIGSTOP)
    assert hasty.same("x+3", "3+x")
    assert pid_of(hasty) != worker
    assert not is_running(worker)


@pytest.mark.slow
@needs_proc
def test_a_child_that_waits_its_turn_longer_than_its_cpu_limit_is_not_given_up() -> None:
    grader = MathGrader(seconds=0.4)
    assert grader.same("x+1", "1+x")
    (child,) = children(pid_of(grader))
    os.kill(child, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (child, signal.SIGCONT)).start()
    assert grader.same("x+2", "2+x")
    assert children(pid_of(grader)) == [child]
    grader.close()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "question"])
def test_an_interrupt_leaves_no_line_that_would_answer_the_next_question(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    grader = MathGrader()
    if moment == "question":
        assert grader.same("x+1", "1+x")

    def interrupted(process: subprocess.Popen[bytes], seconds: float) -> bytes:
        assert process.stdout
        select.select([process.stdout], [], [], 60)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(math, "_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grader.same("x+2", "2+x")
    assert not grader.same("x+3", "x+4")
    assert grader.same("x+5", "5+x")
    grader.close()


@pytest.mark.slow
@needs_proc
def test_closing_leaves_no_process_behind_and_a_later_question_starts_anew() -> None:
    grader = MathGrader(seconds=0.4)
    assert grader.same("x+1", "1+x")
    assert not grader.same("2^{999!}", "x")
    family = [pid_of(grader), *children(pid_of(grader))]
    grader.close()
    wait_until(lambda: not any(map(is_running, family)))
    assert not Path(f"/proc/{family[0]}").exists()  # reaped, not a zombie
    assert grader.same("x+2", "2+x")
    worker = pid_of(grader)
    del grader
    wait_until(lambda: not Path(f"/proc/{worker}").exists())


SCRIPT = """
import sys
from ttrl_pop.vote.graders.math import MathGrader
grader = MathGrader(seconds=60.0)
assert grader.same("x+1", "1+x")
print(grader._worker._process.pid, flush=True)
if sys.argv[1] == "busy":
    grader.same("2^{999!}", "x")
elif sys.argv[1] == "idle":
    sys.stdin.read()
"""


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("state", ["busy", "idle", "ending"])
def test_the_worker_ends_with_its_parent(state: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        family = [worker]
        if state != "ending":
            family += [wait_until(lambda: busy_child(worker))] if state == "busy" else children(worker)
            parent.kill()
        assert parent.wait(timeout=60) == (0 if state == "ending" else -signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, family)))


@pytest.mark.slow
def test_it_works_from_many_threads_at_once() -> None:
    grader = MathGrader()
    verdicts: dict[int, bool] = {}

    def ask(number: int) -> None:
        verdicts[number] = grader.same(f"x+{number}", f"{number}+x") and not grader.same(f"x+{number}", f"x-{number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert verdicts == dict.fromkeys(range(1, 17), True)
    grader.close()


@pytest.mark.slow
def test_the_worker_needs_no_torch_and_nothing_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, ttrl_pop.vote.graders.math_worker; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    (tmp_path / "sympy.py").write_text("raise SystemExit('imported by accident')")
    monkeypatch.chdir(tmp_path)
    grader = MathGrader()
    assert grader.same("x+1", "1+x")
    grader.close()


@pytest.mark.slow
def test_the_worker_imports_this_package_from_where_the_asking_process_has_it(tmp_path: Path) -> None:
    shutil.copytree(Path(reading.__file__).parents[3], tmp_path / "ttrl_pop")
    with (tmp_path / "ttrl_pop/vote/graders/algebra/reading.py").open("a", encoding="utf-8") as file:
        file.write("\nopen('imported', 'w').close()\n")
    script = "from ttrl_pop.vote.graders.math import MathGrader; print(MathGrader().same('x+1', '1+x'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert (tmp_path / "imported").exists()


def test_a_worker_that_cannot_start_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from ttrl_pop.errors import TtrlPopError

    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TtrlPopError, match=r"must start within .* exit status 1.*vote\.grader=exact"):
        MathGrader().same("x+1", "1+x")


@pytest.mark.slow
@needs_proc
def test_a_thousand_hostile_answers_leave_memory_flat(hasty: MathGrader) -> None:
    texts = [text_of(case)[: MAX_LENGTH - 5] for case in HOSTILE]
    grader = MathGrader(seconds=20.0)  # far more than what the hasty one decides can take
    assert grader.same("x+1", "1+x")
    worker = pid_of(grader)

    def in_time(number: int, grader: MathGrader) -> bool:
        # Distinct answers: what was decided before would be remembered.
        before = grader.timeouts
        grader.same(f"{number}+{texts[number % len(texts)]}", "x+1")
        return grader.timeouts == before

    def resident() -> int:
        return sum(map(resident_bytes, [os.getpid(), worker, *children(worker)]))

    # Those that cost a child its life would only hide what it keeps.
    texts = [text for number, text in enumerate(texts) if in_time(number, hasty)]
    assert len(texts) > len(HOSTILE) / 2
    for number in range(200):
        in_time(1000 + number, grader)
    before, family = resident(), children(worker)
    for number in range(1000):
        in_time(2000 + number, grader)
    assert resident() - before < 40 << 20
    assert (pid_of(grader), children(worker)) == (worker, family)
    grader.close()
