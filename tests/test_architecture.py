"""Imports point down only, from floor to floor."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ttrl_pop"
LONGEST = 400
"""Lines of a file."""
BARE = re.compile(r"(Of|Those|That of|Its|Theirs)\b")
"""First words that tell nothing to a reader who sees the docstring's first line alone, as hover text shows it."""
FLOORS = [
    ("__main__",),
    ("integrations",),
    ("api",),
    ("cli",),
    ("plan",),
    ("train", "fit", "export", "letters", "serve", "study"),
    ("run",),
    ("sample", "learn", "store"),
    ("model", "vote"),
    ("packing", "population", "report", "read"),
    ("kernels", "latent", "ranks"),
    (
        *(
            "types",
            "config",
            "config_file",
            "demo",
            "embeddings",
            "errors",
            "plugins",
            "presets",
            "randomness",
            "settings",
        ),
        *("text", "thoughts", "words"),
    ),
]
"""From the top. A room (a wing, or a module of the root) imports from the floors below and from itself; rooms of the
lowest floor import each other. The face, `ttrl_pop/__init__.py`, stands outside: it points to every floor, and nothing
but `__version__` is taken from it."""
FACE = ROOT / "__init__.py"
FILES = sorted(set(ROOT.rglob("*.py")) - {FACE})
GOLD = {"ttrl_pop.report.gold", "ttrl_pop.vote.rewards.gold"}
LAYERS = {f"ttrl_pop.kernels.{name}" for name in ("install", "fused", "plain_layer", "matmul")}


def room(module: str) -> str:
    """`ttrl_pop.vote.clusters` → `vote`."""
    return [*module.split("."), "__init__"][1]


