"""TRL's trainer with minds: nothing without spread, and the mind that wrote a row is the one that it is read by."""

from pathlib import Path
from typing import Any

import pytest

trl = pytest.importorskip("trl", minversion="1.16")
datasets = pytest.importorskip("datasets")

import peft  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from fakes import save_tiny  # noqa: E402

from ttrl_pop.api.population import WEIGHTS  # noqa: E402
from ttrl_pop.errors import UsageError  # noqa: E402
from ttrl_pop.integrations.trl_minds import SEEDS, MindsGRPOTrainer  # noqa: E402
from ttrl_pop.types import Mind  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROWS = [{"prompt": f"Q: What is {n} times 7?\nA:"} for n in range(8)]


def letters(completions: list[str], **_: Any) -> list[float]:
    """A reward that groups of noise differ by."""
    return [sum(c.isalpha() for c in text) / 8 for text in completions]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def trainer(
    tiny: Path, out: Path, kind: type[Any] = MindsGRPOTrainer, minds: dict[str, Any] | None = None, **more: Any
) -> Any:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        **more,
    }
    return kind(
        model=str(tiny),
        reward_funcs=letters,
        args=trl.GRPOConfig(output_dir=str(out), **settings),
        train_dataset=datasets.Dataset.from_list(ROWS),
        **(minds or {}),
    )


def test_without_spread_and_rate_it_is_trls_own_trainer(tiny: Path, tmp_path: Path) -> None:
    still = {"population": {"sigma": 0.0}, "population_lr": 0.0}
    figures = []
    for kind, minds in ((trl.GRPOTrainer, {}), (MindsGRPOTrainer, still)):
        # One after the other: both draw from torch's own generator, which each seeds when it is made.
        made = trainer(tiny, tmp_path / kind.__name__, kind, minds)
        made.train()
        rows = [row for row in made.state.log_history if "loss" in row]
        figures.append([(row["loss"], row["grad_norm"], row["reward"]) for row in rows])
    assert len(figures[0]) == 3
    assert figures[0] == figures[1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_mind_wrote_is_read_by_it_wherever_its_row_goes(checkpointing: bool, tiny: Path, tmp_path: Path) -> None:
    seen: list[float] = []

    class Watching(MindsGRPOTrainer):
        """Compares what the loss reads in its first step with what was read of the rows before they were shuffled."""

        inputs: dict[str, Any] | None = None

        def _get_per_token_logps_and_entropies(self, *arguments: Any, **more: Any) -> Any:
            read = super()._get_per_token_logps_and_entropies(*arguments, **more)
            if self.inputs is not None and self.state.global_step == 0:
                gap = (read[0] - self.inputs["old_per_token_logps"]).abs() * self.inputs["completion_mask"]
                seen.append(float(gap.max()))
            return read

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            self.inputs = inputs
            loss = super()._compute_loss(model, inputs)
            self.inputs = None
            return loss

    watching = trainer(
        tiny,
        tmp_path / "out",
        Watching,
        {"population": {"sigma": 0.3}},
        num_iterations=2,
        steps_per_generation=4,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        gradient_checkpointing=checkpointing,
        temperature=1.0,
    )
    before = [parameter.detach().clone() for parameter in watching.minds.parameters()]
    watching.train()
    assert len(seen) >= 2
    assert max(seen) < 1e-5
    for parameter, start in zip(watching.minds.parameters(), before, strict=True):
        assert (parameter.detach() - start).abs().max() > 1e-4
    assert any("population/sigma" in row for row in watching.state.log_history)


def test_greedy_rows_are_what_the_learner_finds_likeliest_under_their_minds(tiny: Path, tmp_path: Path) -> None:
    greedy = trainer(tiny, tmp_path / "out", minds={"population": {"sigma": 0.5}}, top_k=1)
    out = greedy._generate_and_score_completions([row for row in ROWS[:2] for _ in range(4)])
    minds = [Mind(seed) for seed in out[SEEDS].tolist()]
    # Each group has the same four minds.
    assert minds[:4] == minds[4:]
    assert len(set(minds)) == 4
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
    mask = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)
    count = out["completion_ids"].shape[1]

    def likeliest(order: list[Mind]) -> float:
        with torch.no_grad(), greedy.minds.embody(order):
            logits = greedy.model(input_ids=ids, attention_mask=mask).logits[:, -count - 1 : -1]
        hits = (logits.argmax(-1) == out["completion_ids"]) * out["completion_mask"]
        return float(hits.sum() / out["completion_mask"].sum())

    assert likeliest(minds) == 1.0
    assert likeliest(minds[1:] + minds[:1]) < 1.0


