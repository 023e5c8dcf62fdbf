"""The configuration: defaults < TOML file < flags. An unknown key is an error that names the nearest known one.

Every value has one home. The resolved configuration is saved in the run directory and is itself a valid file for
`--config`. Options of a plug-in stand in the `options` table beside its name and are checked by the plug-in.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttrl_pop.errors import UsageError

Weight = Literal["rollout", "mind", "confidence"]

S = TypeVar("S", bound=BaseModel)

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of every table: frozen, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProblemsConfig(Section):
    """How problems are read (METHOD.md, section on problem files)."""

    prompt_key: str | None = None
    """Field of the prompt; None detects it."""
    answer_key: str | None = None
    id_key: str | None = None
    form: Literal["auto", "chat", "raw"] = "auto"
    """`chat` makes every prompt a chat turn, `raw` uses the text as it stands, `auto` goes by the field's name."""
    prompt_template: str | None = None
    """Text with one `{prompt}`, put around every text prompt before anything else."""


class PopulationConfig(Section):
    name: str = "norm-noise"
    minds: Positive = 16
    """Different minds that answer each problem."""
    samples_per_mind: Positive = 1
    """Rollouts that each mind writes for a problem; the group size is minds × samples_per_mind."""
    options: dict[str, Any] = Field(default_factory=dict)


class SamplingConfig(Section):
    temperature: NonNegative = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; must stay 1 in training, where it would bias the importance ratio."""
    max_new_tokens: Positive = 512
    stop: tuple[str, ...] = ()
    """A completion ends when its text contains one of these; the text is cut before it."""
    max_rows: Positive = 256
    """Rollouts that are decoded together, at most; fewer where memory is short."""
    prefill_tokens: Positive = 2048
    """Prompt tokens that one forward reads at most (at least one prompt)."""


class VoteConfig(Section):
    extract: str = "auto"
    """`auto`, `first-number`, `last-number`, `choice`, `regex:PATTERN`, or `package.module:function` taking (text,
    finish_reason) and returning the answer or None."""
    thinking: bool | None = None
    """Whether chat prompts end inside the thoughts; None asks the chat template."""
    grader: str = "math"
    """`math`, `exact`, `choice`, or `package.module:Name`."""
    reward: str = "majority"
    """A reward, or a weighted sum of several: `majority+0.2*format`."""
    weight: Weight = "rollout"
    """Votes: one for each rollout, one for each mind, or each rollout by its confidence."""
    labels: Literal["minds", "base", "average"] = "minds"
    """Who elects the label: the minds that learn; the base model (no adapter, no noise), once for each problem; or the
    mean mind of an exponential average of the policy, anew at each visit."""
    label_rollouts: Positive | None = None
    """Rollouts of such labellers for each problem; None means as many as the group has."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the average: average ← decay · average + (1 − decay) · policy, after each step."""


class GuardConfig(Section):
    """Against collapse, without labels."""

    stop_on_collapse: bool = False
    """End the run, with a checkpoint and exit code 3, when the alarm goes off."""
    flip_weight: Literal["none", "steady", "locking"] = "none"
    """Weigh a problem's advantages by how often its label changes (`ttrl_pop.run.history.group_weight`)."""
    settled_agreement: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Agreement from which a visit counts as settled."""
    settled_visits: Positive = 2
    """Settled visits in a row after which a problem is settled."""
    settled_every: Positive = 1
    """A settled problem learns only at each so many-th visit; 1: always."""


class LoraConfig(Section):
    rank: Positive = 16
    alpha: Positive = 32
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the modules that get an adapter, or `all-linear`."""


