"""Problems that reasoning-gym makes: read alike whenever they are asked for, and refused in one line."""

import sys
from types import ModuleType
from typing import Any

import pytest

from ttrl_pop.config import ProblemsConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.read.gym import LARGEST, SEED, SIZE
from ttrl_pop.read.problems import read_gold, read_problems


class Made:
    """A task of the package, as far as it is looked at."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> dict[str, Any]:
        value = 1000 * self.seed + number
        return {"question": f"What is {value} + 1?", "answer": None if number == 2 else str(value + 1), "metadata": {}}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return float(answer == entry["answer"])


class Lenient(Made):
    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return 1.0


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_dataset(name: str, size: int, seed: int) -> Made:
        if size > 1000:
            raise ValueError("too\x1b[31m many")
        return {"sums": Made, "lenient": Lenient}[name](size, seed)

    dataset, factory = ModuleType("reasoning_gym.dataset"), ModuleType("reasoning_gym.factory")
    dataset.ProceduralDataset = Made  # type: ignore[attr-defined]
    factory.DATASETS = {"sums": None, "lenient": None}  # type: ignore[attr-defined]
    factory.create_dataset = create_dataset  # type: ignore[attr-defined]
    for module in (ModuleType("reasoning_gym"), dataset, factory):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def read(source: str, notices: list[str] | None = None, **options: Any) -> Any:
    said: list[str] = [] if notices is None else notices
    return read_problems(source, ProblemsConfig(**options), notice=said.append)


@pytest.mark.usefixtures("package")
def test_size_and_seed_say_which_problems() -> None:
    found = read("gym:sums:4:7")
    assert [problem.id for problem in found.problems] == ["sums-0", "sums-1", "sums-2", "sums-3"]
    assert [found.answers.get(problem.id) for problem in found.problems] == ["7001", "7002", None, "7004"]
    assert found.fingerprint == read("gym:sums:4:7").fingerprint != read("gym:sums:4:8").fingerprint
    # What leads to the same ones again holds every number.
    plain = read("gym:sums")
    assert plain.source == f"gym:sums:{SIZE}:{SEED}"
    assert plain.fingerprint == read(plain.source).fingerprint
    assert len(plain.problems) == SIZE
    assert len(read("gym:sums", limit=3).problems) == 3


@pytest.mark.usefixtures("package")
def test_gold_can_be_read_alone() -> None:
    assert read_gold("gym:sums:2:1", ProblemsConfig()).get("sums-1") == "1002"


@pytest.mark.usefixtures("package")
def test_a_rule_of_its_own_for_what_is_right_is_told() -> None:
    notices: list[str] = []
    read("gym:sums:2", notices)
    assert notices == []
    read("gym:lenient:2", notices)
    assert notices == [
        "gym:lenient:2: reasoning-gym has a rule of its own for what is right; here it is what equals its answer"
    ]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gym:", "a task of reasoning-gym is named gym:NAME[:SIZE[:SEED]]"),
        ("gym:sums:1:2:3", "a task of reasoning-gym is named gym:NAME[:SIZE[:SEED]]"),
        ("gym:sum:1", "reasoning-gym has no task 'sum'; did you mean sums?"),
        ("gym:zzzz", "reasoning-gym has no task 'zzzz': its README lists them"),
        ("gym:sums:0", f"SIZE is a whole number from 1 to {LARGEST}, got '0'"),
        ("gym:sums:many", f"SIZE is a whole number from 1 to {LARGEST}, got 'many'"),
        ("gym:sums:" + "9" * 5000, f"SIZE is a whole number from 1 to {LARGEST}, got '9"),
        ("gym:sums:2:-1", f"SEED is a whole number from 0 to {LARGEST}, got '-1'"),
        ("gym:sums:2:", f"SEED is a whole number from 0 to {LARGEST}, got ''"),
        ("gym:sums:5000", "reasoning-gym cannot make 5000 problems of it (too"),
    ],
)
def test_what_names_no_problems_is_one_line(source: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(source)
    said = str(refused.value)
    assert message in said
    assert "\n" not in said
    assert "\x1b" not in said


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UsageError, match=r"run: pip install 'ttrl-pop\[gym\]'"):
        read("gym:chain_sum")


def test_a_real_task_is_read() -> None:
    pytest.importorskip("reasoning_gym")
    found = read("gym:letter_counting:3:5")
    assert len(found.problems) == 3
    assert all(found.answers.get(problem.id, "").isdecimal() for problem in found.problems)
    assert found.fingerprint == read("gym:letter_counting:3:5").fingerprint
