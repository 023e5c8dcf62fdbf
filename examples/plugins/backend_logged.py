"""A backend plug-in: rollouts of the built-in engine, with a line of `requests.jsonl` for each as it is finished.

The lines tell which prompts and minds keep a batch waiting. They are added to a file in the working directory.

PYTHONPATH=examples/plugins ttrl-pop run problems.jsonl --backend backend_logged:LoggedBackend
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ttrl_pop import HfBackend, Request, Rollout, Weights

LOG = Path("requests.jsonl")


class LoggedBackend(HfBackend):
    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        start = time.perf_counter()
        with LOG.open("a") as log:
            for index, rollout in super().rollouts(requests, weights):
                row = {
                    "request": index,
                    "mind": rollout.mind.seed,
                    "prompt_tokens": len(rollout.prompt_ids),
                    "completion_tokens": len(rollout.completion_ids),
                    "finish_reason": rollout.finish_reason,
                    "policy_version": rollout.policy_version,
                    "seconds": round(time.perf_counter() - start, 3),
                }
                print(json.dumps(row), file=log, flush=True)
                yield index, rollout