class LearnConfig(Section):
    """GRPO (METHOD.md, section 3)."""

    loss: Literal["grpo", "dapo", "dr_grpo", "gspo"] = "dapo"
    noise: Literal["replay", "mean", "mean-tis"] = "replay"
    """`replay`: through the mind that wrote the rollout; `mean`: noise off; `mean-tis`: noise off, corrected by
    truncated importance weights."""
    tis: bool | None = None
    """Truncated importance weights under `replay` too, where a second engine wrote the rollouts; None: where the
    backend asks for it."""
    tis_cap: Annotated[float, Field(gt=0)] = 3.0
    max_logprob_gap: Annotated[float, Field(gt=0)] | None = None
    """Largest mean |Δ| of sampler's and learner's log-probabilities of a step under `replay`, above which the run
    stops; None: the backend's."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    kl: NonNegative = 0.0
    """Weight of the k3 KL to the base model (adapter off, no noise)."""
    kl_prior: NonNegative = 0.0
    """Weight of the population's closed-form KL to its prior, per dimension."""
    lr: NonNegative = 5e-5
    population_lr: NonNegative | None = None
    """Learning rate of mu and log sigma; None means 5 × lr."""
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Clip of the adapter's gradient norm; the population's is clipped apart, at the same value."""
    updates_per_step: Positive = 1
    """Optimizer steps on each batch of rollouts."""
    token_budget: Positive = 1024
    """Tokens that one forward of the learner holds at most (at least one rollout). Memory grows with it, the gradient
    is the same; on a CPU more is no faster, on a GPU it is."""
    checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: less memory, a third more
    time."""
    mask_truncated: bool = True
    """Leave rollouts that the token limit cut off out of the loss."""
    max_bad_updates: Positive = 3
    """Updates with a non-finite loss or gradient in a row after which the run stops."""
    lora: LoraConfig = LoraConfig()


class CheckpointConfig(Section):
    every: Positive = 1
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints that are kept, beside the best."""


class Config(Section):
    model: str = "smollm2"
    """Hub id, local folder, GGUF file, or `smollm2` for the built-in demo model."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    backend: str = "hf"
    """`hf`, `vllm`, `auto` (vllm where it is installed and a GPU is there, else hf), or `package.module:Name`."""
    backend_options: dict[str, Any] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Positive = 20
    problems_per_step: Positive = 16
    baseline: bool = False
    """Let the untrained population answer all problems first, for an honest before/after."""
    answers: bool = True
    """Let the trained population answer all problems at the end."""
    problems: ProblemsConfig = ProblemsConfig()
    population: PopulationConfig = PopulationConfig()
    sampling: SamplingConfig = SamplingConfig()
    vote: VoteConfig = VoteConfig()
    learn: LearnConfig = LearnConfig()
    guard: GuardConfig = GuardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def group_size(self) -> int:
        return self.population.minds * self.population.samples_per_mind


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> Config:
    """Defaults < the TOML file at `path` < `overrides` (dotted keys, as in `learn.lr`; None means not given).

    Raises:
        UsageError: the file cannot be read or parsed, a key is unknown, or a value is out of range.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read ({error})") from error
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path}: not valid TOML: {error}") from error
    for dotted, value in overrides.items():
        if value is not None:
            _put(tree, dotted, value)
    return validate(Config, tree, source=str(path) if path else "configuration")


def validate(model: type[S], tree: Mapping[str, Any], source: str) -> S:
    """Build `model` from `tree`; the first violation becomes one line with the nearest known key.

    Raises:
        UsageError: see above.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = tuple(str(part) for part in first["loc"])
        key = ".".join(location)
        if first["type"] == "extra_forbidden":
            near = _nearest(key, _known_keys(model))
            hint = f"; did you mean {near!r}?" if near else ""
            raise UsageError(f"{source}: unknown key {key!r}{hint}") from None
        raise UsageError(f"{source}: {key}: {first['msg']}, got {first['input']!r}") from None


def dump_config(config: Config) -> str:
    """The whole configuration as TOML that `load_config` reads back to an equal `Config`."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def parse_assignment(text: str) -> tuple[str, Any]:
    """`learn.loss=grpo` → `("learn.loss", "grpo")`; the value is read as TOML where it is valid TOML.

    Raises:
        UsageError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set takes KEY=VALUE (as in learn.loss=grpo), got {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise UsageError(f"configuration: {name!r} is a value, so {dotted!r} cannot be set")
        tree = child
    tree[last] = value


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _nearest(key: str, known: list[str]) -> str | None:
    """The known key that `key` most likely stands for: one of that name in another table, else the most alike."""
    by_name: dict[str, str] = {}
    for full in known:
        by_name.setdefault(full.rpartition(".")[2], full)
    name = key.rpartition(".")[2]
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return near[0] if near else next((by_name[n] for n in difflib.get_close_matches(name, by_name, n=1)), None)


def _without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    if isinstance(tree, list):
        return [_without_none(value) for value in tree]
    return tree
