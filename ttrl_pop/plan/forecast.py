"""Configuration and problems → what a command would do, as rows: work, memory and disk, each by part.

Seconds are those of the engine `hf` at completions of full length; of another engine's rollouts nothing is known here.
Loading is taken to write each byte of the weights, and of what is made of them, once, from a file that memory holds.
"""

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ttrl_pop.config import Config
from ttrl_pop.config_file import validate
from ttrl_pop.fit.base_rollouts import LONGEST, PROBLEMS
from ttrl_pop.fit.sigma import FIRST_GUESS, MINDS
from ttrl_pop.kernels.memory import limit_bytes
from ttrl_pop.model.load import LoadedModel, outline_model, resolve_device
from ttrl_pop.model.logprobs import logit_rows_on
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.prompts import Prompts
from ttrl_pop.model.refusals import reason
from ttrl_pop.model.size import policy_size
from ttrl_pop.model.thin import thin
from ttrl_pop.packing.budget import learner_tokens, prefill_tokens
from ttrl_pop.plan import footprint, work
from ttrl_pop.plan.probe import LAYERS, Speed, copying, measure_speed
from ttrl_pop.plan.work import Forwards, Part
from ttrl_pop.plugins import load, made
from ttrl_pop.population.base import Population
from ttrl_pop.run.session import as_asked, check_trainable
from ttrl_pop.run.survey import CHUNK
from ttrl_pop.sample.backend import backend_name
from ttrl_pop.sample.hf.backend import CACHE_SHARE, slots_in
from ttrl_pop.types import ProblemSet
from ttrl_pop.vote.rules import build_rules

ENCODED = 256
"""Problems whose prompts are counted, evenly spaced over the input."""

EVALUATIONS = 4
"""Sigmas that a calibration tries, about (dev/LOG.md)."""

ROOM = 2**27
"""Bytes of layers that are measured on a CPU, and half as many of embeddings: well above what a cache holds, and made
in tenths of a second."""

TEACHING = 2 / 3
"""Share of the groups from which a step learns, about: in the others all rollouts are paid alike (dev/LOG.md)."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a command would do."""

    work: tuple[Mapping[str, Any], ...]
    """A row for each part: name, problems, votes, rollouts, their share of all, tokens, seconds (None: not known)."""
    memory: Mapping[str, int]
    """Bytes at the peak, by part."""
    disk: Mapping[str, int]
    """Bytes that are written, by part; empty where nothing is kept."""
    notices: tuple[str, ...] = ()
    """What the user should know of how all this came out."""

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield all of it as rows, each kind's parts before their sum."""
        rollouts = sum(row["rollouts"] for row in self.work)
        seconds = [row["seconds"] for row in self.work]
        for row in self.work:
            yield {"kind": "work", **row}
        yield {
            "kind": "work",
            "part": "all",
            "rollouts": rollouts,
            "share": 1.0,
            **{key: sum(row[key] for row in self.work) for key in ("prompt_tokens", "new_tokens")},
            "seconds": None if None in seconds else sum(seconds),
        }
        for kind, parts, name in (("memory", self.memory, "peak"), ("disk", self.disk, "all")):
            for part, size in parts.items():
                yield {"kind": kind, "part": part, "bytes": size}
            if parts:
                yield {"kind": kind, "part": name, "bytes": sum(parts.values())}


def forecast_training(config: Config, problems: ProblemSet, held: int = 0, starts: bool = False) -> Forecast:
    """What `run` would do.

    Args:
        held: problems held out.
        starts: whether this process has just been started for it, as it will be.

    Raises:
        UsageError: it would refuse this.
    """
    check_trainable(config)
    return _forecast(config, problems, None, adapter=True, noise=True, held=held, starts=starts)


def forecast_survey(
    config: Config,
    problems: ProblemSet,
    parts: Sequence[str],
    adapter: bool,
    noise: bool,
    rewards: bool,
    starts: bool = False,
) -> Forecast:
    """What `eval` and `sample` would do, which ask all problems once for each of `parts`.

    Args:
        adapter: whether there is a LoRA adapter to load.
        noise: whether the minds differ.
        rewards: whether rollouts are rewarded.
        starts: whether this process has just been started for it, as it will be.

    Raises:
        UsageError: they would refuse this.
    """
    return _forecast(config, problems, parts, adapter, noise, rewards, starts=starts)


