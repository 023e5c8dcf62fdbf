"""The configuration: defaults < TOML file < flags. An unknown key is an error that names the nearest known one.

Every value has one home. The resolved configuration is saved in the run directory and is itself a valid file for
`--config`. Options of a plug-in stand in the `options` table beside its name and are checked by the plug-in.
"""

import datetime
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_ROLLOUTS = 2**14
"""Rollouts of one problem in a step, at most: each is a forward of its own, and votes gain nothing by more."""

SMALLEST_TEMPERATURE = 1e-3
"""A lower one, other than 0, would divide logits out of the range of float32."""

Weight = Literal["rollout", "mind", "confidence"]

Positive = Annotated[int, Field(ge=1, lt=2**31)]
"""How many there are of something, or how long it is."""

PowerOfTwo = Literal[1, 2, 4, 8, 16, 32, 64, 128, 256, 512]

Mark = Annotated[str, Field(min_length=1)]

Rollouts = Annotated[int, Field(ge=1, le=MOST_ROLLOUTS)]

NonNegative = Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)]
"""A rate or a weight: what is beyond a thousand is a slip of the pen, and float32 ends soon behind it."""


def _divides_logits(temperature: float) -> float:
    if 0 < temperature < SMALLEST_TEMPERATURE:
        raise ValueError(f"must be 0, which takes the likeliest token, or at least {SMALLEST_TEMPERATURE}")
    return temperature


class Section(BaseModel):
    """A table of settings: frozen, closed to unknown keys; the text below a setting describes it to users."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: Any) -> Any:
        # pydantic takes true for 1. Its ValidationInfo is a protocol that cannot be checked at run time.
        if isinstance(value, bool):
            types = _types(cls.model_fields[str(info.field_name)].annotation)
            if bool not in types and not types.isdisjoint((int, float)):
                raise ValueError("Input should be a number")
        return value


def _types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, those inside `Annotated` and unions."""
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_types, get_args(annotation)))
    return {annotation}


class ProblemsConfig(Section):
    """How problems are read (METHOD.md, section on problem files)."""

    prompt_key: str | None = None
    """Field of the prompt; None detects it."""
    answer_key: str | None = None
    """Field of the gold answer; None detects it."""
    id_key: str | None = None
    """Field of the id; None detects it, and takes the line number where there is none."""
    form: Literal["auto", "chat", "raw"] = "auto"
    """`chat` makes every prompt a chat turn, `raw` uses the text as it stands, `auto` goes by the field's name
    and, for a field `prompt`, by whether the model has a chat template of which the text holds no mark."""
    prompt_template: str | None = None
    """Text with one `{prompt}`, put around every text prompt before anything else."""
    limit: Positive | None = None
    """Problems that are read, the first ones; None: all. Gold answers of others are left out."""
    date: datetime.date | None = None
    """Day that chat templates are told which print one; None: the day on which the run begins, on which it stays."""


class PopulationConfig(Section):
    """Who answers: the minds of the model."""

    name: str = "norm-noise"
    """`norm-noise`, `latent`, `none`, the short name of an installed plug-in, or `package.module:Name`."""
    minds: Rollouts = 16
    """Different minds that answer each problem."""
    samples_per_mind: Rollouts = 1
    """Rollouts that each mind writes for a problem; the group size is minds × samples_per_mind, at most 16384."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the population itself."""

    @model_validator(mode="after")
    def _affordable(self) -> "PopulationConfig":
        size = self.minds * self.samples_per_mind
        if size > MOST_ROLLOUTS:
            raise ValueError(
                f"minds × samples_per_mind are the rollouts of each problem, at most {MOST_ROLLOUTS}; they are {size}"
            )
        return self


