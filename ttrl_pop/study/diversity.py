"""How diverse the texts of a run are, and what diversity two ways of spreading them reach at equal coherence.

For the n answers to one problem:

    distance     mean of 1 − cosine of their embeddings, over pairs
    distinct-k   different k-grams of words / all of them (Li et al. 2016, arXiv 1510.03055), over all answers together
    coherence    mean of log p per token under the base model at temperature 1

More noise of any kind makes texts more distant and less likely. A curve is a set of arms by how much of it they have;
two curves are compared at a coherence c that both reach. With the arms i and j of a curve around c, of mean coherence
C_i ≥ c ≥ C_j at a seed, and w = (c − C_j) / (C_i − C_j), the distance at c is w·D_i + (1 − w)·D_j. Problem p's part is

    w·d_ip + (1 − w)·d_jp − slope · (w·c_ip + (1 − w)·c_jp − c),      slope = (D_i − D_j) / (C_i − C_j)

whose mean over problems is that distance and whose spread is, to first order, that of the interpolation: what is
uncertain of the coherence counts in the interval, too.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from ttrl_pop.errors import DamagedError
from ttrl_pop.report.estimators import crossed_interval
from ttrl_pop.store import files, identity
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.study.figures import Figures

Row = Mapping[str, Any]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Floats = NDArray[np.float64]
Results = Mapping[str, Sequence[Figures]]
"""Arm → the figures of each seed."""

LONGEST_GRAM = 3
COMPARED = ("distance", "distinct-2")
"""Figures that curves are compared by."""

SHARES = (0.25, 0.5, 0.75)
"""Where in the range of coherence that two curves have in common they are compared, from its low end."""


class _TextRow(BaseModel):
    """What is read of a row of `RunDirectory.texts`."""

    id: str
    text: str
    coherence: Finite | None
    embedding: Annotated[list[Finite], Field(min_length=1)]


_ROWS = TypeAdapter(list[_TextRow])


def texts_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Rows of the texts of a run's final answers.

    Raises:
        DamagedError: they are not as the run wrote them.
    """
    identity.check(run, identity.load(run), run.texts.name)
    try:
        rows = [row.model_dump() for row in _ROWS.validate_python(list(files.read_lines(run.texts)))]
    except ValidationError as error:
        raise DamagedError(run.texts, error.errors(include_url=False)[0]["msg"]) from None
    if len({len(row["embedding"]) for row in rows}) > 1:
        raise DamagedError(run.texts, "holds embeddings of several lengths")
    return rows


def with_texts(figures: Figures, rows: Iterable[Row]) -> Figures:
    """A run's figures with those of its texts in place of those of votes, which open questions have not."""
    return replace(figures, per_problem=diversity(rows))


def diversity(rows: Iterable[Row]) -> dict[str, dict[str, float | None]]:
    """Problem → its figures, of rows as `ttrl_pop.study.texts.text_rows` yields them."""
    answers: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        answers[row["id"]].append(row)
    return {problem: _figures(own) for problem, own in answers.items()}


def _figures(rows: Sequence[Row]) -> dict[str, float | None]:
    known = [row["coherence"] for row in rows if row["coherence"] is not None]
    texts = [row["text"] for row in rows]
    return {
        "distance": mean_distance(np.array([row["embedding"] for row in rows], dtype=np.float64)),
        **{f"distinct-{size}": distinct(texts, size) for size in range(1, LONGEST_GRAM + 1)},
        "coherence": float(np.mean(known)) if known else None,
    }


def mean_distance(vectors_GD: Floats) -> float | None:
    """Mean of 1 − cosine over pairs; None for fewer than two vectors."""
    count = len(vectors_GD)
    if count < 2:
        return None
    unit = vectors_GD / np.linalg.norm(vectors_GD, axis=1, keepdims=True)
    # All pairs at once: |Σ u|² holds each twice, and every vector with itself.
    return float(1 - (np.square(unit.sum(0)).sum() - count) / (count * (count - 1)))


