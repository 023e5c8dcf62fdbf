"""What a run has yet to do."""

from ttrl_pop.config import Config
from ttrl_pop.types import Load


def workload(config: Config, problems: int, done: int, labelled: int, surveys: int, held: int = 0) -> Load:
    """What the steps behind `done`, and `surveys` of all problems, have to do.

    Args:
        problems: how many there are.
        labelled: those for which the base model has elected a label, where it does so.
        surveys: times that every mind answers every problem: the baseline, the final answers.
        held: problems held out, which are answered before some of the steps and after the last one.
    """
    steps, size = config.steps - done, config.group_size
    groups = steps * min(config.problems_per_step, problems)
    elected = {"minds": 0, "average": groups, "base": min(groups, problems - labelled)}[config.vote.labels]
    return Load(
        survey=(surveys * problems + held * measurements(config, done)) * size,
        sample=groups * size + elected * (config.vote.label_rollouts or size),
        steps=steps,
    )


def measurements(config: Config, done: int = 0) -> int:
    """How often problems held out are answered once `done` steps are done."""
    return sum(measures(config, step + 1) for step in range(done, config.steps)) + 1


def measures(config: Config, step: int) -> bool:
    """Whether problems held out are answered before this step."""
    return (step - 1) % config.eval_every == 0
