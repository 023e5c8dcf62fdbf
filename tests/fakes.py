"""Small real things in place of large ones: TinyLM (random weights, every supported family) and ScriptedBackend."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models

from ttrl_pop.config import Config, LoraConfig
from ttrl_pop.config_file import load_config
from ttrl_pop.learn.learner import Learner
from ttrl_pop.model.load import LoadedModel, fingerprint
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.prompts import Prompts, encode
from ttrl_pop.packing import attention
from ttrl_pop.packing.pack import Tree, pack
from ttrl_pop.population.base import MEAN, Population
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.run.session import Session
from ttrl_pop.sample.backend import Backend, Request, Weights
from ttrl_pop.types import AnswerKey, Group, Mind, Problem, Rollout, Tally
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards.base import Ballot
from ttrl_pop.vote.rewards.consensus import majority
from ttrl_pop.vote.rules import Rules, build_rules
from ttrl_pop.vote.vote import vote

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "cases"
ALPHABET = " 0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?=+*\n#$\\{}/<>|-_'()"
SPECIAL = ["<s>", "</s>", "<unk>"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "mistral", "phi3", "gpt2")


def text_of(case: Any) -> str:
    """A case of hostile.json: a text, `{"repeat": [piece, times]}`, or a list of these."""
    if isinstance(case, str):
        return case
    return "".join(map(text_of, case)) if isinstance(case, list) else case["repeat"][0] * case["repeat"][1]


def tiny_tokenizer() -> Any:
    """One token for each character."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *ALPHABET])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template=TEMPLATE,
    )


