"""`ttrl_pop.population`: minds in the rows of padded batches, for any causal language model of transformers and whoever
samples from it or trains it.

    minds = ttrl_pop.population(model, sigma=0.005)
    with minds.embody(minds.spawn(seed=0, step=3, count=16)):
        out = model.generate(**batch, max_new_tokens=64, do_sample=True)

Simplifications:

1. A row is one mind from its first token on: `level = "token"` and `scope = "completion"` are for packed rows.
2. Where layers are computed again in the backward pass (gradient checkpointing), that of a forward must be over before
   the next forward begins: the rows of the newest one count.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ttrl_pop import randomness
from ttrl_pop.config_file import validate
from ttrl_pop.errors import UsageError
from ttrl_pop.export.plain import folded
from ttrl_pop.export.trained import offsets_of
from ttrl_pop.fit.sigma import Calibration, search
from ttrl_pop.population.base import MEAN
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.types import Mind

WEIGHTS, SETTINGS = "population.safetensors", "population.json"
"""Files of a saved population."""

READ = 64
"""Tokens that the base model says to each prompt, to find sigma on."""


class Minds:
    """A population of a model that someone else runs: its mu and log sigma, and the rows that its minds read."""

    def __init__(self, model: Any, options: NormNoiseOptions) -> None:
        """Find the norms of `model` and hook them. Called once for a model, before or after peft wraps it."""
        for option, value in (("level", "sequence"), ("scope", "sequence")):
            if getattr(options, option) != value:
                raise UsageError(f'population: {option} must be "{value}" for rows of padded batches')
        self.model = model
        # Names of norms key the noise: those of the model that peft has wrapped are the model's own.
        self.network: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.population = NormNoise(options)
        self.population.attach(self.network)
        self._rows: tuple[tuple[Mind, ...], Int[Tensor, "B"]] | None = None
        self._next = 0
        """Row of the batch with which the next forward begins."""
        # peft calls the forward of what it wraps, which runs no hook; what is inside of that is called as a module.
        self.network.base_model.register_forward_pre_hook(self._before, with_kwargs=True)

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

        A forward of fewer rows is a part of the batch, and the next one goes on behind it. The backward pass belongs
        inside where layers are computed again in it.
        """
        known = tuple(dict.fromkeys(minds_B))
        place_B = torch.tensor([known.index(mind) for mind in minds_B], device=self.population.mu.device)
        outer = self._rows, self._next
        self._rows, self._next = (known, place_B), 0
        try:
            with self.population.embody(known, place_B, torch.zeros_like(place_B)):
                yield
        finally:
            self._rows, self._next = outer

    @torch.no_grad()
    def calibrate(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], count: int = 4
    ) -> Calibration:
        """Find sigma where it is `"auto"`: the largest whose minds stay near the base model, on what that says to these
        left-padded prompts.

        Raises:
            UsageError: no sigma that was tried meets the targets.
        """
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
        network = (
            model.merge_and_unload() if model is not self.network and hasattr(model, "merge_and_unload") else model
        )
        return folded(network, None, offsets_of(self.population, mind))

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
            UsageError: it is that of another model.
        """
        try:
            self.population.load_state_dict(safetensors.torch.load_file(Path(folder) / WEIGHTS))
        except (OSError, RuntimeError) as error:
            last = str(error).strip().splitlines()[-1].strip()
            raise UsageError(f"{folder}: no population of this model ({last}); name one of the same model") from error

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._rows is None:
            return
        given = kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        rows, tokens = (args[0] if given is None else given).shape[:2]
        known, place_B = self._rows
        place = place_B[self._next : self._next + rows]
        if len(place) != rows:
            raise UsageError(
                f"population: a forward of {rows} rows, where {len(place_B) - self._next} of {len(place_B)} minds are "
                "left; embody one mind for each row (after num_return_sequences), and let parts come out even"
            )
        self._next = (self._next + rows) % len(place_B)
        mind_N = place.repeat_interleave(tokens)
        self.population.assume(known, mind_N, torch.zeros_like(mind_N))

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
        model: a model, or a peft model of one. Its own parameters are left as they are.
        options: those of norm-noise: `sigma=0.005`, or `"auto"` and a call of `calibrate`.

    Raises:
        UsageError: an option is wrong, or the model has no norms over its hidden size.
    """
    return Minds(model, validate(NormNoiseOptions, options, source="population"))
