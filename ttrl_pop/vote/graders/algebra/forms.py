"""What an answer can be: an expression, a tuple, a list, a set, a union, a matrix, a relation."""

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import mpmath
import sympy

DIGITS = 50
"""Digits to which values of expressions are computed."""

POINTS = 4
"""Places at which an expression with symbols is evaluated; half of them have positive coordinates only."""

MIRRORED = {"=": "=", "<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
"""Operator → the one that says the same with its sides swapped."""


@dataclass(frozen=True)
class Leaf:
    """An expression without shape. `key` is its canonical key; the rest is None where it was not understood."""

    key: str
    number: Fraction | None = None
    expression: sympy.Basic | None = None
    values: tuple[mpmath.mpc, ...] | None = None
    """Values at the points, `DIGITS` digits each."""
    unit: str = ""
    """Where it stands in a list of several units."""
    calls: tuple[tuple[str, "Leaf"], ...] = ()
    """Letters that may be functions here and not factors, each with its argument."""


@dataclass(frozen=True)
class Row:
    """A tuple or an interval: elements in order between an opening and a closing bracket."""

    opener: str
    closer: str
    elements: tuple["Form", ...]


@dataclass(frozen=True)
class Bag:
    """Elements without order: `listed` keeps repeated ones, a set does not."""

    elements: tuple["Form", ...]
    listed: bool


@dataclass(frozen=True)
class Union:
    r"""Parts joined by `\cup`, without order."""

    parts: tuple["Form", ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; a vector is a matrix of one row or one column."""

    rows: tuple[tuple["Form", ...], ...]


@dataclass(frozen=True)
class Relation:
    """`operators[i]` stands between `sides[i]` and `sides[i + 1]`; a `label` is a symbol that gets a value."""

    operators: tuple[str, ...]
    sides: tuple["Form", ...]
    label: str | None = None


Form: TypeAlias = Leaf | Row | Bag | Union | Matrix | Relation
