"""`ttrl-pop vote`: the votes of training on rollouts from a file or a pipe, at flat memory, without torch."""

import gzip
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli.commands import GOLD, rows_of, ttrl
from fakes import PROBLEMS, save_tiny, tiny_session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ttrl_pop.report.measures import measure
from ttrl_pop.report.rows import rollout_rows, vote_row
from ttrl_pop.run.survey import survey
from ttrl_pop.store import files
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.types import AnswerKey, Problem

CHAT = tuple(Problem(p.id, ({"role": "user", "content": str(p.prompt)},), p.index) for p in PROBLEMS)


def lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def votes(rows: Sequence[dict[str, Any]], *more: object) -> list[dict[str, Any]]:
    return rows_of(ttrl("vote", "-", "--quiet", *more, stdin=lines(rows)).stdout)


def said(problem: str, *answers: str) -> list[dict[str, Any]]:
    return [{"id": problem, "text": rf"\boxed{{{answer}}}" if answer else "well"} for answer in answers]


def gold_file(folder: Path, gold: dict[str, str]) -> Path:
    (folder / "gold.jsonl").write_bytes(lines([{"id": i, "answer": a} for i, a in gold.items()]))
    return folder / "gold.jsonl"


# --- the same votes as everywhere ---


@pytest.mark.parametrize(
    ("problems", "extract", "reward", "weight"),
    [
        (PROBLEMS, "auto", "majority", "rollout"),
        (CHAT, "auto", "gated+0.2*format", "confidence"),
        (CHAT, "regex:[a-zA-Z]", "gold", "mind"),
        (CHAT, "regex:[a-zA-Z]", "gated+0.2*format", "confidence"),
    ],
)
def test_rollouts_get_the_votes_of_the_session_that_wrote_them(
    problems: tuple[Problem, ...], extract: str, reward: str, weight: str, tmp_path: Path
) -> None:
    more = {"vote.extract": extract, "vote.reward": reward, "vote.weight": weight, "vote.grader": "exact"}
    session = tiny_session(
        problems=problems,
        gold=GOLD,
        population__samples_per_mind=2,
        **{key.replace(".", "__"): value for key, value in more.items()},
    )
    tallies = list(survey(session))
    assert any(tally.label for tally in tallies) == (problems == PROBLEMS or extract != "auto")
    rows = [row for tally in tallies for row in rollout_rows(tally)]
    flags = [part for key, value in more.items() for part in (f"--{key.split('.')[1]}", value)]
    found = votes(rows, "--gold", gold_file(tmp_path, GOLD), *flags)
    wanted = [vote_row(tally, session.gold, session.grader.same) for tally in tallies]
    if weight == "confidence":
        # The rows hold log-probabilities of six decimals.
        assert [row["label"] for row in found] == [row["label"] for row in wanted]
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine["agreement"] == pytest.approx(theirs["agreement"], abs=1e-4)
    else:
        assert found == wanted


