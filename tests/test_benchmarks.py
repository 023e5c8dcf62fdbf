"""Benchmarks run in their quick form where they need no peer package, and count the work that is done."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fakes import ROOT, norm_noise, save_tiny, tiny_policy, tiny_session, tiny_tokenizer

from benchmarks import rounds, scaling
from benchmarks.ours import WORK, Planned, Silent, made_groups, note_work, opened, parsed, sampled_groups
from benchmarks.workload import (
    EXAMPLES,
    QUESTIONS,
    Work,
    completion_lengths,
    distinct_work,
    forms,
    forward_work,
    times_table,
    work_of,
)
from ttrl_pop.config import Section
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.radix import alike
from ttrl_pop.population.base import NoPopulation, Population
from ttrl_pop.run.session import Session
from ttrl_pop.types import Group

MACHINE = {
    "layer_parameters": 100,
    "layer_flops_per_second": 1000.0,
    "head_parameters": 10,
    "head_flops_per_second": 100.0,
}


def output(*command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", *command, "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    record: dict[str, Any] = json.loads(done.stdout)
    return record


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


def test_a_choice_that_leaves_no_side_is_refused_before_anything_runs() -> None:
    sides = [
        rounds.Side("ours", ["benchmarks.ours", "--no-such-option"]),
        rounds.Side("rows", ["benchmarks.peer_rows"]),
    ]
    for choice, rule in (("theirs", "must be found in"), ("rows", "must leave a side")):
        with pytest.raises(SystemExit, match=f"--only {rule}"):
            rounds.measure(sides, "no such model", 1, None, choice)


def test_sides_that_read_other_prompts_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"threads": 2, "layer_flops_per_second": 1.0, "head_flops_per_second": 1.0}

    def record(side: rounds.Side, threads: int | None) -> dict[str, Any]:
        return (
            rates
            | {"seconds": [1.0, 1.0]}
            | ({"prompt_tokens": [int(side.name)], "alike": 0} if side.name != "machine" else {})
        )

    monkeypatch.setattr(rounds, "run", record)
    sides = [rounds.Side(name, ["benchmarks.ours"]) for name in ("46", "95")]
    with pytest.raises(SystemExit, match=r"must read the same prompts, got \[46, 95\] tokens"):
        rounds.measure(sides, "model", 1, None)
    assert rounds.measure(sides[:1], "model", 1, None).prompt_tokens == [46]


def test_work_by_hand() -> None:
    # Two prompts of 5 and 7 tokens, the first four read once, two readers: 16. Completions: 0 + 3 + 1 + 0 decoded.
    work = forward_work([5, 7], 4, 2, [1, 4, 2, 1])
    assert work == Work(layer_tokens=20, head_positions=8)
    assert work.times(3) == Work(60, 24)
    assert work.seconds(MACHINE) == pytest.approx(2 * 100 * 20 / 1000 + 2 * 10 * 8 / 100)


def test_ours_reads_the_texts_that_peers_read(model: str) -> None:
    given = parsed([model, "--problems", "2", "--minds", "2", "--examples", "1", "--lengths", "even"])
    session = opened(given)
    read = session.policy.model.tokenizer
    assert [session.prompts[p.id] for p in session.problems] == [tuple(read(t)["input_ids"]) for t in times_table(2, 1)]


def test_a_form_without_noise_has_the_work_of_one_sample_of_each_mind() -> None:
    first, few, none, silent = forms(16)
    assert (first.minds, few.minds, none.minds, silent.minds) == (16, 4, 1, 16)
    assert all(form.minds * form.samples == 16 for form in (first, few, none, silent))


@pytest.mark.parametrize(("rows", "new_tokens"), [(256, 128), (8, 4), (3, 128), (1, 5)])
def test_mixed_lengths_are_spread_from_one_to_the_longest(rows: int, new_tokens: int) -> None:
    lengths = completion_lengths("mixed", rows, new_tokens)
    assert lengths == completion_lengths("mixed", rows, new_tokens)
    assert len(lengths) == rows
    assert min(lengths) == 1
    if rows > 1:
        assert max(lengths) == new_tokens
        assert sum(lengths) / rows == pytest.approx((1 + new_tokens) / 2, rel=0.1)
        assert rows < 8 or lengths != sorted(lengths)


def test_prompts_differ_and_have_one_length() -> None:
    tokenizer = tiny_tokenizer()
    every = times_table(QUESTIONS)
    assert len(set(every)) == QUESTIONS
    assert {len(tokenizer(text)["input_ids"]) for text in every} == {len(every[0])}
    plain, more, most = (len(times_table(1, examples)[0]) for examples in (0, 1, EXAMPLES))
    assert most - plain == EXAMPLES * (more - plain)


@pytest.mark.parametrize(
    "population", [norm_noise(0.3), NoPopulation(Section()), Silent(Section())], ids=["noise", "none", "silent"]
)
@pytest.mark.parametrize("rule", ["even", "mixed"])
def test_ours_computes_the_tokens_that_are_counted(population: Population, rule: Any) -> None:
    policy = tiny_policy(population=population, warm=False)
    minds, samples, new_tokens = 3, 2, 6
    session = tiny_session(
        policy,
        backend=Planned,
        population__minds=minds,
        population__samples_per_mind=samples,
        sampling__max_new_tokens=new_tokens,
        learn__token_budget=100_000,
    )
    problems = session.problems
    lengths = completion_lengths(rule, len(problems) * minds * samples, new_tokens)
    session.backend.lengths = lengths  # type: ignore[attr-defined]
    readers = 1 if type(population) is NoPopulation else minds
    prompt_tokens = [len(session.prompts[problem.id]) for problem in problems]
    with_counts = counted(policy)
    groups = sampled_groups(session, 1)
    written = [len(rollout.completion_ids) for group in groups for rollout in group.rollouts_G]
    assert sorted(written) == sorted(lengths)
    shared = alike([session.prompts[problem.id] for problem in problems])
    assert shared
    nominal, must = forward_work(prompt_tokens, shared, readers, lengths), work_that_must_be_done(session, groups)
    # A sampler computes completions side by side also where they begin alike.
    assert must.layer_tokens <= with_counts["layers"] <= nominal.layer_tokens
    assert must.head_positions <= with_counts["head"] == nominal.head_positions


def test_the_learner_computes_the_tokens_that_are_counted() -> None:
    policy = tiny_policy()
    session = tiny_session(policy, population__minds=2, population__samples_per_mind=2, learn__token_budget=100_000)
    groups = made_groups(session, 1)
    lengths = [len(rollout.completion_ids) for group in groups for rollout in group.rollouts_G]
    prompt_tokens = [len(group.rollouts_G[0].prompt_ids) for group in groups]
    counts = counted(policy)
    rollouts = [rollout for group in groups for rollout in group.rollouts_G]
    token_logprobs(policy, rollouts, [rollout.mind for rollout in rollouts], 1.0)
    nominal = forward_work(prompt_tokens, alike([g.rollouts_G[0].prompt_ids for g in groups]), 2, lengths)
    must = work_that_must_be_done(session, groups)
    assert must.layer_tokens <= counts["layers"] <= min(1.05 * must.layer_tokens, nominal.layer_tokens)
    assert must.head_positions == counts["head"] <= nominal.head_positions


def work_that_must_be_done(session: Session, groups: Sequence[Group]) -> Work:
    spent: dict[str, list[float]] = {key: [] for key in WORK}
    note_work(spent, session, groups)
    return work_of({key: [0, *values] for key, values in spent.items()})


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has its own ways")
@pytest.mark.parametrize("settings", ["of the command", "of benchmarks", "of the user"])
def test_our_sides_keep_memory_as_the_command_does_and_users_have_the_last_word(settings: str) -> None:
    command = (
        "sys.argv = ['ttrl-pop', '--version']\n"
        "from ttrl_pop.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: assert 'torch' not in sys.modules\n"
    )
    script = (
        "import os, resource, sys\n" + command * (settings != "of benchmarks") + "for _ in range(3):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    kept = [b'x' * (15 << 20) for _ in range(4)]\n"
        "    del kept\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
        "print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    )
    environment = {key: value for key, value in os.environ.items() if key not in rounds.KEPT_MEMORY}
    if settings == "of benchmarks":
        environment |= rounds.KEPT_MEMORY
    elif settings == "of the user":
        environment |= {"THP_MEM_ALLOC_ENABLE": "0", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    *_, faults, pages = done.stdout.split()
    assert pages == ("0" if settings == "of the user" else "1")
    assert (int(faults) > 1000) is (settings == "of the user")


def test_what_minds_begin_with_is_counted_once_for_each() -> None:
    a, b = (1, 2, 3), (4, 5, 6)
    assert distinct_work([(0, a, b)]) == distinct_work([(0, a, b)] * 2) == Work(5, 3)
    assert distinct_work([(0, a, b), (1, a, b)]) == Work(10, 6)
    # 1 2 3, then 4, then 5 and 7; behind all but the two last another token is drawn, and behind these.
    assert distinct_work([(0, a, b), (0, a, (4, 7, 8)), (0, a, (9,))]) == Work(3 + 1 + 2, 1 + 1 + 2)


def counted(policy: Policy) -> dict[str, int]:
    """Tokens that pass the first layer and positions that pass the LM head from now on."""
    counts = {"layers": 0, "head": 0}

    def hook(key: str) -> Any:
        def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            counts[key] += inputs[0].shape[:-1].numel()

        return count

    policy.network.base_model.layers[0].register_forward_pre_hook(hook("layers"))
    policy.network.get_output_embeddings().register_forward_pre_hook(hook("head"))
    return counts


def test_linear_growth_is_one() -> None:
    points = [{"seconds": 2.0, "rows": 4, "tokens": 10}, {"seconds": 6.0, "rows": 8, "tokens": 30}]
    assert [point["of_linear"] for point in scaling.growth("rows", points)] == [1.0, 1.5]
    assert [point["of_linear"] for point in scaling.growth("prompt", points)] == [1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--mixed"]])
def test_the_benchmark_of_rollouts_runs(model: str, options: list[str]) -> None:
    measured = output("benchmarks.rollouts", "--model", model, *options)
    assert measured["new_tokens"] == sum(completion_lengths("mixed" if options else "even", 8, 4))
    assert list(measured["sides"]) == ["ours, 4 minds × 1", "generate", *list(measured["sides"])[2:]]
    assert all(side["seconds"] > 0 and 0 < side["share"] < 1 for side in measured["sides"].values())


@pytest.mark.slow
def test_the_benchmark_of_the_learner_runs(model: str) -> None:
    measured = output("benchmarks.learner", "--model", model)
    assert measured["peers"] == ["rows, 4 minds", "rows"]
    assert all(side["seconds"] > 0 and 0 < side["share"] < 1 for side in measured["sides"].values())


@pytest.mark.slow
def test_the_benchmark_of_growth_runs(model: str) -> None:
    measured = output("benchmarks.scaling", "--model", model, "--axes", "rows", "completion")
    assert list(measured["axes"]) == ["rows", "completion"]
    assert [point["rows"] for point in measured["axes"]["rows"]] == [4, 8]
    assert len(measured["peaks"]) == 6
    assert measured["peaks"] == sorted(measured["peaks"])


@pytest.mark.slow
def test_the_benchmark_of_processes_runs_and_all_write_the_same(model: str) -> None:
    measured = output("benchmarks.ranks", "--model", model, "--new-tokens", "3")
    assert list(measured["sides"]) == ["1 process × 2 threads", "2 processes × 1 thread", "1 process × 1 thread"]
    for side in measured["sides"].values():
        assert all(second > 0 for part in ("seconds", "rollouts", "learner") for second in side[part]["rounds"])
    one, *others = measured["layer_tokens"].values()
    # The same minds write the same texts, of three tokens each: warm-up and one repeat.
    assert others == [one, one]
    assert len(one) == 2


@pytest.mark.slow
def test_the_benchmark_of_votes_runs_and_its_graders_find_the_planted_clusters() -> None:
    measured = output("benchmarks.vote")
    assert measured["sides"]["math"]["right"] == measured["sides"]["math-verify"]["right"] == measured["problems"]
    assert measured["asked"] < measured["pairs"]
