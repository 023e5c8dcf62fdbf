"""Configuration and problems → everything that a command works with, checked before anything is written."""

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ttrl_pop.config import Config, LearnConfig, Section
from ttrl_pop.config_file import validate
from ttrl_pop.errors import UsageError
from ttrl_pop.kernels.cuda import repeat_to_the_bit
from ttrl_pop.model.load import load_model
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.prompts import Prompts, opens_thoughts, tokenizer_fingerprint
from ttrl_pop.model.replicas import tell
from ttrl_pop.model.source import lasting
from ttrl_pop.model.turns import notice_of_turns, with_turns
from ttrl_pop.packing.budget import learner_tokens, prefill_tokens
from ttrl_pop.plugins import load, made
from ttrl_pop.population.base import Population
from ttrl_pop.ranks.orders import Open, Vote, Write
from ttrl_pop.ranks.ranks import ALONE, Ranks, current
from ttrl_pop.ranks.shards import enough_for
from ttrl_pop.read.holdout import check_apart
from ttrl_pop.sample.backend import Backend, Weights, backend_name
from ttrl_pop.sample.sample import sample
from ttrl_pop.thoughts import Thinking
from ttrl_pop.types import AnswerKey, Group, Mind, Problem, ProblemSet, Tally
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.rules import Labels, Rules, build_rules
from ttrl_pop.vote.together import vote_together
from ttrl_pop.vote.vote import vote, vote_in_background


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    config: Config
    """Resolved: nothing that decides what runs is left open."""
    problems: tuple[Problem, ...]
    """As this model is asked: of texts, those that are turns for it have become turns."""
    gold: AnswerKey
    """Gold answers of those problems that have one."""
    policy: Policy
    backend: Backend
    prompts: Prompts
    """Token ids of each problem's prompt."""
    rules: Rules
    """How groups are voted on."""
    notices: tuple[str, ...] = ()
    """What the user should know of how all this came out."""
    ranks: Ranks = ALONE
    """The processes that sample, vote and learn together."""
    held: "Session | None" = None
    """The same on problems that are measured by and never trained on; no rollout of theirs is rewarded."""
    is_held_out: bool = False
    """Whether this is one on such problems."""

    @property
    def grader(self) -> Grader:
        """What decides which answers are equal."""
        return self.rules.grader

    def sample(
        self,
        problems: Sequence[Problem],
        minds: Sequence[Mind | None],
        samples_per_mind: int,
        step: int,
        purpose: str = "token",
        weights: Weights = "policy",
    ) -> Iterator[Group]:
        """Let every mind answer every problem; yield each group when its last rollout is done.

        Args:
            minds: None is the base model without a mind.
            step: of training, or `OUTSIDE_TRAINING`.
            purpose: what the rollouts are for; those for another purpose are drawn from other streams.
            weights: whose weights write.
        """
        config, ranks = self.config, self.ranks
        if ranks.leads:
            ids = tuple(problem.id for problem in problems)
            limits = self.backend.limits()
            order = Write(self.is_held_out, ids, tuple(minds), samples_per_mind, step, purpose, weights, limits)
            tell(ranks, self.policy, order)
        yield from sample(
            self.backend,
            self.prompts,
            problems,
            minds,
            samples_per_mind,
            config.seed,
            step,
            purpose,
            weights,
            config.shards or 1,
            ranks,
        )

    def tally(self, group: Group, labels: Labels | None = None) -> Tally:
        """Vote on one group."""
        return vote(group, self.rules, labels)

    def tallies(self, groups: Iterable[Group], labels: Labels | None = None) -> Iterator[Tally]:
        """Vote on each group while the next ones are being sampled; of several processes each votes on its share."""
        if self.ranks.size == 1:
            return vote_in_background(groups, lambda group: vote(group, self.rules, labels))
        return self._tallies_together(groups, labels)

    def _tallies_together(self, groups: Iterable[Group], labels: Labels | None) -> Iterator[Tally]:
        held = list(groups)
        if self.ranks.leads:
            ids = tuple(group.problem.id for group in held)
            elected = None if labels is None else {name: labels[name] for name in ids}
            self.ranks.tell(Vote(self.is_held_out, ids, elected))
        yield from vote_together(held, self.rules, labels, self.ranks)