def test_what_sample_and_run_wrote_is_voted_on_as_it_stands(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    (tmp_path / "p.jsonl").write_bytes(lines([{"id": p.id, "prompt": p.prompt} for p in PROBLEMS]))
    out = RunDirectory(tmp_path / "run")
    flags = ("--model", tmp_path / "tiny", "--minds", 3, "--set", "population.options.sigma=0.3", "--quiet")
    short = ("--steps", 1, "--set", "sampling.max_new_tokens=4", "--extract", "last-number")
    answers = rows_of(ttrl("run", tmp_path / "p.jsonl", "--out", out.path, *flags, *short).stdout)
    config = ("--config", out.config, "--quiet")
    logged = list(files.read_lines(out.rollouts(1)))
    found = rows_of(ttrl("vote", out.rollouts(1), *config).stdout)
    assert [reward for row in found for reward in row["rewards"]] == [row["reward"] for row in logged]
    sampled = ttrl("sample", tmp_path / "p.jsonl", "--run", out.path, "--quiet").stdout_bytes
    found = rows_of(ttrl("vote", "-", *config, stdin=sampled).stdout)
    assert [(row["id"], row["label"], row["agreement"]) for row in found] == [
        (row["id"], row["answer"], row["agreement"]) for row in answers
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.permutations([*said("p", "1", "1.0", "2", "02", "3", "", "2/1", "")]))
def test_the_order_of_a_problems_rows_does_not_matter(rows: list[dict[str, Any]]) -> None:
    (sorted_row,) = votes(sorted(rows, key=lambda row: row["text"]))
    (row,) = votes(rows)
    of_text = dict(zip([r["text"] for r in sorted(rows, key=lambda r: r["text"])], sorted_row["rewards"], strict=True))
    assert row["rewards"] == [of_text[r["text"]] for r in rows]
    assert {**row, "rewards": []} == {**sorted_row, "rewards": []}
    assert (row["label"], row["abstained"], [c["votes"] for c in row["clusters"]]) == ("02", 2, [3, 2, 1])


def test_a_vote_is_what_it_says() -> None:
    (row,) = votes([*said("p", "7", "8", "7"), {"id": "p", "text": r"\boxed{8"}])
    assert {**row, "entropy": round(row["entropy"], 6)} == {
        "id": "p",
        "label": "7",
        "agreement": 0.5,
        "margin": 0.25,
        "entropy": 0.57938,
        "tie": False,
        "abstained": 1,
        "rollouts": 4,
        "clusters": [{"answer": "7", "votes": 2, "share": 0.5}, {"answer": "8", "votes": 1, "share": 0.25}],
        "rewards": [1.0, 0.0, 1.0, 0.0],
    }
    (row,) = votes(said("p", "", ""))
    assert (row["label"], row["clusters"], row["abstained"]) == (None, [], 2)


@pytest.mark.parametrize(("flags", "label"), [((), None), (("--raw",), "7"), (("--set", "problems.form=raw"), "7")])
def test_raw_reads_a_text_as_what_continues_a_prompt(flags: tuple[str, ...], label: str | None) -> None:
    (row,) = votes([{"id": "p", "text": " 7.\nQ: 1+1?"}], *flags)
    assert row["label"] == label


def test_rollouts_without_minds_are_one_vote_each_and_those_of_one_mind_share_it() -> None:
    rows = said("p", "1", "2", "2")
    assert votes(rows, "--weight", "mind")[0]["agreement"] == pytest.approx(2 / 3)
    one_mind = [{**row, "mind": mind} for row, mind in zip(rows, (5, 6, 6), strict=True)]
    assert votes(one_mind, "--weight", "mind")[0]["agreement"] == 0.5


# --- figures on stderr ---


def figures(text: str) -> dict[str, list[float]]:
    found = re.findall(r"^(\w[\w ]*?)((?: {2,}\d\.\d{3})+)$", text, re.MULTILINE)
    return {name: [float(cell) for cell in cells.split()] for name, cells in found}


def test_means_are_those_of_the_measures(tmp_path: Path) -> None:
    session = tiny_session(population__samples_per_mind=4, vote__extract="regex:[0-9a-z]")
    tallies = list(survey(session))
    given = {tally.group.problem.id: tally.clusters[tally.group.problem.index % 2].answer for tally in tallies}
    gold = gold_file(tmp_path, given)
    rows = [row for tally in tallies for row in rollout_rows(tally)]
    flags = ("--gold", gold, "--extract", "regex:[0-9a-z]", "--grader", "exact")
    result = ttrl("vote", "-", *flags, stdin=lines(rows))
    wanted = measure(tallies, AnswerKey(given), session.grader.same, [1], 0).values
    shown = figures(result.stderr)
    assert result.stderr.splitlines()[0] == "6 problems, 96 rollouts"
    names = {"agreement": "agreement", "margin": "margin", "no answer": "abstained"}
    names |= {"label accuracy": "label_accuracy", "rollout accuracy": "avg@16"}
    for name, key in names.items():
        assert shown[name] == [pytest.approx(wanted[key], abs=5.1e-4)]
    assert 0 < shown["rollout accuracy"][0] < 1
    assert 0 < shown["reward accuracy"][0] <= 1
    assert [row["correct"] for row in rows_of(result.stdout)] == [
        session.grader.same(tally.label, given[tally.group.problem.id]) for tally in tallies
    ]


def test_before_shows_what_was_learned_and_lost_where_both_have_gold(tmp_path: Path) -> None:
    before = [*said("a", "1"), *said("b", "1"), *said("c", "0"), *said("d", "0"), *said("e", "0"), *said("f", "1")]
    after = [*said("g", "1"), *said("c", "1", "1"), *said("a", "1"), *said("b", "0"), *said("e", "0"), *said("d", "1")]
    (tmp_path / "before.jsonl").write_bytes(lines(before))
    gold = gold_file(tmp_path, dict.fromkeys("abcdefg", "1"))
    arguments = ("vote", "-", "--before", tmp_path / "before.jsonl")
    result = ttrl(*arguments, "--gold", gold, stdin=lines(after))
    assert result.stderr.splitlines()[:2] == ["before: 6 problems, 6 rollouts", "6 problems, 7 rollouts"]
    assert result.stderr.splitlines()[-1] == "labels: learned 2, kept 1, lost 1, never 1"
    assert figures(result.stderr)["label accuracy"] == [0.5, 0.667]
    assert [row["id"] for row in rows_of(result.stdout)] == list("gcabed")
    assert ttrl(*arguments, stdin=lines(after)).stderr.count("labels:") == 0


def test_gold_of_other_problems_is_said_and_no_accuracy_shown(tmp_path: Path) -> None:
    result = ttrl("vote", "-", "--gold", gold_file(tmp_path, {"x": "1", "y": "2"}), stdin=lines(said("p", "1")))
    assert "no problem has an id of the 2 gold answers" in result.stderr
    assert "accuracy" not in result.stderr


def test_votes_that_a_doubtful_rule_of_reading_decides_are_told_of_once() -> None:
    plain = said("a", "1,234", "7") + said("b", "5 m")
    read = said("c", "1,234", "1234", "1.234") + said("d", r"5\text{ m}", "5 km")
    told = "problem c: 1,234 counts as 1234, as a comma before three digits parts thousands"
    result = ttrl("vote", "-", stdin=lines(plain + read))
    assert " ".join(result.stderr.split()).count(f"{told} (such rules decide 2 votes)") == 1
    assert " ".join(ttrl("vote", "-", stdin=lines(read[:3])).stderr.split()).count(f"{told} (this decides 1 vote)") == 1
    assert "counts as" not in ttrl("vote", "-", stdin=lines(plain)).stderr
    assert "gold" not in rows_of(result.stdout)[0]


# --- bad input ---

GOOD = lines(said("p", "1"))
BAD: dict[str, tuple[str, bytes, str]] = {
    "apart": ("vote -", lines([*said("p", "1"), *said("q", "1"), *said("p", "1")]), "<stdin>:3: problem 'p' came"),
    "not UTF-8": ("vote -", b'{"id": "\xff"}\n', "<stdin>:1: not valid UTF-8"),
    "cut off": ("vote -", gzip.compress(GOOD * 50)[:-9], "<stdin>: ends in the middle of its gzip data"),
    "a Parquet file": (
        "vote -",
        b"PAR1\0\0",
        "<stdin>: is a Parquet file, which is not read. Unpacked, and named as a file, it is.",
    ),
    "a table": ("vote -", b"1,2\np,1\n", "<stdin>: looks like CSV or TSV without a head"),
    "without end": ("vote /dev/zero", b"", "/dev/zero:1: longer than 128 MiB"),
    "empty": ("vote -", b"", "<stdin>: empty"),
    "no file": ("vote nothing.jsonl", b"", "nothing.jsonl: no such file"),
    "a directory": ("vote .", b"", ".: is a directory"),
    "no gold file": ("vote - --gold nothing.jsonl", GOOD, "nothing.jsonl: no such file"),
    "no gold answer": ("vote - --gold rollouts.jsonl", GOOD, "rollouts.jsonl:1: no gold answer (found: id, text)"),
    "no file before": ("vote - --before nothing.jsonl", GOOD, "nothing.jsonl: no such file"),
    "two from one input": ("vote - --before -", GOOD, "standard input can be one of ROLLOUTS, --before and --gold"),
    "no such extraction": ("vote - --extract boxed", GOOD, "extractor must be one of auto"),
    "a broken pattern": ("vote - --extract regex:(", GOOD, "is not a valid regular expression"),
    "no such grader": ("vote - --grader exakt", GOOD, "did you mean 'exact'?"),
    "no such reward": ("vote - --reward majorty", GOOD, "did you mean 'majority'?"),
    "no such weight": ("vote - --weight rollouts", GOOD, "vote.weight: Input should be 'rollout'"),
    "no log-probabilities": ("vote - --weight confidence", GOOD, "needs the log-probabilities of every rollout"),
    "gold reward without": ("vote - --reward gold", GOOD, "needs gold answers, none came"),
    "gold reward with other": ("vote - --reward gold --gold gold.jsonl", GOOD, "problem 'p' has none"),
    "no token limit": ("vote - --reward overlong", GOOD, "needs the token limit"),
    "unknown key": ("vote - --set vote.wait=mind", GOOD, "did you mean 'vote.weight'?"),
    "hostile id": ("vote -", b'{"id": "\\u001b[2J", "text": 3}', "text must be text, got a number"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_code_2(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, stdin, message = BAD[kind]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rollouts.jsonl").write_bytes(GOOD)
    gold_file(tmp_path, {"other": "1"})
    result = ttrl(*words.split(), stdin=stdin, code=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("ttrl-pop: ")
    assert result.stderr.rstrip("\n").isprintable()


def test_a_row_that_cannot_be_read_costs_no_other_and_the_exit_code_says_so(tmp_path: Path) -> None:
    bad = b'garbage\n{"id": "p", "text": 5}\n' * 6
    stdin = lines(said("p", "1")) + bad + lines([*said("p", "1"), *said("q", "2")])
    result = ttrl("vote", "-", "--quiet", stdin=stdin, code=2)
    assert [(row["id"], row["label"], row["rollouts"]) for row in rows_of(result.stdout)] == [
        ("p", "1", 2),
        ("q", "2", 1),
    ]
    told = result.stderr.splitlines()
    assert told[0].startswith("ttrl-pop: <stdin>:2: invalid JSON")
    assert told[0].endswith("The row is left out.")
    assert told[1] == "ttrl-pop: <stdin>:3: text must be text, got a number. The row is left out."
    assert told[-1] == "ttrl-pop: 12 rows could not be read and had no vote; all others had"
    assert len(told) == 11
    (tmp_path / "before.jsonl").write_bytes(stdin)
    result = ttrl("vote", "-", "--before", tmp_path / "before.jsonl", stdin=lines(said("p", "1")), code=2)
    assert result.stderr.splitlines()[-1] == told[-1]


def test_what_was_read_in_a_way_that_may_surprise_is_told_unless_it_shall_be_quiet(tmp_path: Path) -> None:
    rows = lines([{"id": "p", "text": "2+2?", "response": r"\boxed{4}", "finish_reason": "tired"}])
    (tmp_path / "gold.jsonl").write_bytes(lines([{"id": "p", "answer": ["4", "four"]}, {"id": "q", "answer": None}]))
    flags = ("vote", "-", "--gold", tmp_path / "gold.jsonl")
    result = ttrl(*flags, stdin=rows)
    assert rows_of(result.stdout)[0]["correct"] is True
    assert [line for line in result.stderr.splitlines() if line.startswith("ttrl-pop: ")] == [
        f"ttrl-pop: {tmp_path}/gold.jsonl: 1 of 2 rows with no gold answer (first: id 'q')",
        f"ttrl-pop: {tmp_path}/gold.jsonl: 1 of 2 rows with several gold answers, each of which is right "
        "(first: id 'p')",
        "ttrl-pop: <stdin>: line 1: response is read, text not. --text-key names another field.",
        "ttrl-pop: <stdin>: line 1: finish reason 'tired' is not known, and counts as cut off",
    ]
    assert ttrl(*flags, "--quiet", stdin=rows).stderr == ""


def test_the_id_of_the_rollouts_is_that_of_the_gold_answers(tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_bytes(lines([{"pid": "p", "id": "x", "answer": "4"}]))
    row = {"pid": "p", "completions": [r"\boxed{4}"]}
    (found,) = votes([row], "--gold", tmp_path / "gold.jsonl", "--id-key", "pid")
    assert (found["id"], found["correct"]) == ("p", True)


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ({"answers": ["4", "four"]}, ("4", "four"), "5"),
        ({"options": ["3", "4"], "answer": "4"}, ("B", "4"), "A"),
        ({"choices": ["3", "4"], "answer": 1}, ("B", "4"), "3"),
        ({"answer": "The sum is 4."}, ("4",), "5"),
    ],
)
def test_each_gold_answer_of_a_problem_is_right(
    gold: dict[str, Any], right: tuple[str, ...], wrong: str, tmp_path: Path
) -> None:
    (tmp_path / "gold.jsonl").write_bytes(lines([{"id": "p", **gold}]))
    for answer in (*right, wrong):
        (row,) = votes(said("p", answer), "--gold", tmp_path / "gold.jsonl", "--reward", "gold")
        assert (row["correct"], row["rewards"]) == (answer != wrong, [float(answer != wrong)])


def test_log_probabilities_that_cannot_be_are_missing() -> None:
    rows = [{**said("p", "1")[0], "logprobs": [-1e308, -1e308]}]
    assert votes(rows)[0]["label"] == "1"
    result = ttrl("vote", "-", "--weight", "confidence", "--quiet", stdin=lines(rows), code=2)
    assert "needs the log-probabilities of every rollout" in result.stderr


def test_votes_before_a_bad_order_are_printed_and_shuffled_rows_are_taken() -> None:
    rows = [*said("p", "1"), *said("q", "2"), *said("p", "1", "3")]
    result = ttrl("vote", "-", stdin=lines(rows), code=2)
    assert [row["id"] for row in rows_of(result.stdout)] == ["p"]
    assert [(row["id"], row["rollouts"]) for row in votes(rows, "--shuffled")] == [("p", 3), ("q", 1)]


def test_the_token_limit_is_that_of_a_configuration_and_of_nothing_else() -> None:
    row = {**said("p", "1")[0], "completion_ids": [1] * 10}
    flags = ("--reward", "overlong", "--set", "sampling.max_new_tokens=10")
    assert votes([row], *flags)[0]["rewards"] == [pytest.approx(-1.0)]


# --- processes ---


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "ttrl_pop", "vote", *map(str, words)]


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['ttrl-pop', 'vote', '-']\n"
        "from ttrl_pop.cli.app import main\n"
        "try: main()\n"
        "finally: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=GOOD, capture_output=True, check=True)
    row, modules = done.stdout.decode().splitlines()
    assert json.loads(row)["label"] == "1"
    assert not {"torch", "transformers", "peft"} & set(modules.split())


def test_a_vote_is_printed_while_the_next_problem_comes() -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command("-", "--quiet"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=buffered)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        for name in "ab":
            process.stdin.write(lines(said(name, "1", "1")))
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], 30)
        assert ready
        assert json.loads(process.stdout.readline())["id"] == "a"
        process.stdin.close()
        assert json.loads(process.stdout.read())["id"] == "b"
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_shell_sees_no_trace_of_a_closed_pipe(reader: str, tmp_path: Path) -> None:
    rows = [row for i in range(3000) for row in said(str(i), "1")]
    (tmp_path / "rollouts.jsonl").write_bytes(lines(rows))
    line = f"{' '.join(command(tmp_path / 'rollouts.jsonl', '--quiet'))} | {reader}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "0")


def test_a_terminal_gets_a_table_and_hostile_text_cannot_act(tmp_path: Path) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07[bold]7[/bold]"
    (tmp_path / "r.jsonl").write_bytes(lines([*said("\x1b[31m[red]id", hostile, hostile), *said("b", "7")]))
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(tmp_path / "r.jsonl", "--gold", gold_file(tmp_path, {"b": "7"})),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            shown += os.read(master, 65536)
        except OSError:
            break
    os.close(master)
    assert process.wait(60) == 0
    text = shown.decode()
    assert "␛[31m[red]id" in text
    assert "␛[2J␛]0;owned␇[bold]7" in text
    assert not any(bad in text for bad in ("\x1b[2J", "\x1b]0;", "\x07"))
    assert "label accuracy" in text
    assert not any(line.startswith("{") for line in text.splitlines())


@pytest.mark.slow
def test_a_hundred_thousand_rollouts_go_through_a_pipe_at_flat_memory(tmp_path: Path) -> None:
    gold = gold_file(tmp_path, {str(i): "1" for i in range(100)})

    def peak(problems: int) -> int:
        """Peak resident memory, in kilobytes."""
        rows = lines([{**row, "more": "x" * 500} for row in said("ID", *"1123")] * 4)
        with (tmp_path / "rollouts.jsonl").open("wb") as file:
            file.writelines(rows.replace(b"ID", b"%d" % i) for i in range(problems))
        line = (
            f'cat {tmp_path}/rollouts.jsonl | {sys.executable} -c "import resource, sys, ttrl_pop.cli.app as c\n'
            f"sys.argv = ['ttrl-pop', 'vote', '-', '--gold', '{gold}']\n"
            "try: c.main()\n"
            "finally: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\" | wc -l"
        )
        done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=True)
        assert int(done.stdout) == problems
        assert f"{problems} problems, {16 * problems} rollouts" in done.stderr
        return int(done.stderr.split()[-1])

    # The ids that were seen are kept: 5,625 more of them.
    assert peak(6_250) - peak(625) < 4_000