class SamplingConfig(Section):
    """How a mind writes."""

    temperature: Annotated[NonNegative, AfterValidator(_divides_logits)] = 1.0
    """Divides the logits; 0 always takes the likeliest token, and must be above 0 in training."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; must stay 1 in training, where it would bias the importance ratio."""
    max_new_tokens: Positive = 512
    """Longest completion, in tokens."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """A completion ends when its text contains one of these, special tokens among them; the text is cut before it."""
    max_rows: Positive = 256
    """Rollouts that are decoded together, at most; fewer where memory is short."""
    prefill_tokens: Positive | None = None
    """Prompt tokens that one forward reads at most (at least one prompt); None: 2048 on a CPU, 16384 on a GPU."""


class VoteConfig(Section):
    """How rollouts become a label and rewards."""

    extract: str = "auto"
    """How an answer is read: `auto`, `first-number`, `last-number`, `choice`, `regex:PATTERN`, the short name of an
    installed plug-in, or `package.module:function` taking (text, finish_reason) and returning the answer or None."""
    thinking: bool | tuple[str, Mark] | None = None
    """Whether chat prompts end inside the thoughts; None asks the chat template. Or the marks of thoughts of a model
    that has its own, as in `["<plan>", "</plan>"]`; an empty first one says that prompts end inside the thoughts."""
    grader: str = "math"
    """Which answers are equal: `math`, `exact`, `choice`, the short name of an installed plug-in, or
    `package.module:Name`."""
    reward: str = "majority"
    """What a rollout is paid: `majority`, `frequency`, `gated`, `novelty`, `novelty-embedding`, `gold`, `format`,
    `overlong`, the short name of an installed plug-in, `package.module:Name`, or a weighted sum of several, as in
    `majority+0.2*format`. `coin` and `shuffled` are controls, from which no answer can be learned."""
    weight: Weight = "rollout"
    """Votes: one for each rollout, one for each mind (for each rollout where one mind wrote them all), or each rollout
    by its confidence."""
    labels: Literal["minds", "base", "average"] = "minds"
    """Who elects the label: the minds that learn; the base model (no adapter, no noise), once for each problem; or the
    mean mind of an exponential average of the policy, anew at each visit."""
    label_rollouts: Rollouts | None = None
    """Rollouts for each problem of the base model or the average, where they elect the label; None means as many as the
    group has."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Memory of the average that elects labels: average ← decay · average + (1 − decay) · policy, after each step; this
    is the decay of the first step, from which it goes to `average_decay_end` by a cosine (Co-rewarding-II)."""
    average_decay_end: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Decay of the average behind the last step."""


class GuardConfig(Section):
    """What is done against collapse, without labels."""

    stop_on_collapse: bool = False
    """End the run, with a checkpoint and exit code 3, when the alarm goes off."""
    until_settled: bool = False
    """End the run before its last step once labels no longer move (`ttrl_pop.run.verdict.settled`)."""
    flip_scaling: bool = False
    """Scale a problem's advantages down where its label has just flipped, or never did (`ttrl_pop.run.guard`)."""
    keep_minorities: bool = False
    """Raise the advantages of large minorities where a label has just flipped."""
    skip_risky: bool = False
    """Leave out, at random, problems whose label was contested once and is agreed on now."""


class LoraConfig(Section):
    """The adapter that learns."""

    rank: Positive = 16
    """Rank of each adapted matrix's update; at most the width of the model's hidden states."""
    alpha: Positive = 32
    """Scale of the update: alpha / rank times the product of its two factors."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the modules that get an adapter, or `all-linear`."""