def open_session(
    config: Config,
    problems: ProblemSet,
    adapter: bool,
    rewards: bool = True,
    settled: bool = False,
    stage: Callable[[str], object] = lambda text: None,
    held: ProblemSet | None = None,
) -> Session:
    """Load the model, attach population and LoRA, and choose backend, grader and reward.

    Args:
        adapter: whether there is a LoRA adapter to learn or to load.
        rewards: whether rollouts are rewarded.
        settled: whether prompts are those of a run already, which stay as they are.
        stage: is told in a line of what may take long, as it begins.
        held: problems to measure by, which are never trained on.

    Raises:
        UsageError: whatever of it cannot be had as asked for.
    """
    ranks = current()
    check_ranks(config, ranks)
    if config.deterministic:
        repeat_to_the_bit()
    # Without a model yet: what is wrong here is said at once.
    rules = build_rules(config.vote, problems.answers, token_limit=config.sampling.max_new_tokens, rewards=rewards)
    population_kind: type[Population] = load("population", config.population.name)
    options = validate(population_kind.Options, config.population.options, source="population.options")
    engine = backend_name(config.backend, config.device)
    backend_kind: type[Backend] = load("backend", engine)
    backend_options = validate(backend_kind.Options, config.backend_options, source="backend_options")
    policy = Policy(
        load_model(config.model, config.device, config.dtype, stage),
        made("population", population_kind, options),
        config.learn.lora if adapter else None,
        config.seed,
    )
    stage(f"starting the backend {engine}")
    backend = made("backend", backend_kind, policy, config.sampling, backend_options)
    config = resolve(_with_options(config, options, backend_options), engine, policy, backend, ranks)
    asked = problems.problems if settled else as_asked(problems.problems, config, policy.model.tokenizer)
    turned = notice_of_turns(problems.problems, asked)
    session = Session(
        config=config,
        problems=asked,
        gold=problems.answers,
        policy=policy,
        backend=backend,
        prompts=Prompts(policy.model, asked, config.sampling.max_new_tokens, config.problems.date),
        rules=replace(rules, thinking=config.vote.thinking or False),
        notices=(*rules.grader.notices, *policy.model.notices, *([turned] if turned else [])),
        ranks=ranks,
    )
    if held is not None:
        session = replace(session, held=_held(session, held, settled))
        held = replace(held, problems=session.held.problems if session.held else ())
    if ranks.leads:
        ranks.held = None
        ranks.tell(Open(config, replace(problems, problems=asked), held, adapter, rewards))
    if ranks.size > 1 and len(set(ranks.exchange((policy.model.fingerprint, tokenizer_fingerprint(policy.model))))) > 1:
        raise UsageError(
            f"model {config.model!r}: its weights and tokenizer must be the same for all processes, and they differ"
        )
    return session


def _held(session: Session, held: ProblemSet, settled: bool) -> Session:
    """The session on problems that are held out."""
    config, model = session.config, session.policy.model
    asked = held.problems if settled else as_asked(held.problems, config, model.tokenizer)
    check_apart(session.problems, asked)
    prompts = Prompts(model, asked, config.sampling.max_new_tokens, config.problems.date)
    rules = replace(session.rules, reward=None)
    return replace(
        session, problems=asked, gold=held.answers, prompts=prompts, rules=rules, notices=(), is_held_out=True
    )


def as_asked(problems: Sequence[Problem], config: Config, tokenizer: Any) -> tuple[Problem, ...]:
    """The problems as the model of this tokenizer is asked them: where no form was named, its chat template
    decides which texts are turns."""
    return with_turns(tokenizer, problems) if config.problems.form == "auto" else tuple(problems)


def check_ranks(config: Config, ranks: Ranks) -> None:
    """What holds where several processes work together.

    Raises:
        UsageError: there are more of them than shards, or all are to have the same GPU.
    """
    if config.shards is not None and config.shards < ranks.size:
        raise UsageError(
            f"shards must be at least the number of processes, got {config.shards} for {ranks.size}; start fewer, as a "
            "run keeps the shards that it began with"
        )
    if ranks.size > 1 and ":" in config.device:
        raise UsageError(f"device must be cpu, cuda or auto for several processes, got {config.device!r}")


