"""verl's reward manager of test-time training: 1 for the majority's answer of its group, else 0.

verl asks for the reward of one rollout at a time, as soon as it is written. Here each waits until its group, the
`rollout.n` rollouts of one `uid`, is whole; the last one lets all be voted on.

Simplifications:

1. One process holds all votes: `reward.num_workers` is 1.
2. How a completion ended is not told: a text that the token limit cut off is read as far as it goes.
3. A group never gets whole where a rollout of it fails: the others wait for `patience`, then fail too, as verl drops
   such a group.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from ttrl_pop.config_file import load_config
from ttrl_pop.errors import UsageError
from ttrl_pop.types import AnswerKey, Group, Mind, Problem, Rollout
from ttrl_pop.vote.rules import Rules, build_rules
from ttrl_pop.vote.vote import vote

PATIENCE = 3600.0
"""Seconds that a rollout waits for the rest of its group."""

MOST = 1000
"""Rollouts that can wait at once: calls that Ray lets one actor with asyncio methods hold. With more under way, all
that hold a place could wait for one that has none."""


@dataclass(slots=True)
class Waiting:
    """A group that is not whole yet: texts, and who is to be told the reward of each."""

    texts: list[str] = field(default_factory=list)
    told: list[asyncio.Future[dict[str, Any]]] = field(default_factory=list)


@register("majority")
class MajorityRewardManager(RewardManagerBase):  # type: ignore[misc]
    """The majority's answer as the label. No gold answer is read: `ground_truth` of the data is left alone."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **more: Any) -> None:
        """
        Args:
            config: verl's; `reward.reward_kwargs.vote` holds settings of the vote (`grader`, `reward`, `extract`), and
                `reward.reward_kwargs.patience` seconds.
            compute_score, more: what verl passes to score by gold answers and by reward models; not looked at.

        Raises:
            UsageError: settings under which groups would not get whole, or a setting of the vote is wrong.
        """
        super().__init__(config, tokenizer, compute_score)
        self.size = _size(config)
        given = config.reward.get("reward_kwargs") or {}
        self.patience = float(given.get("patience", PATIENCE))
        self.rules = _rules(dict(given.get("vote") or {}))
        self._waiting: dict[str, Waiting] = {}
        self._voted: set[str] = set()

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """The reward of a rollout, once its group is whole, and `agreement`, `margin` and `abstained` of that.

        Args:
            data: the sequences of one trajectory, of which the last is read.

        Raises:
            ValueError: its group has been voted on.
            TimeoutError: its group did not get whole.
        """
        row = data[len(data) - 1]
        uid = str(row.non_tensor_batch["uid"])
        if uid in self._voted:
            raise ValueError(f"uid {uid} has more rollouts than rollout.n = {self.size}: its group has been voted on")
        group = self._waiting.setdefault(uid, Waiting())
        told: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        group.texts.append(self._text(row))
        group.told.append(told)
        if len(group.texts) == self.size:
            self._voted.add(uid)
            del self._waiting[uid]
            await self._vote(uid, group)
        try:
            return await asyncio.wait_for(told, self.patience)
        except TimeoutError:
            raise TimeoutError(
                f"uid {uid}: {len(group.texts)} of {self.size} rollouts came in {self.patience:g} s"
            ) from None

    async def _vote(self, uid: str, group: Waiting) -> None:
        """Tell all who wait their reward, or what went wrong."""
        try:
            # In a thread: algebra takes a while, and other rollouts come in.
            rows = await asyncio.to_thread(rewarded, uid, group.texts, self.rules)
        except Exception as error:
            for told in group.told:
                if not told.done():
                    told.set_exception(error)
            return
        for told, row in zip(group.told, rows, strict=True):
            if not told.done():
                told.set_result(row)

    def _text(self, row: Any) -> str:
        ids = row.batch["responses"]
        written = int(row.batch["attention_mask"][-len(ids) :].sum())
        return str(self.tokenizer.decode(ids[:written], skip_special_tokens=True))


def rewarded(uid: str, texts: list[str], rules: Rules) -> list[dict[str, Any]]:
    """A group voted on, as verl takes its rewards."""
    rollouts = (Rollout(Mind(-1 - n), (), (), (), text, "stop", 0) for n, text in enumerate(texts))
    tally = vote(Group(Problem(uid, "", 0), tuple(rollouts)), rules)
    figures = {
        "agreement": tally.agreement,
        "margin": tally.margin,
        "abstained": tally.abstained / len(tally.answers_G),
    }
    return [{"reward_score": reward, "reward_extra_info": dict(figures)} for reward in tally.rewards_G]


def _rules(settings: Mapping[str, Any]) -> Rules:
    config = load_config(None, {f"vote.{name}": value for name, value in settings.items()})
    return build_rules(config.vote, AnswerKey())


def _size(config: Any) -> int:
    """Rollouts of a group.

    Raises:
        UsageError: settings under which groups would not get whole.
    """
    rollout = config.actor_rollout_ref.rollout
    size, workers = int(rollout.n), int(config.reward.num_workers)
    if workers != 1:
        raise UsageError(f"reward.num_workers must be 1 for the reward manager majority, got {workers}")
    validated = int(rollout.val_kwargs.n)
    if (config.trainer.val_before_train or config.trainer.test_freq > 0) and validated != size:
        raise UsageError(
            f"rollout.val_kwargs.n must be rollout.n where verl validates, got {validated} and {size}; or set "
            "trainer.val_before_train=False and trainer.test_freq=-1"
        )
    if (together := int(config.data.train_batch_size) * size) > MOST:
        raise UsageError(
            f"data.train_batch_size * rollout.n must be at most {MOST}, got {together}: Ray lets no more rollouts wait "
            "for their groups"
        )
    return size