class LearnConfig(Section):
    """GRPO (METHOD.md, section 3)."""

    loss: Literal["grpo", "dapo", "dr_grpo", "gspo"] = "dapo"
    """How advantages are scaled, and how tokens are weighed and clipped."""
    noise: Literal["replay", "mean", "mean-tis"] = "replay"
    """What gradients pass through. `replay`: the mind that wrote the rollout; `mean`: the mean mind, noise off;
    `mean-tis`: the same, corrected by truncated importance weights."""
    tis: bool | None = None
    """Truncated importance weights under `replay` too, where a second engine wrote the rollouts; None: where the
    backend asks for it."""
    tis_cap: Annotated[float, Field(gt=0)] = 3.0
    """Largest truncated importance weight."""
    max_logprob_gap: Annotated[float, Field(gt=0)] | None = None
    """Largest mean |Δ| of sampler's and learner's log-probabilities of a step under `replay`, above which the run
    stops; None: the backend's."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far below 1 an importance ratio may fall before it is clipped."""
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    """How far above 1 an importance ratio may rise before it is clipped."""
    kl: NonNegative = 0.0
    """Weight of the k3 KL to the base model (adapter off, no noise)."""
    kl_prior: NonNegative = 0.0
    """Weight of the population's closed-form KL to its prior, per dimension."""
    lr: NonNegative = 5e-5
    """Learning rate of the adapter."""
    population_lr: NonNegative | None = None
    """Learning rate of mu and log sigma; None means 5 × lr."""
    weight_decay: NonNegative = 0.0
    """AdamW's weight decay of the adapter; the population has none."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of both learning rates after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Steps over which both learning rates rise to their full value."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Clip of the adapter's gradient norm; the population's is clipped apart, at the same value."""
    updates_per_step: Annotated[int, Field(ge=1, le=1000)] = 1
    """Optimizer steps on each batch of rollouts."""
    token_budget: Positive | None = None
    """Tokens that one forward of the learner holds at most (at least one rollout); None: 1024 on a CPU, where more are
    no faster, as many as fit on a GPU, up to 65536. Memory grows with it, the gradient is the same."""
    checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: less memory, a third more
    time."""
    rollouts: Annotated[int, Field(ge=2, le=MOST_ROLLOUTS)] | None = None
    """Rollouts of each group that are learned from, those of its first minds; the others vote, and cost the learner
    nothing. None: all."""
    mask_truncated: bool = True
    """Leave rollouts that the token limit cut off out of the loss."""
    max_bad_updates: Positive = 3
    """Updates with a non-finite loss or gradient in a row after which the run stops."""
    lora: LoraConfig = LoraConfig()
    """The adapter."""

    @property
    def population_rate(self) -> float:
        """`population_lr`, or what it is where it was left open."""
        return 5 * self.lr if self.population_lr is None else self.population_lr


class CheckpointConfig(Section):
    """What is kept of a run's weights."""

    every: Positive = 1
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=2, lt=2**31)] = 2
    """Newest checkpoints that are kept, beside the best."""


class Config(Section):
    """All settings of a run."""

    model: str = "smollm2"
    """Hub id, local folder, GGUF file, or `smollm2` for the built-in demo model."""
    device: str = "auto"
    """A device as torch names it (`cpu`, `cuda`, `cuda:1`); `auto` takes CUDA, else Apple's MPS, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Type of the model's weights; `auto` is float32 on a CPU, else bfloat16."""
    deterministic: bool = False
    """On a GPU: take kernels that repeat to the bit, which are slower, so that a run that goes on ends as one never
    stopped, exactly as on a CPU; without it, to rounding."""
    backend: str = "hf"
    """Rollout engine: `hf`, `vllm`, `vllm-server` (several engines), `auto` (vllm where it is installed and a GPU is
    there, else hf), the short name of an installed plug-in, or `package.module:Name`."""
    backend_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the backend itself."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of every random draw."""
    steps: Annotated[int, Field(ge=0, lt=2**31)] = 20
    """Steps to train; 0: the untrained population answers, and that is all."""
    problems_per_step: Positive = 16
    """Problems in a step."""
    shards: PowerOfTwo | None = None
    """Parts that each step is cut into, shared out among the processes of a run, no more than these. Results depend on
    it by rounding, and on the number of processes not at all; None: the power of two from that number on."""
    baseline: bool = False
    """Let the untrained population answer all problems first, for an honest before/after."""
    answers: bool = True
    """Let the trained population answer all problems at the end."""
    holdout: Annotated[float, Field(gt=0, lt=1)] | str | None = None
    """Problems that are kept out of training, to measure by: a share of the given ones, or a source of others."""
    eval_every: Positive = 5
    """Steps between two measurements on the problems held out; the first comes before the first step."""
    track: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Trackers that are given the numbers of each step: `tensorboard`, `wandb`, `trackio`, or another that accelerate
    knows."""
    problems: ProblemsConfig = ProblemsConfig()
    """How problems are read."""
    population: PopulationConfig = PopulationConfig()
    """Who answers."""
    sampling: SamplingConfig = SamplingConfig()
    """How a mind writes."""
    vote: VoteConfig = VoteConfig()
    """How rollouts become a label and rewards."""
    learn: LearnConfig = LearnConfig()
    """How the policy learns from rewards."""
    guard: GuardConfig = GuardConfig()
    """What is done against collapse."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is kept of a run's weights."""

    @property
    def group_size(self) -> int:
        """Rollouts of a problem in a step."""
        return self.population.minds * self.population.samples_per_mind