def test_samples_of_a_mind_stand_side_by_side(tiny: Path, tmp_path: Path) -> None:
    pairs = trainer(tiny, tmp_path / "out", minds={"samples_per_mind": 2})
    rows = pairs.rows(8)
    assert rows[0] == rows[1] == rows[4] == rows[5]
    assert rows[2] == rows[3] != rows[0]


def test_a_run_goes_on_with_its_population(tiny: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    first = trainer(tiny, tmp_path / "out", minds={"population": {"sigma": 0.3}}, **saving)
    first.train()
    again = trainer(tiny, tmp_path / "out", minds={"population": {"sigma": 0.3}}, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    # It begins where the first one was, and makes the same second step.
    torch.testing.assert_close(again.minds.population.mu, first.minds.population.mu)


def test_the_best_model_has_the_minds_of_its_checkpoint(tiny: Path, tmp_path: Path) -> None:
    best = trainer(
        tiny,
        tmp_path / "out",
        minds={
            "population": {"sigma": 0.3},
            "eval_dataset": datasets.Dataset.from_list(ROWS),
            "peft_config": peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        },
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=8,
        load_best_model_at_end=True,
        # It falls from step to step: the first is the best.
        metric_for_best_model="eval_number",
    )
    number = iter(range(3, 0, -1))
    plain = best.evaluate

    def evaluate(*arguments: Any, **more: Any) -> Any:
        return {**plain(*arguments, **more), "eval_number": float(next(number))}

    best.evaluate = evaluate
    best.args.greater_is_better = True
    best.train()
    assert Path(best.state.best_model_checkpoint).name == "checkpoint-1"
    saved = [safetensors.torch.load_file(tmp_path / "out" / f"checkpoint-{n}" / WEIGHTS)["mu"] for n in (1, 3)]
    assert torch.equal(best.minds.population.mu.detach(), saved[0])
    assert not torch.equal(*saved)


def double(number: int) -> int:
    """
    Twice a number.

    Args:
        number: a number.
    """
    return 2 * number


@pytest.mark.parametrize(
    ("settings", "minds", "message"),
    [
        ({"beta": 0.1}, {}, "beta must be 0"),
        ({}, {"samples_per_mind": 3}, "must divide num_generations, got 3 and 4"),
        (
            {"use_transformers_continuous_batching": True},
            {},
            "use_transformers_continuous_batching must be false with minds",
        ),
        ({}, {"rollout_func": lambda prompts, trainer: {}}, "rollout_func must be left out with minds"),
        ({}, {"tools": [double]}, "tools must be left out with minds"),
        ({}, {"population": {"sigma": 0.1, "decay": 0.9}}, "decay must be 1"),
    ],
)
def test_what_does_not_go_with_minds_is_refused(
    settings: dict[str, Any],
    minds: dict[str, Any],
    message: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # TRL first asks whether the chat template can tell of tools.
    for name in ("supports_tool_calling", "add_response_schema", "is_chat_template_prefix_preserving"):
        monkeypatch.setattr(f"trl.trainer.grpo_trainer.{name}", lambda asked: asked)
    with pytest.raises(UsageError, match=message):
        trainer(tiny, tmp_path / "out", minds=minds, **settings)
