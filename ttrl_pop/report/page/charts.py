"""Figures of steps as charts by Vega-Altair: one small one for each figure, with a line for each run.

A chart is a specification without data: charts.js gives it `points` (step, run, value, low, high) and `alarms` (step).
Its colours are variables of page.css, so that it follows light, dark and paper. Nothing that a run wrote stands in it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ttrl_pop.errors import UsageError

HEIGHT = 132
"""Height of a chart in pixels; its width is that of its place."""

TALL = 340
"""Height of the places of texts."""

DOTTED = 40
"""Steps up to which every point of a line is a dot."""

DASHES = ([1, 0], [7, 3], [2, 3], [9, 3, 2, 3])
"""Runs differ by these beside their colour, for paper and for eyes that see fewer colours; they come round."""

COLOURS = 8
"""Colours of runs in page.css; they come round."""

LABEL = "abs(datum.value) < 0.001 && datum.value != 0 ? format(datum.value, '~e') : format(datum.value, '~g')"
"""What stands at a tick."""

Scale = Literal["share", "amount"]


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure of metrics.jsonl over the steps."""

    figure: str
    name: str
    meaning: str
    scale: Scale
    """`share`: from 0 to 1; `amount`: from 0, so that what hardly moves looks as if it did not."""


CURVES = (
    Curve("vote/agreement", "agreement", "votes for the first answer", "share"),
    Curve("vote/label_accuracy", "majority accuracy", "labels that equal gold", "share"),
    Curve("rollout/accuracy", "rollout accuracy", "rollouts that equal gold", "share"),
    Curve("holdout/agreement", "agreement, held out", "votes for the first answer, on problems held out", "share"),
    Curve("holdout/label_accuracy", "majority accuracy, held out", "majorities that equal gold", "share"),
    Curve("holdout/accuracy", "rollout accuracy, held out", "rollouts that equal gold", "share"),
    Curve("reward/mean", "reward", "mean over rollouts", "amount"),
    Curve("vote/margin", "margin", "first answer's lead over the second", "share"),
    Curve("vote/flip_rate", "flipped labels", "labels that changed since the last visit", "share"),
    Curve("vote/abstained", "no answer", "rollouts without an answer", "share"),
    Curve("vote/entropy", "answer entropy", "0 all equal, 1 all different", "share"),
    Curve("rollout/entropy", "policy entropy", "nats per token", "amount"),
    Curve("rollout/length", "length", "tokens of a completion", "amount"),
    Curve("rollout/truncated", "cut off", "completions ended by the token limit", "share"),
    Curve("population/sigma", "sigma", "spread of the minds", "amount"),
    Curve("population/mu_rms", "mu", "root mean square of the mean mind", "amount"),
    Curve("learn/kl", "KL", "to the base model, nats per token", "amount"),
    Curve("learn/grad_norm", "gradient norm", "of the adapter, before clipping", "amount"),
    Curve("learn/logprob_gap", "log-probability gap", "sampler against learner, nats", "amount"),
    Curve("time/tokens_per_s", "speed", "tokens per second of sampling", "amount"),
    Curve("time/step", "time of a step", "seconds", "amount"),
)
"""In the order of the page; one that no run has is left out."""


def chart(curve: Curve, runs: int, steps: int, bands: bool, alarms: bool) -> dict[str, Any]:
    """The Vega-Lite specification of a curve, for `runs` runs of up to `steps` steps.

    Args:
        bands: whether there are intervals.
        alarms: whether there are alarms.

    Raises:
        UsageError: Vega-Altair is not there.
    """
    alt = _altair()
    ids, colours = _colours(runs)
    x = alt.X(
        "step:Q",
        scale=alt.Scale(domain=[1, max(2, steps)], nice=False),
        axis=alt.Axis(title=None, tickMinStep=1, tickCount=5, format="d", grid=False),
    )
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(domain=[0, 1]) if curve.scale == "share" else alt.Scale(zero=True),
        axis=alt.Axis(title=None, tickCount=4, labelExpr=LABEL, domain=False, ticks=False),
    )
    colour = _by_run(alt.Color, ids, colours)
    dash = _by_run(alt.StrokeDash, ids, [DASHES[run % len(DASHES)] for run in range(runs)])
    base = alt.Chart(alt.NamedData(name="points")).encode(x=x, color=colour)
    dots: Any = {"size": 14, "filled": True} if steps <= DOTTED else False
    layers = [base.mark_line(strokeWidth=1.8, point=dots).encode(y=y, strokeDash=dash)]
    if bands:
        layers.insert(0, base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q"), y2="high:Q"))
    if alarms:
        marks = alt.Chart(alt.NamedData(name="alarms")).mark_point(
            shape="triangle-down", size=60, filled=True, opacity=1
        )
        layers.append(marks.encode(x=x, y=alt.value(4), color=alt.value("var(--alarm)")))
    return _specification(alt.layer(*layers).properties(width="container", height=HEIGHT))


def scatter(runs: int) -> dict[str, Any]:
    """The Vega-Lite specification of places of texts: a dot for each, in the colour of its run. It is given `points`
    (run, x, y).

    Raises:
        UsageError: Vega-Altair is not there.
    """
    alt = _altair()
    dots = alt.Chart(alt.NamedData(name="points")).mark_point(size=26, filled=True, opacity=0.7)
    placed = dots.encode(
        x=alt.X("x:Q", axis=None),
        y=alt.Y("y:Q", axis=None),
        color=_by_run(alt.Color, *_colours(runs)),
    )
    return _specification(placed.properties(width="container", height=TALL))


def _colours(runs: int) -> tuple[list[str], list[str]]:
    """Runs, and the colour of each."""
    return [str(run) for run in range(runs)], [f"var(--run-{run % COLOURS})" for run in range(runs)]


def _altair() -> Any:
    try:
        import altair
    except ImportError as error:
        raise UsageError("the page needs Vega-Altair and vl-convert. Install ttrl-pop[report].") from error
    return altair


def _specification(drawn: Any) -> dict[str, Any]:
    """A chart in the looks of the page."""
    alt = _altair()
    specification: dict[str, Any] = drawn.configure(
        background="transparent",
        font="inherit",
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor="var(--soft)",
            labelFontSize=11,
            gridColor="var(--line)",
            domainColor="var(--line)",
            tickColor="var(--line)",
        ),
        aria=False,
    ).to_dict()
    return specification


def _by_run(channel: Any, ids: list[str], values: list[Any]) -> Any:
    """An encoding that tells runs apart, without a legend: page.js has one for all charts."""
    return channel("run:N", scale=_altair().Scale(domain=ids, range=values), legend=None)
