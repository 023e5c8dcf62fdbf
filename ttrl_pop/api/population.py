"""`ttrl_pop.population`: minds in the rows of padded batches, for any causal language model of transformers and whoever
samples from it or trains it.

    minds = ttrl_pop.population(model, sigma=0.005)
    with minds.embody(minds.spawn(seed=0, step=3, count=16)):
        out = model.generate(**batch, max_new_tokens=64, do_sample=True)

Simplifications:

1. A row is one mind from its first token on: `level = "token"` and `scope = "completion"` are for packed rows.
2. Where layers are computed again in the backward pass (gradient checkpointing), that of a forward must be over before
   the next forward begins: the rows of the newest one count.
3. Beam search moves rows: give all beams of a prompt one mind.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn

from ttrl_pop import randomness
from ttrl_pop.config_file import load_config, validate
from ttrl_pop.errors import UsageError
from ttrl_pop.export.plain import folded
from ttrl_pop.export.trained import offsets_of
from ttrl_pop.fit.sigma import Calibration, search
from ttrl_pop.population.base import MEAN
from ttrl_pop.population.norm_noise import NormNoise, chosen_sites, norm_sites
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.store.directory import find
from ttrl_pop.types import Mind

WEIGHTS, SETTINGS = "population.safetensors", "population.json"
"""Files of a saved population."""

READ = 64
"""Tokens that the base model says to each prompt, to find sigma on."""


PADDED = "for rows of padded batches"
FIXED = {"level": ("sequence", PADDED), "scope": ("sequence", PADDED), "decay": (1, "where nobody ends a step")}
"""Options that can only be so, and why."""


class Minds:
    """A population of a model that someone else runs: its mu and log sigma, and the rows that its minds read."""

    def __init__(self, model: Any, options: NormNoiseOptions) -> None:
        """Find the norms of `model` and hook them. Called once for a model, before or after peft wraps it."""
        _check_fixed(options, "population")
        self.model = _unwrapped(model)
        # Names of norms key the noise: those of the model that peft has wrapped are the model's own.
        self.network: Any = _bare(model)
        if not isinstance(self.network, transformers.PreTrainedModel):
            raise UsageError(
                f"population: the model must be one of transformers that is loaded, got a {type(model).__name__}; "
                "load it by AutoModelForCausalLM.from_pretrained"
            )
        self.population = NormNoise(options)
        self.population.attach(self.network)
        self._minds_B: tuple[Mind, ...] = ()
        """Who reads the rows of the batch; empty outside of `embody`."""
        self._next = 0
        """Row of the batch with which the next forward begins."""
        self._now: tuple[Mind, ...] = ()
        """Who reads the rows of the forward that is under way."""
        # peft calls the forward of what it wraps, which runs no hook; what is inside of that is called as a module.
        self.network.base_model.register_forward_pre_hook(self._before, with_kwargs=True)
        self.network.base_model.register_forward_hook(self._after)

    def parameters(self) -> list[nn.Parameter]:
        """What learns: mu and, unless sigma is 0, log sigma."""
        return [parameter for parameter in self.population.parameters() if parameter.requires_grad]

    def spawn(self, seed: int, step: int, count: int) -> tuple[Mind, ...]:
        """The `count` minds of a step, a pure function of its arguments; those of a run with that seed."""
        return self.population.spawn(seed, step, count)

    @contextmanager
    def embody(self, minds_B: Sequence[Mind]) -> Iterator[None]:
        """While active, row b of every forward is read by mind b; `ttrl_pop.MEAN` is the mean mind. Outside, the model
        is as it was.

        A forward of fewer rows is a part of the batch, and the next one goes on behind it; those of one `generate` are
        one part, whose rows keep their minds. The backward pass belongs inside where layers are computed again in it.

        Raises:
            UsageError: there is no mind, or something else than minds.
        """
        if isinstance(minds_B, Mind) or not minds_B or not all(isinstance(mind, Mind) for mind in minds_B):
            raise UsageError(
                f"embody takes a list of minds, one for each row, got {minds_B!r}; spawn them, or write "
                "[ttrl_pop.Mind(seed), ...]"
            )
        # Updates by `.data` leave no trace by which offsets that are kept could be seen to be old.
        self.population.forget()
        outer = self._minds_B, self._next
        self._minds_B, self._next = tuple(minds_B), 0
        try:
            with self.population.embody(*self._placed(self._minds_B, 1)):
                yield
        finally:
            self._minds_B, self._next = outer

    @torch.no_grad()
    def calibrate(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], count: int = 4
    ) -> Calibration:
        """Find sigma where it is `"auto"`: the largest whose minds stay near the base model, on what that says to these
        left-padded prompts.

        Raises:
            UsageError: no sigma that was tried meets the targets, or `count` is less than 1.
        """
        if count < 1:
            raise UsageError(f"calibrate: count must be at least 1, got {count}")
        ids_BT = self.model.generate(
            input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=READ, do_sample=False
        )
        start = input_ids.shape[1]
        written_BT = torch.cat([attention_mask, (ids_BT[:, start:] != self._padding()).long()], dim=1)
        counted_BK = written_BT[:, start:].bool()
        base = self._log_softmax(ids_BT, written_BT, start)[counted_BK]
        minds = self.spawn(0, randomness.OUTSIDE_TRAINING, count)

        def measure() -> tuple[float, float]:
            kl = flips = 0.0
            for mind in minds:
                with self.embody([mind] * len(ids_BT)):
                    own = self._log_softmax(ids_BT, written_BT, start)[counted_BK]
                kl += float((base.exp() * (base - own)).sum(-1).mean())
                flips += float((base.argmax(-1) != own.argmax(-1)).double().mean())
            return kl / len(minds), flips / len(minds)

        return search(self.population, measure)

    def fold(self, mind: Mind = MEAN) -> Any:
        """A plain model that is this mind, its adapter merged into it; the model itself stays as it is.

        Raises:
            NoFormError: the mind does not fold into a model that transformers knows.
        """
        model = copy.deepcopy(self.model)
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        _merge_adapters(model)
        return folded(model, None, offsets_of(self.population, mind))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write mu, log sigma and options to `folder`, beside what else is in it."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.population.state_dict().items()}
        safetensors.torch.save_file(tensors, path / WEIGHTS)
        settings = {"options": self.population.options.model_dump(mode="json"), "sites": self.population.sites}
        (path / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")

    def load(self, folder: str | Path) -> None:
        """Take over what `save_pretrained` wrote, or the population of a run's checkpoint.

        Raises:
            UsageError: it is that of another model or of other norms, or cannot be read; nothing has changed.
        """
        path = Path(folder)
        rule = f"{folder}: no population of this model"
        try:
            tensors = safetensors.torch.load_file(path / WEIGHTS)
            options, sites = self._kept(path)
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UsageError(f"{rule}: it cannot be read ({error})") from error
        if options is not None:
            # A run's has decayed as far as it has.
            _check_fixed(options.model_copy(update={"decay": 1}), str(folder))
        if sites is not None and sites != self.population.sites:
            raise UsageError(
                f"{rule} behind the same norms: {len(sites)} there, {len(self.population.sites)} here; "
                "make it with the same option `sites`"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in self.population.state_dict().items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if theirs != shapes:
            raise UsageError(f"{rule}: it holds {_said(theirs)}, where this one has {_said(shapes)}")
        self.population.load_state_dict(tensors)
        self.population.log_sigma.requires_grad_(float(self.population.sigma0) != 0)

    def _kept(self, folder: Path) -> tuple[NormNoiseOptions | None, tuple[str, ...] | None]:
        """Options and sites of a population that was saved; None where nothing beside it tells."""
        if (folder / SETTINGS).exists():
            settings = json.loads((folder / SETTINGS).read_text())
            return validate(NormNoiseOptions, settings["options"], source=SETTINGS), tuple(settings["sites"])
        try:
            run, _ = find(folder)
        except UsageError:
            return None, None
        kept = load_config(run.config, {}).population
        if kept.name != "norm-noise":
            raise UsageError(f"{folder}: its population is {kept.name}, and can only be norm-noise here")
        options = validate(NormNoiseOptions, kept.options, source=str(run.config))
        return options, chosen_sites([name for name, _ in norm_sites(self.network)], options.sites)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not self._minds_B:
            return
        given = kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        rows, tokens = (args[0] if given is None else given).shape[:2]
        if rows == 1 < len(set(self._minds_B)) and _is_packed(kwargs):
            raise UsageError(
                f"population: one row of several sequences, where {len(self._minds_B)} minds are embodied; pad them, a "
                "row each (no packing, no continuous batching)"
            )
        cache = kwargs.get("past_key_values")
        self._now = self._begun(rows) if cache is None or not _length(cache) else self._gone_on(rows, cache)
        self.population.assume(*self._placed(self._now, tokens))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Write into the cache who reads its rows: it may be made in the forward, or copied behind it."""
        parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
        for part in parts if self._minds_B else ():
            if isinstance(part, transformers.Cache):
                part.minds = self._now

    def _begun(self, rows: int) -> tuple[Mind, ...]:
        """Who reads the next rows of the batch."""
        left = self._minds_B[self._next :]
        if len(left) < rows:
            raise UsageError(
                f"population: a forward of {rows} rows, where {len(left)} of {len(self._minds_B)} minds are "
                "left; embody one mind for each row (after num_return_sequences), and let parts come out even"
            )
        self._next = (self._next + rows) % len(self._minds_B)
        return left[:rows]

    def _gone_on(self, rows: int, cache: Any) -> tuple[Mind, ...]:
        """Who reads on from this cache: who has read so far."""
        minds: tuple[Mind, ...] = getattr(cache, "minds", ())
        if len(minds) != rows or not set(minds) <= set(self._minds_B):
            came = f"by {len(minds)} rows of minds" if minds else "outside of embody"
            raise UsageError(
                f"population: a forward of {rows} rows from a cache that was filled {came}; a row is one mind from its "
                "first token on: embody the same minds, and begin with an empty cache"
            )
        return minds

    def _placed(
        self, minds: Sequence[Mind], tokens: int
    ) -> tuple[tuple[Mind, ...], Int[Tensor, "N"], Int[Tensor, "N"]]:
        """What `embody` of the population takes: different minds, and which of them reads each token of these rows."""
        known = tuple(dict.fromkeys(self._minds_B))
        place_B = torch.tensor([known.index(mind) for mind in minds], device=self.population.mu.device)
        mind_N = place_B.repeat_interleave(tokens)
        return known, mind_N, torch.zeros_like(mind_N)

    def _log_softmax(
        self, ids_BT: Int[Tensor, "B T"], mask_BT: Int[Tensor, "B T"], start: int
    ) -> Float[Tensor, "B K V"]:
        logits = self.model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions(mask_BT)).logits
        wide = logits[:, start - 1 : -1]
        return torch.log_softmax(wide.to(torch.promote_types(wide.dtype, torch.float32)), dim=-1)

    def _padding(self) -> int:
        settings = self.model.generation_config
        ids = settings.pad_token_id if settings.pad_token_id is not None else settings.eos_token_id
        return int(ids[0] if isinstance(ids, list) else ids)


