"""A step in shards is the same step, up to rounding."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pytest
import torch
from fakes import PROBLEMS, assert_same, gradients, norm_noise, tallies_of, tiny_policy, tiny_session

from ttrl_pop.errors import UsageError
from ttrl_pop.learn.micro_batches import MicroBatches, Sample
from ttrl_pop.ranks.ranks import Ranks
from ttrl_pop.run.session import check_ranks
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.types import Rollout


@pytest.mark.parametrize("shards", [2, 4, 32])
def test_shards_change_rollouts_and_gradients_by_rounding_alone(shards: int) -> None:
    whole, cut = (tiny_session(tiny_policy(), learn__kl=0.1, shards=count) for count in (1, shards))
    tallies = tallies_of(whole)
    in_order = sorted(tallies_of(cut), key=lambda tally: tally.group.problem.index)
    for one, other in zip(sorted(tallies, key=lambda tally: tally.group.problem.index), in_order, strict=True):
        assert_same([*one.group.rollouts_G], [*other.group.rollouts_G])
    wanted, found = gradients(whole, tallies), gradients(cut, tallies)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-14)
    assert len(tallies) == len(PROBLEMS)


@pytest.mark.parametrize("scope", ["sequence", "completion"])
def test_a_prompt_is_read_in_one_shard_whoever_reads_it(scope: Literal["sequence", "completion"]) -> None:
    written: list[list[Request]] = []

    class Watched(HfBackend):
        def rollouts(self, requests: Sequence[Request], *weights: Any) -> Iterator[tuple[int, Rollout]]:
            written.append([*requests])
            yield from super().rollouts(requests, *weights)

    session = tiny_session(
        tiny_policy(population=norm_noise(scope=scope)), backend=Watched, shards=2, population__minds=4
    )
    tallies_of(session)
    shards = [{(session.backend.reader(each), each.prompt_ids) for each in shard} for shard in written]
    assert [len(shard) for shard in written] == [12, 12]
    assert not shards[0] & shards[1]


@pytest.mark.parametrize("scope", ["sequence", "completion"])
def test_shards_of_what_teaches_have_as_many_tokens(
    monkeypatch: pytest.MonkeyPatch, scope: Literal["sequence", "completion"]
) -> None:
    learned: list[list[Sample]] = []
    plain = MicroBatches.map

    def watched(self: MicroBatches, work: Any, samples: Sequence[Sample]) -> Iterator[Any]:
        learned.append([*samples])
        return plain(self, work, samples)

    monkeypatch.setattr(MicroBatches, "map", watched)
    session = tiny_session(tiny_policy(population=norm_noise(scope=scope)), shards=2)
    # Of six problems the first three teach nothing: in shards of as many rollouts one process would have it all.
    gradients(session, tallies_of(session), weights={problem.id: 0.0 for problem in PROBLEMS[:3]})
    assert len(learned) == 2
    tokens = []
    for samples in learned:
        read = {(sample.rollout.prompt_ids, scope == "sequence" and sample.rollout.mind) for sample in samples}
        tokens.append(sum(len(ids) for ids, _ in read) + sum(len(s.rollout.completion_ids) for s in samples))
    one_reading = max(len(ids) for ids in session.prompts.values())
    assert max(tokens) - min(tokens) <= 2 * one_reading


def test_more_processes_than_shards_and_one_gpu_for_all_are_refused() -> None:
    several = Ranks()
    several.size = 4
    check_ranks(tiny_session(shards=4).config, several)
    check_ranks(tiny_session().config, several)
    with pytest.raises(UsageError, match="at least the number of processes, got 2 for 4"):
        check_ranks(tiny_session(shards=2).config, several)
    with pytest.raises(UsageError, match="device must be cpu, cuda or auto"):
        check_ranks(tiny_session(device="cuda:1").config, several)