def tiny_network(
    family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, width: int = 16, device: str = "cpu"
) -> Any:
    """Two layers, random weights large enough that tokens differ in probability."""
    shape: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(ALPHABET),
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "tie_word_embeddings": True,
        "initializer_range": 1.6 / width**0.5,
    }
    gated = {**shape, "intermediate_size": 2 * width, "num_key_value_heads": 2}
    makers: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaConfig(**gated),
        "qwen2": lambda: transformers.Qwen2Config(**gated),
        "qwen3": lambda: transformers.Qwen3Config(**gated, head_dim=width // 4),
        # A window shorter than the test sequences, so that sliding attention is exercised.
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **gated, head_dim=width // 4, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
        ),
        "mistral": lambda: transformers.MistralConfig(**gated, head_dim=width // 4, sliding_window=6),
        "phi3": lambda: transformers.Phi3Config(**gated),
        "gpt2": lambda: transformers.GPT2Config(**{**shape, "n_inner": 2 * width}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.AutoModelForCausalLM.from_config(makers[family](), dtype=dtype)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                # Fresh norm weights are all ones and biases all zeros: real ones are not.
                torch.nn.init.normal_(parameter, 1.0 if family != "gemma3" else 0.0, 0.1)
    return network.to(device).eval().requires_grad_(False)


def tiny_model(
    family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, width: int = 16, device: str = "cpu"
) -> LoadedModel:
    network = tiny_network(family, seed, dtype, width, device)
    return LoadedModel(network, tiny_tokenizer(), 256, frozenset({1}), fingerprint(network))


def save_tiny(folder: Path, family: str = "llama", seed: int = 0, width: int = 16) -> Path:
    """A model folder, in float32, as a user would have one."""
    tiny_network(family, seed, torch.float32, width).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def norm_noise(sigma: float | str = 0.3, **options: Any) -> NormNoise:
    return NormNoise(NormNoiseOptions(sigma=sigma, **options))


def tiny_policy(
    family: str = "llama",
    population: Population | None = None,
    dtype: torch.dtype = torch.float64,
    lora: LoraConfig | None = LoraConfig(rank=2, alpha=4),  # noqa: B008
    warm: bool = True,
    width: int = 16,
    device: str = "cpu",
) -> Policy:
    """A policy whose adapter (where `warm`) and mu are not at their neutral start."""
    model = tiny_model(family, dtype=dtype, width=width, device=device)
    policy = Policy(model, population or norm_noise(), lora, seed=1)
    if warm:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            for parameter in policy.adapter_parameters().values():
                parameter.add_(_noise(parameter) * 0.1)
            for name, parameter in policy.population_parameters().items():
                if name == "mu":
                    parameter.add_(_noise(parameter) * 0.1)
    return policy


def _noise(like: torch.Tensor) -> torch.Tensor:
    """Standard noise of the host's generator, the same on every device."""
    return torch.randn_like(like, device="cpu").to(like.device)


def logits_of(policy: Policy, ids_BT: torch.Tensor, minds_B: Sequence[Mind] | None) -> torch.Tensor:
    """[B, T, V] of rows without padding, packed into one forward."""
    minds = minds_B or [None] * len(ids_BT)
    trees = [Tree(tuple(row.tolist()), mind) for row, mind in zip(ids_BT, minds, strict=True)]
    packed = pack(trees, policy.device)
    hidden = policy.hidden(packed)
    return torch.stack([policy.logits(hidden[[*chain(*stem)]]) for stem in packed.stems])


@contextmanager
def own_attention(network: Any) -> Iterator[None]:
    """While active, the model attends as transformers has it."""
    network.set_attn_implementation("sdpa")
    yield
    network.set_attn_implementation(attention.NAME)


def one_mind(policy: Policy, mind: Mind, tokens: int) -> Any:
    """The context in which a row of `tokens` tokens is read by one mind."""
    return policy.population.embody((mind,), torch.zeros(tokens, dtype=torch.long), torch.arange(tokens))


PROBLEMS = tuple(
    Problem(f"p{i}", f"Q: What is {a} times {b}?\nA:", i)
    for i, (a, b) in enumerate([(7, 8), (12, 3), (4, 4), (11, 12), (5, 9), (100, 2)])
)


def tiny_session(
    policy: Policy | None = None,
    problems: Sequence[Problem] = PROBLEMS,
    gold: dict[str, str] | None = None,
    backend: type[Backend] | None = None,
    **settings: Any,
) -> Session:
    """A session on TinyLM; `settings` are dotted configuration keys with __ for the dots."""
    from ttrl_pop.sample.hf.backend import HfBackend

    config: Config = load_config(
        None,
        {
            "population.minds": 4,
            "sampling.max_new_tokens": 5,
            "problems_per_step": 3,
            "steps": 3,
            "learn.lr": 1e-2,
            "learn.mask_truncated": False,
            # What TinyLM writes is no algebra, and a process that looks into it takes long to start.
            "vote.grader": "exact",
            **{key.replace("__", "."): value for key, value in settings.items()},
        },
    )
    policy = policy or tiny_policy()
    answers = AnswerKey(gold)
    return Session(
        config=config,
        problems=tuple(problems),
        gold=answers,
        policy=policy,
        backend=(backend or HfBackend)(policy, config.sampling),
        prompts=Prompts(policy.model, problems, config.sampling.max_new_tokens),
        rules=build_rules(config.vote, answers, token_limit=config.sampling.max_new_tokens),
    )


def tally_of(answers: Sequence[str | None], problem: Problem = PROBLEMS[0]) -> Tally:
    """A majority vote on boxed answers; None writes no box."""
    rollouts = (
        Rollout(Mind(i), (1,), (2,), (-0.5,), "" if answer is None else rf"\boxed{{{answer}}}", "stop", 0)
        for i, answer in enumerate(answers)
    )
    chat = Problem(problem.id, ({"role": "user", "content": "?"},), problem.index)
    return vote(Group(chat, tuple(rollouts)), Rules(ExactGrader(), majority))


def ballot(*cluster_G: int | None, answers: dict[int, str] | None = None, **changes: Any) -> Ballot:
    """A ballot with these clusters; the answer of cluster i is i unless `answers` says otherwise."""
    size = len(cluster_G)
    given = sorted({c for c in cluster_G if c is not None})
    fields: dict[str, Any] = {
        "problem_id": "p",
        "answers_G": tuple(None if c is None else (answers or {}).get(c, str(c)) for c in cluster_G),
        "cluster_G": cluster_G,
        "shares": tuple(cluster_G.count(c) / size for c in given),
        "label": (answers or {}).get(0, "0") if given else None,
        "label_cluster": 0 if given else None,
        "texts_G": ("text",) * size,
        "finished_G": (True,) * size,
        "lengths_G": (4,) * size,
        "logprob_G": (-0.5,) * size,
        "token_limit": 10,
    }
    return Ballot(**{**fields, **changes})


class ScriptedBackend(Backend):
    """Replays texts: `script(request index)` → completion. Log-probabilities are made up."""

    script: Callable[[int], str] = staticmethod(lambda index: f" {index}\n")

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        for index, request in enumerate(requests):
            text = self.script(index)
            ids = tuple(self.policy.model.tokenizer(text)["input_ids"])
            yield (
                index,
                Rollout(
                    request.mind or MEAN,
                    request.prompt_ids,
                    ids,
                    tuple(-0.5 for _ in ids),
                    text,
                    "stop",
                    self.policy.version,
                ),
            )


def kind_of_letter(text: str, finish_reason: str) -> str:
    """An extraction by a rule of its own."""
    return "capital" if text[:1].isupper() else "other"


def tallies_of(session: Session, step: int = 1, problems: Sequence[Problem] = PROBLEMS) -> list[Tally]:
    config = session.config
    minds = session.policy.population.spawn(config.seed, step, config.population.minds)
    groups = session.sample(problems, minds, config.population.samples_per_mind, step)
    return [with_mixed_rewards(session.tally(group)) for group in groups]


def with_mixed_rewards(tally: Tally) -> Tally:
    """TinyLM's answers rarely agree: rewards by hand, so that every group has a signal of its own size."""
    rewards = tuple(float((i + tally.group.problem.index) % 3) for i in range(len(tally.answers_G)))
    return dataclasses.replace(tally, rewards_G=rewards, label="x")


def gradients(
    session: Session,
    tallies: Sequence[Tally],
    weights: dict[str, float] | None = None,
    learners: list[Learner] | None = None,
) -> dict[str, torch.Tensor]:
    """Gradients of one update, caught before the optimizer uses them; `learners` gets the learner."""
    caught: dict[str, torch.Tensor] = {}
    learner = Learner(session.policy, session.config)
    if learners is not None:
        learners.append(learner)
    named = learner.trained.by_name

    def catch(*_: Any) -> None:
        caught.update({name: p.grad.clone() for name, p in named.items() if p.grad is not None})

    learner.optimizer.step = catch  # type: ignore[method-assign]
    learner.learn(tallies, 1, weights)
    session.policy.version -= 1
    return caught


MANY_STOPS = {"temperature": 3.0, "stop": tuple("abcdefgh12345")}
"""Sampling in which rollouts end at many different lengths."""


def stripped(rollouts: list[Rollout]) -> list[object]:
    return [(r.mind, r.prompt_ids, r.completion_ids, r.text, r.finish_reason, r.policy_version) for r in rollouts]


def requests(policy: Policy, minds: int = 3, samples: int = 2) -> list[Request]:
    return [
        Request(encode(policy.model.tokenizer, problem), mind, ("token", 0, problem.id, mind.seed, s))
        for problem in PROBLEMS[:4]
        for mind in policy.population.spawn(0, 1, minds)
        for s in range(samples)
    ]


def assert_same(one: list[Rollout], other: list[Rollout]) -> None:
    assert stripped(one) == stripped(other)
    for a, b in zip(one, other, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-10)