def _check_fixed(options: NormNoiseOptions, source: str) -> None:
    for option, (value, why) in FIXED.items():
        if (came := getattr(options, option)) != value:
            raise UsageError(f"{source}: {option} must be {value!r} {why}, got {came!r}")


def _unwrapped(model: Any) -> Any:
    """The model inside of what torch compiles or copies over processes."""
    while isinstance(model, nn.Module):
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            break
    return model


def _bare(model: Any) -> Any:
    """The model of transformers inside of all that may wrap it, peft among it."""
    inner = _unwrapped(model)
    while hasattr(inner, "get_base_model"):
        inner = _unwrapped(inner.get_base_model())
    return inner


def _merge_adapters(network: nn.Module) -> None:
    """Merge the layers of an adapter that peft has put into a network since it was given minds.

    Raises:
        UsageError: they do not merge.
    """
    for name, module in list(network.named_modules()):
        if hasattr(module, "unload_and_optionally_merge_module"):
            merged = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            network.set_submodule(name, merged)
        elif isinstance(module, BaseTunerLayer):
            if not hasattr(module, "merge"):
                raise UsageError(f"fold: {name}, a {type(module).__name__} of peft, does not merge into weights")
            module.merge()
            network.set_submodule(name, module.get_base_layer())


def _length(cache: Any) -> int:
    """Tokens that a cache holds; 1 where it holds something that does not tell."""
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return int(cache.has_previous_state())


def _is_packed(kwargs: Mapping[str, Any]) -> bool:
    """Whether a row holds several sequences."""
    if kwargs.get("cu_seq_lens_q") is not None:
        return True
    places = kwargs.get("position_ids")
    return isinstance(places, Tensor) and bool((places[..., 1:] < places[..., :-1]).any())


def _said(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))


def positions(mask_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Number of each token in its row, from 0, those of padding left out."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def population(model: Any, **options: Any) -> Minds:
    """Give a causal language model of transformers a population of minds (B-Trans): mu and log sigma behind every norm.

    >>> minds = ttrl_pop.population(model, sigma=0.3)
    >>> with minds.embody(minds.spawn(seed=0, step=1, count=2)):
    ...     one, other = model(input_ids=prompts).logits  # the same prompt twice, read by two minds
    >>> bool((one != other).any())
    True

    Args:
        model: a model, or a peft model of one, compiled or not. Its own parameters are left as they are.
        options: those of norm-noise: `sigma=0.005`, or `"auto"` and a call of `calibrate`.

    Raises:
        UsageError: an option is wrong, or the model has no norms over its hidden size.
    """
    return Minds(model, validate(NormNoiseOptions, options, source="population"))