def distinct(texts: Sequence[str], size: int) -> float | None:
    """Share of different ones among all `size`-grams of words; None where there is none."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.lower().split()
        grams.update(tuple(words[start : start + size]) for start in range(len(words) - size + 1))
    return len(grams) / grams.total() if grams else None


def equal_coherence(study: str, curves: Mapping[str, Sequence[str]], results: Results) -> Iterator[dict[str, Any]]:
    """Yield, for each two curves, a row at each of some coherences that both reach at all seeds: the figures of the
    later one less those of the earlier one. None where they have no coherence in common.
    """
    for (first, reference), (name, arms) in combinations(curves.items(), 2):
        for coherence in common(reference, arms, results):
            values: dict[str, float] = {}
            intervals: dict[str, list[float]] = {}
            for figure in COMPARED:
                own, other = (interpolated(curve, figure, coherence, results) for curve in (arms, reference))
                known = ~np.isnan(own - other).any(0)
                if not known.any():
                    continue
                values[figure] = float(np.mean((own - other)[:, known]))
                if (found := crossed_interval((own - other)[:, known])) is not None:
                    values[figure], *intervals[figure] = found
                values[f"{figure} of {first}"] = float(np.mean(other[:, known]))
            yield {
                "study": study,
                "kind": "equal coherence",
                "arm": name,
                "to": first,
                "coherence": coherence,
                **values,
                "intervals": intervals,
            }


def common(one: Sequence[str], other: Sequence[str], results: Results) -> list[float]:
    """Coherences inside of what both curves reach at every seed; none where that is nothing."""
    if not (problems := _problems(results)):
        return []
    lows, highs = [], []
    for arms in (one, other):
        for runs in zip(*(results[arm] for arm in arms), strict=True):
            means = [float(np.mean(_column(run, "coherence", problems))) for run in runs]
            lows.append(min(means))
            highs.append(max(means))
    low, high = max(lows), min(highs)
    return [low + share * (high - low) for share in SHARES] if low < high else []


def interpolated(arms: Sequence[str], figure: str, coherence: float, results: Results) -> Floats:
    """A figure of a curve at this coherence, [seeds, problems]: parts whose mean is the interpolated figure; NaN where
    a problem has no such figure."""
    problems = _problems(results)
    found = []
    for runs in zip(*(results[arm] for arm in arms), strict=True):
        points = [(_column(run, "coherence", problems), _column(run, figure, problems)) for run in runs]
        points.sort(key=lambda point: float(np.mean(point[0])))
        above = next((i for i, (c, _) in enumerate(points) if np.mean(c) >= coherence), len(points) - 1)
        (c_low, d_low), (c_high, d_high) = points[max(0, above - 1)], points[max(1, above)]
        width = float(np.mean(c_high) - np.mean(c_low))
        weight = (coherence - float(np.mean(c_low))) / width if width else 1.0
        rise = (d_high - d_low)[~np.isnan(d_high - d_low)]
        slope = float(np.mean(rise)) / width if width and rise.size else 0.0
        mixed = weight * d_high + (1 - weight) * d_low
        found.append(mixed - slope * (weight * c_high + (1 - weight) * c_low - coherence))
    return np.array(found)


def projected(rows: Mapping[str, Sequence[Row]], most: int) -> dict[str, list[list[float]]]:
    """Arm → places of its texts on the two first principal components of all of them, the mean of the answers to its
    problem taken off each: what differs between answers, and not between questions.

    Args:
        most: texts of an arm, at most.
    """
    chosen = {arm: list(own)[:most] for arm, own in rows.items()}
    every = [row for own in chosen.values() for row in own]
    if len(every) < 2:
        return {arm: [[0.0, 0.0] for _ in own] for arm, own in chosen.items()}
    vectors = np.array([row["embedding"] for row in every], dtype=np.float64)
    ids = np.array([row["id"] for row in every])
    for problem in dict.fromkeys(ids.tolist()):
        vectors[ids == problem] -= vectors[ids == problem].mean(0)
    _, _, axes = np.linalg.svd(vectors, full_matrices=False)
    # An axis and its opposite are the same to the decomposition: the largest part of each is made positive.
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    places = iter((vectors @ (axes * signs[:, None])[:2].T).round(4).tolist())
    return {arm: [next(places) for _ in own] for arm, own in chosen.items()}


def _problems(results: Results) -> list[str]:
    """Problems of which distance and coherence are known in every run."""
    runs = [run for own in results.values() for run in own]
    needed = ("distance", "coherence")
    return [
        p for p in runs[0].per_problem if all(run.per_problem[p].get(f) is not None for run in runs for f in needed)
    ]


def _column(run: Figures, figure: str, problems: Sequence[str]) -> Floats:
    return np.array([run.per_problem[problem][figure] for problem in problems], dtype=np.float64)