def _forecast(
    config: Config,
    problems: ProblemSet,
    surveys: Sequence[str] | None,
    adapter: bool,
    noise: bool,
    rewards: bool = True,
    held: int = 0,
    starts: bool = False,
) -> Forecast:
    rules = build_rules(config.vote, problems.answers, rewards=rewards)
    kind: type[Population] = load("population", config.population.name)
    options = validate(kind.Options, config.population.options, source="population.options")
    engine = backend_name(config.backend, config.device)
    load("backend", engine)
    device = resolve_device(config.device)
    outline = outline_model(config.model, config.device, config.dtype)
    asked = as_asked(problems.problems, config, outline.tokenizer)
    prompts = Prompts(outline, asked, config.sampling.max_new_tokens, config.problems.date)
    step = max(1, len(asked) // ENCODED)
    ids = [prompts[problem.id] for problem in asked[::step]]
    # Libraries are loaded and problems read, and nothing has been measured yet.
    begun = time.process_time() if starts else 0.0
    # Before the outline is changed: a few layers are made of it.
    program = 0 if device.type == "cuda" else _resident_bytes()
    small = _small_policy(outline, made("population", kind, options), config, adapter, device)
    size = policy_size(outline, made("population", kind, options), config.learn.lora if adapter else None, device)
    forwards = Forwards(
        read=prefill_tokens(config.sampling.prefill_tokens, device),
        learn=learner_tokens(config.learn.token_budget, device, outline.network),
        logits=logit_rows_on(device, size.vocabulary),
    )
    learns = surveys is None
    notices = [*rules.grader.notices, *outline.notices]
    if isinstance(small, str):
        notices.append(f"seconds, keys and values and activations are not known: {small}")
    elif engine != "hf":
        notices.append(f"seconds are those of the engine hf, not of {engine}")
    if step > 1:
        notices.append(f"prompt tokens are those of {len(ids)} problems, evenly spaced over all {len(asked)}")
    lacks, readers = _lacks_and_readers(small, config, noise)
    calibration = min(PROBLEMS, len(asked)) if lacks else 0
    chunk = ids[: config.problems_per_step if learns else CHUNK]
    packed = work.packed_prompts(chunk, forwards.read)
    longest = max(map(len, ids)) + config.sampling.max_new_tokens
    if surveys is None:
        parts = list(work.training(config, len(asked), readers, calibration, CHUNK, held))
    else:
        parts = [Part("calibration", calibration, 1, calibration, calibration)] if calibration else []
        parts += [work.survey(name, config, len(asked), readers, CHUNK) for name in surveys]
    speed, slots = None, 1
    if isinstance(small, Policy):
        per_token = small.cache_bytes_per_token * size.layers // _layers(small)
        most = max(min(part.batch, part.problems) * part.votes for part in parts)
        memory = CACHE_SHARE * limit_bytes(device)
        slots = min(most, slots_in(memory, longest, per_token, config.sampling.max_rows))
        speed = measure_speed(small, config, forwards, size, chunk, slots, learns)
    rollouts = sum(part.rollouts for part in parts)
    rows = [
        {
            "part": part.name,
            "problems": part.problems,
            "votes": part.votes,
            "rollouts": part.rollouts,
            "share": part.rollouts / rollouts,
            **work.tokens(part, packed, config.sampling.max_new_tokens),
            "seconds": None if speed is None else round(seconds(part, config, forwards, packed, speed, slots), 1),
        }
        for part in parts
    ]
    loading = copying(ROOM) * (size.weights + size.merged + size.laid_out)
    return Forecast(
        work=(_start(begun + loading), *rows),
        memory=footprint.memory(
            config,
            size,
            forwards,
            program,
            slots,
            longest,
            speed.cache_bytes if speed else 0,
            speed.kept_bytes if speed else 0.0,
            learns,
        ),
        disk=footprint.disk(config, size, len(asked), sum(p.rollouts for p in parts if p.learns)) if learns else {},
        notices=tuple(notices),
    )


def _start(seconds: float) -> dict[str, Any]:
    """All that comes before the first rollout is written or read."""
    nothing = dict.fromkeys(("problems", "votes", "rollouts", "prompt_tokens", "new_tokens"), 0)
    return {"part": "start", **nothing, "share": 0.0, "seconds": round(seconds, 1)}


def seconds(part: Part, config: Config, forwards: Forwards, prompts: work.Prompts, speed: Speed, slots: int) -> float:
    """Seconds of a part, with completions of full length."""
    new = config.sampling.max_new_tokens
    calls, per_call = part.visits / part.batch, part.batch * part.votes
    trees = part.batch * part.readers
    reading = speed.read.fixed * trees / prompts.per_forward + speed.read.each * trees * prompts.packed
    waves, rest = divmod(per_call, min(slots, per_call))
    writing = (new - 1) * (waves * speed.decode.at(min(slots, per_call)) + (speed.decode.at(rest) if rest else 0.0))
    # Logits are made of so many states at once, each time by all weights of the output layer.
    drawing = speed.draw.at(forwards.logits) / forwards.logits
    spent = calls * (reading + drawing * per_call + writing)
    if part.name == "calibration":
        spent += _calibrating(part, config, prompts, speed, drawing)
    if part.learns and speed.learn is not None and speed.score is not None:
        # A KL to the base model skips no group.
        share = 1.0 if config.learn.kl else TEACHING
        tokens = share * (trees * prompts.packed + per_call * (new - 1))
        batches = max(1.0, tokens / forwards.learn)
        passes = speed.learn.fixed * batches + speed.learn.each * tokens + speed.score.each * share * per_call * new
        spent += calls * config.learn.updates_per_step * (passes + speed.update)
    return spent


def _calibrating(part: Part, config: Config, prompts: work.Prompts, speed: Speed, drawing: float) -> float:
    """Seconds in which minds read what the base model has written.

    Args:
        drawing: seconds of the logits of a state.
    """
    measured = min(LONGEST, config.sampling.max_new_tokens)
    # The base model reads once, minds at every sigma.
    readings = (EVALUATIONS * MINDS + 1) * part.problems
    return readings * (speed.read.each * (prompts.mean + measured) + 2 * drawing * measured)


def _small_policy(
    outline: LoadedModel, population: Population, config: Config, adapter: bool, device: torch.device
) -> Policy | str:
    """A policy of a few layers of the model; why there is none."""
    layers, vocabulary = _measured_part(outline, device)
    try:
        small = thin(outline, layers, vocabulary, device)
    except Exception as error:
        # What a family does with fewer layers is anything, and so is how it fails.
        return f"the model does not take {layers} layers ({reason(error)})"
    policy = Policy(small, population, config.learn.lora if adapter else None)
    if policy.population.lacks == "fit":
        return f"population {config.population.name} must be fitted first"
    return policy


def _measured_part(outline: LoadedModel, device: torch.device) -> tuple[int, int]:
    """Layers and tokens of the vocabulary that are measured: on a CPU few enough that it has them soon."""
    network = outline.network
    text = network.config.get_text_config()
    layers, vocabulary = int(text.num_hidden_layers), int(text.vocab_size)
    if device.type != "cpu":
        return min(LAYERS, layers), vocabulary
    ends = [network.get_input_embeddings().weight, network.get_output_embeddings().weight]
    layer = sum(p.nbytes for p in network.parameters() if all(p is not end for end in ends)) // layers
    return min(LAYERS, layers, max(1, ROOM // layer)), min(vocabulary, max(1, ROOM * vocabulary // ends[1].nbytes // 2))


def _lacks_and_readers(small: Policy | str, config: Config, noise: bool) -> tuple[bool, int]:
    """Whether sigma has yet to be found, and how many minds read each prompt for themselves."""
    if isinstance(small, str):
        return False, config.population.minds
    population = small.population
    lacks = population.lacks == "scale"
    if lacks:
        population.set_scale(FIRST_GUESS)
    minds = population.spawn(config.seed, 0, config.population.minds)
    return lacks, len({population.reader(mind) for mind in minds}) if noise else 1


def _layers(policy: Policy) -> int:
    return int(policy.network.config.get_text_config().num_hidden_layers)


def _resident_bytes() -> int:
    """What this process holds, before it has made anything: the program and its libraries."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
