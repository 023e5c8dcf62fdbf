"""Benchmarks that need no peer run in their quick form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_benchmark_of_votes_runs_and_its_graders_find_the_planted_clusters() -> None:
    command = [sys.executable, "-m", "benchmarks.vote", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    measured = json.loads(done.stdout)
    assert measured["sides"]["math"]["right"] == measured["sides"]["math-verify"]["right"] == measured["problems"]
    assert measured["asked"] < measured["pairs"]
