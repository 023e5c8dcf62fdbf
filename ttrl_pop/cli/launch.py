"""Several processes for one command: started here by `--ranks`, or by torchrun, accelerate and the like.

The first does what a single process does: it reads, shows, votes and writes. The others follow it
(`ttrl_pop.run.follow`): they read no standard input, print nothing, and say what goes wrong through the first. They end
by a signal at once, as they have nothing to save.
"""

import atexit
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from ttrl_pop.cli import advice, interrupts
from ttrl_pop.errors import RankError, TtrlPopError, UsageError
from ttrl_pop.ranks import launched

INTERRUPTED = 130


def start(count: int | None, plan: bool = False, json: bool = False) -> None:
    """Run this command in `count` processes on this machine and end with their exit code; return where they are
    already started, or one is enough.

    Args:
        count: None is as many as are started.
        plan: whether to look at the number alone.
        json: whether a plan is to be rows.

    Raises:
        UsageError: `count` is no number of processes, or not how many were started, or there is no plan to be rows.
        TtrlPopError: a process was killed.
    """
    if json and not plan:
        raise UsageError("--json is how --plan is printed; leave it out, or add --plan (answers are JSON lines anyway)")
    if count is None:
        return
    if count < 1:
        raise UsageError(f"--ranks must be 1 or more, got {count}")
    size = launched.size()
    if size > 1 and size != count:
        raise UsageError(f"--ranks is {count}, but {size} processes were started; leave --ranks out")
    if size == 1 and count > 1 and not plan:
        raise SystemExit(_launched(count))


def take_part(command: Callable[[], None]) -> NoReturn:
    """Do the part of this process in a command that several do: lead, which is to do the command, or follow.

    The process ends here; the exit code is that of the first one to end with another than 0.
    """
    # Nothing is to be saved yet, and a handler of Python's would wait until the others are there.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    from ttrl_pop.ranks.ranks import join

    ranks = join()
    if ranks.rank == 0:
        interrupts.install(once=True)
        _lead(command, ranks.leave)
    advice.hush(True)
    from ttrl_pop.run.follow import follow

    try:
        follow(ranks)
    except RankError as error:
        _end(error.exit_code)
    except TtrlPopError as error:
        ranks.leave(error.exit_code, f"process {ranks.rank}: {error}")
        _end(error.exit_code)
    except Exception as error:
        ranks.leave(1, f"process {ranks.rank}: {type(error).__name__}: {error}; its traceback stands above")
        traceback.print_exc()
        _end(1)
    ranks.leave(0)
    _end(0)


def _lead(command: Callable[[], None], leave: Callable[[int], None]) -> NoReturn:
    code = 1
    try:
        command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        leave(code)
    _end(code)


def _end(code: int) -> NoReturn:
    """End this process at once, with all that was said and all that is to be tidied up done. Left to the interpreter,
    threads of torch.distributed may still wait for it when it is gone, and abort the process."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # Whoever read it has gone, which has been dealt with.
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _launched(count: int) -> int:
    """Exit code of this command, done by `count` processes."""
    # What a launcher tells of itself is not what the user asked for.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"ttrl-pop-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(settings, sys.executable)(*_same_interpreter(), "-m", "ttrl_pop", *sys.argv[1:])
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in (-signal.SIGINT, -signal.SIGTERM):
            return INTERRUPTED
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise TtrlPopError(f"process {rank} was killed ({name}), and with it the others ended") from None
        return int(failure.exitcode)
    return 0


def _same_interpreter() -> list[str]:
    """Options by which another Python finds the modules that this one does."""
    was_module = os.path.basename(sys.argv[0]) == "__main__.py" and not sys.flags.safe_path
    return [] if was_module else ["-P"]