def module(file: Path) -> str:
    return ".".join(["ttrl_pop", *file.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def imported(source: str) -> Iterator[str]:
    """Dotted names that a file imports, the ones for type checkers and inside functions among them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def upwards(name: str, source: str) -> list[str]:
    """What the file `source` of room `name` imports from its own floor, from one above, or from the face."""
    found = [target for target in imported(source) if target.startswith("ttrl_pop.")]
    rooms = set().union(*FLOORS)
    from_face = [target for target in found if room(target) not in {*rooms, "__version__"}]
    others = [target for target in found if room(target) in rooms - {name}]
    lowest = len(FLOORS) - 1 if name in FLOORS[-1] else -1
    return from_face + [
        target for target in others if floor(room(target)) <= floor(name) and floor(room(target)) != lowest
    ]


@pytest.mark.parametrize("file", FILES, ids=module)
def test_imports_point_down(file: Path) -> None:
    assert upwards(room(module(file)), file.read_text()) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vote", "from ttrl_pop.run.session import Session"),
        ("sample", "from ttrl_pop.learn import grpo"),
        ("types", "import ttrl_pop.kernels.memory"),
        ("cli", "from ttrl_pop import Population"),
    ],
)
def test_an_import_upwards_is_seen(name: str, line: str) -> None:
    assert len(upwards(name, f"def later():\n    {line}\n")) == 1


def importers(targets: set[str], sources: dict[str, str]) -> set[str]:
    """Modules that import one of `targets`, or something of it."""
    found = {name: [f"{target}." for target in imported(source)] for name, source in sources.items()}
    return {name for name, names in found.items() if any(n.startswith(f"{t}.") for n in names for t in targets)}


def never(sources: dict[str, str]) -> set[str]:
    """Modules that reach what they never may: gold answers where rollouts are written and learned, be it by way of
    others; fast layers and products but where a model becomes a policy; how memory is taken but at the edge."""
    reach: set[str] = set()
    while further := importers(GOLD | reach, sources) - reach:
        reach |= further
    return (
        {name for name in reach if room(name) in ("learn", "sample", "model")}
        | {name for name in importers(LAYERS, sources) if room(name) not in ("model", "kernels")}
        | {
            name
            for name in importers({"ttrl_pop.kernels.malloc", "ttrl_pop.kernels.threads"}, sources)
            if room(name) != "cli"
        }
    )


def test_nothing_reaches_what_it_never_may() -> None:
    assert never({module(file): file.read_text() for file in FILES}) == set()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("learn.grpo", "from ttrl_pop.vote.rewards import gold"),
        ("model.load", "from ttrl_pop.report.step import step_report"),
        ("sample.hf.draw", "from ttrl_pop.kernels.matmul import product"),
        ("packing.plan", "import ttrl_pop.kernels.install"),
        ("train", "from ttrl_pop.kernels import malloc"),
    ],
)
def test_a_reach_for_it_is_seen(name: str, line: str) -> None:
    sources = {module(file): file.read_text() for file in FILES}
    sources[f"ttrl_pop.{name}"] += f"\n\ndef later():\n    {line}\n"
    assert f"ttrl_pop.{name}" in never(sources)


def test_every_module_has_a_docstring() -> None:
    for file in [FACE, *FILES]:
        assert ast.get_docstring(ast.parse(file.read_text())), file


def test_what_needs_no_torch_imports_none() -> None:
    light = [
        *FLOORS[-1],
        *("read.problems", "read.rollouts", "report.measures", "kernels.malloc"),
        *(
            "vote.extract.extractor",
            "vote.vote",
            "vote.rules",
            "vote.graders.exact",
            "vote.rewards.base",
            "vote.rewards.novelty",
        ),
        *("population.options", "sample.hf.options", "sample.vllm.options"),
        *("cli.app", "cli.config", "cli.inputs", "cli.interrupts", "cli.stdout", "cli.printing", "cli.vote"),
        *("cli.display.live", "cli.report", "cli.view", "cli.launch", "ranks.shards", "ranks.orders"),
    ]
    script = "; ".join(f"import ttrl_pop.{name}" for name in light)
    script += "; import sys; assert not {'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_problem_cannot_carry_an_answer() -> None:
    from ttrl_pop.types import Problem

    assert set(Problem.__slots__) == {"id", "prompt", "index"}


def test_only_report_and_evaluation_read_gold() -> None:
    # `rewards` holds the gold reward, which has to be asked for by name.
    readers = {module(file) for file in FILES if re.search(r"\bAnswerKey\b", file.read_text())}
    assert readers == {
        f"ttrl_pop.{name}"
        for name in (
            "types",
            "read.problems",
            "read.holdout",
            "report.step",
            "report.rows",
            "report.gold",
            "report.measures",
            "vote.rewards.base",
            "vote.rewards.gold",
            "vote.rules",
            "run.session",
            "cli.vote",
            "api.vote",
            "integrations.trl",
            "integrations.verl.reward",
        )
    }


def test_no_file_is_long() -> None:
    lengths = {module(file): len(file.read_text().splitlines()) for file in sorted(ROOT.rglob("*.py"))}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def bare_docstrings(source: str) -> list[str]:
    """First lines of docstrings, those of attributes among them, that begin with a word of `BARE`."""
    found = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr))
    texts = (node.value.strip() for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [text.splitlines()[0] for text in texts if BARE.match(text)]


def test_the_first_line_of_a_docstring_says_what_the_thing_is() -> None:
    assert {
        module(file): found for file in sorted(ROOT.rglob("*.py")) if (found := bare_docstrings(file.read_text()))
    } == {}


@pytest.mark.parametrize(
    "first", ["Of a step.", "Those that\n    wait.", "That of the base.", "\n    Its size.", "Theirs."]
)
@pytest.mark.parametrize(
    "source",
    [
        '"""{}"""\n',
        'class Row:\n    """{}"""\n',
        'class Row:\n    def length(self):\n        """{}"""\n',
        'async def wait():\n    """{}"""\n',
        'class Row:\n    length: int\n    """{}"""\n',
        'ROWS = 3\n"""{}"""\n',
    ],
    ids=["module", "class", "method", "function", "field", "constant"],
)
def test_a_bare_docstring_is_seen(source: str, first: str) -> None:
    assert bare_docstrings(source.format(first)) == [first.strip().splitlines()[0]]
    assert bare_docstrings(source.format("Offsets of a row; those of others too.")) == []
