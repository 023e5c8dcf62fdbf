"""The experiment: each regime trained and measured, several at a time, one process and one thread for each.

A result depends on its regime and seed alone: not on how many run beside it, nor on how many cores there are.
"""

import os
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context
from typing import Any

import torch

from ttrl_pop.latent.codes import BIT
from ttrl_pop.letters import figures, task
from ttrl_pop.letters.figures import PREDICTED, Agreement, Costs
from ttrl_pop.letters.regimes import Regime, train

TEMPERATURES = (0.6, 1.0)
"""Temperatures at which texts are written. The first is near that of the paper's figure: at 1 there is more noise."""
CODES, EACH = 32, 8
"""Codes that texts are generated from, and texts of each of them."""
TEXTS = 512
"""Texts of the task that costs are measured on."""
SHOWN = 5
"""Texts that a result shows."""
TICK = 20
"""Steps between two signs of life."""


@dataclass(frozen=True, slots=True)
class Result:
    """A trained regime in figures."""

    regime: Regime
    seed: int
    costs: Costs
    agreements: dict[float, Agreement]
    """By temperature."""
    same: tuple[str, ...]
    """Texts of one code, at the first temperature."""
    fresh: tuple[str, ...]
    """Texts of one code each."""

    def row(self) -> dict[str, Any]:
        """The result as a JSON object; costs in nats a token, gap and KL in bits a text."""
        return {
            "kappa": self.regime.kappa,
            "seed": self.seed,
            "steps": self.regime.steps,
            "alive": not self.costs.is_dead,
            "ce_posterior": self.costs.posterior,
            "ce_prior": self.costs.prior,
            "gap_bits": self.costs.gap_bits,
            "kl_bits": self.costs.kl * PREDICTED / BIT,
            "marginal_kl_bits": self.costs.marginal_kl * PREDICTED / BIT,
            "live_bits": self.costs.live_bits,
            "temperatures": [{"temperature": at} | asdict(found) for at, found in self.agreements.items()],
            "same": list(self.same),
            "fresh": list(self.fresh),
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a regime is."""

    regime: Regime
    seed: int
    step: int


def measured(regime: Regime, seed: int, tick: Callable[[int], None]) -> Result:
    """Train a regime and measure it; `tick` is told the step now and then."""
    for step, trained in enumerate(train(regime, seed), 1):
        model = trained
        if step % TICK == 0 or step == regime.steps:
            tick(step)
    texts = {at: figures.generate(model, CODES, EACH, at, seed) for at in TEMPERATURES}
    first = texts[TEMPERATURES[0]]
    return Result(
        regime,
        seed,
        figures.costs(model, TEXTS, seed),
        {at: figures.agreement(found, EACH) for at, found in texts.items()},
        tuple(task.spelled(text) for text in first[:SHOWN]),
        tuple(task.spelled(text) for text in first[::EACH][1 : SHOWN + 1]),
    )


def experiment(regimes: Sequence[Regime], seeds: Sequence[int], processes: int | None = None) -> Iterator[Any]:
    """Train all regimes with all seeds; yields `Progress`, and each `Result` as soon as it is there.

    Args:
        processes: how many at a time; None is as many as there are cores for this process.
    """
    context = get_context("spawn")
    news: Any = context.Queue()
    count = min(processes or len(os.sched_getaffinity(0)), len(regimes) * len(seeds))
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(news,))
    try:
        waiting: set[Future[Result]] = {
            # The longest first, so that the last ones to end are short.
            pool.submit(_work, regime, seed)
            for seed in seeds
            for regime in sorted(regimes, key=lambda regime: -regime.steps)
        }
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            yield from _told(news)
            for future in done:
                yield future.result()
    except BaseException:
        for process in active_children():  # what is still being trained is of no use any more
            process.terminate()
        raise
    finally:
        # Waiting for it: a pool that is taken down beside the interpreter finds its pipes closed, and says so.
        pool.shutdown(cancel_futures=True)


_news: Any = None
"""Where a process of the pool tells how far it is."""


def _begin(news: Any) -> None:
    global _news
    _news = news
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends its processes
    torch.set_num_threads(1)


def _work(regime: Regime, seed: int) -> Result:
    return measured(regime, seed, lambda step: _news.put(Progress(regime, seed, step)))


def _told(news: Any) -> Iterator[Progress]:
    while True:
        try:
            yield news.get_nowait()
        except queue.Empty:
            return