def resolve(config: Config, engine: str, policy: Policy, backend: Backend, ranks: Ranks = ALONE) -> Config:
    """The configuration with what it left open decided: what runs, and what is saved so that it runs again.

    Device and dtype are those of the loaded model, the backend is the one that was chosen, the learner's settings are
    what that backend calls for, the chat template tells whether prompts end inside the thoughts, and today is what it
    prints where it prints a date. A model's path leads to it from any folder. A setting that the user gave stays; of
    two marks of thoughts (`vote.thinking`) the first is emptied where the template writes it.

    Args:
        engine: name of `backend`.
    """
    problems, learn, vote = config.problems, config.learn, config.vote
    called_for = {name: value for name, value in learner_defaults(backend).items() if getattr(learn, name) is None}
    thinking = _thinking(policy.model.tokenizer, vote.thinking)
    return config.model_copy(
        update={
            "model": lasting(config.model),
            "device": policy.device.type if config.device == "auto" else config.device,
            "dtype": policy.dtype_name,
            "backend": engine,
            "shards": config.shards or enough_for(ranks.size),
            "problems": problems.model_copy(update={"date": problems.date or datetime.date.today()}),
            "sampling": config.sampling.model_copy(
                update={"prefill_tokens": prefill_tokens(config.sampling.prefill_tokens, policy.device)}
            ),
            "learn": learn.model_copy(
                update={
                    **called_for,
                    "population_lr": learn.population_rate,
                    "token_budget": learner_tokens(learn.token_budget, policy.device, policy.network),
                }
            ),
            "vote": vote.model_copy(update={"thinking": thinking}),
        }
    )


def learner_defaults(backend: Backend) -> dict[str, Any]:
    """What the backend calls for of the learner.

    Raises:
        UsageError: it is no table of settings of `learn`.
    """
    source = f"backend {type(backend).__name__}: learner_defaults"
    called_for: Any = backend.learner_defaults()
    if not isinstance(called_for, Mapping):
        raise UsageError(f"{source} must return a dict of settings of learn, got a {type(called_for).__name__}")
    validate(LearnConfig, called_for, source=source)
    return dict(called_for)


def _thinking(tokenizer: Any, given: Thinking | None) -> Thinking:
    """What is known of the thoughts: what was given, and whether the chat template opens them."""
    if given is None:
        return opens_thoughts(tokenizer)
    if isinstance(given, tuple) and opens_thoughts(tokenizer, given[0]):
        return "", given[1]
    return given


def _with_options(config: Config, population: Section, backend: Section) -> Config:
    """The configuration with all options of its plug-ins written out: another default of a plug-in, as of a newer
    version, then changes no run that goes on."""
    named = config.population.model_copy(update={"options": _written(population)})
    return config.model_copy(update={"population": named, "backend_options": _written(backend)})


def _written(options: Section) -> dict[str, Any]:
    """Options as TOML has them, where None is a key that is left out."""
    return options.model_dump(mode="json", exclude_none=True)


def check_trainable(config: Config) -> None:
    """What holds for training only.

    Raises:
        UsageError: a group of one, a sampling setting that would bias the importance ratio, or nothing to do.
    """
    if not (config.steps or config.baseline or config.answers):
        raise UsageError("steps = 0 without baseline and answers leaves nothing to do; pass --set answers=true")
    if config.group_size < 2:
        raise UsageError(
            "a group needs at least 2 rollouts to vote and to have an advantage; got minds × samples_per_mind = "
            f"{config.population.minds} × {config.population.samples_per_mind} = 1. Pass --minds 16"
        )
    if config.learn.rollouts is not None and config.learn.rollouts > config.group_size:
        raise UsageError(
            f"learn.rollouts must be at most minds × samples_per_mind = {config.group_size}, got "
            f"{config.learn.rollouts}; pass more --minds or fewer of them"
        )
    if config.sampling.top_p < 1:
        raise UsageError(
            f"sampling.top_p must be 1 in training (it biases the importance ratio), got {config.sampling.top_p}"
        )
    if config.sampling.temperature == 0:
        raise UsageError("sampling.temperature must be above 0 in training, got 0; rollouts would not differ")
