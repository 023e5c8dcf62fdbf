r"""Whether two forms are equal, part by part.

    equal(read("x+1"), read("1+x"))        True

Two expressions are equal if math-verify says so both ways and 50 digits at fixed rational points do not refute it:
math-verify alone would hold `\frac{1}{100!}` and `\frac{1}{101!}` equal. Rational numbers are compared exactly.
Equations and inequalities are equal if their left minus right sides are multiples of each other.

Simplifications:

1. A list without brackets is unordered unless a word stands in it, so `1,-2` is `-2,1` and `\{1,-2\}`; brackets of
   tuples and intervals must agree.
2. Where labels come again (`x=1, y=2, x=3, y=4`) those up to the first repetition belong together, and so on.
3. A letter that may be a function is a factor with equal arguments only: `F(2x)/2` is not `F(3x)/3`, nor `f(x)g(y)`
   `f(y)g(x)`. One that is called in one answer alone is a factor: `P(1+r)` is `P+Pr`.
4. Equality is not transitive: `1,2` and `1,2,2` are both `\{1,2\}`, and differ from each other.
"""

import logging
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeAlias, TypeVar

import mpmath
import sympy
from math_verify import verify

from ttrl_pop.vote.graders.algebra.forms import DIGITS, MIRRORED, Bag, Form, Leaf, Matrix, Relation, Row, Union

AGREE = 40
"""Leading digits in which the values of equal expressions agree."""

# It warns at each call that it keeps no time of its own.
logging.getLogger("math_verify").setLevel(logging.ERROR)

T = TypeVar("T")
Calls: TypeAlias = tuple[tuple[str, Leaf], ...]
"""Letters that may be functions, each with its argument."""

_SYMPY_RELATIONS = {"=": sympy.Eq, "<": sympy.Lt, ">": sympy.Gt, "<=": sympy.Le, ">=": sympy.Ge, "!=": sympy.Ne}


def equal(a: Form, b: Form) -> bool:
    """Whether two forms are equal; symmetric."""
    if isinstance(a, Relation) and not isinstance(b, Relation):
        return equal(b, a)
    if isinstance(b, Relation):
        return _equal_relations(a, b) if isinstance(a, Relation) else b.label is not None and equal(a, b.sides[-1])
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        return _equal_leaves(a, b)
    if isinstance(a, Row) and isinstance(b, Row):
        return (a.opener, a.closer) == (b.opener, b.closer) and _all_equal(a.elements, b.elements)
    if isinstance(a, Bag) and isinstance(b, Bag):
        return _equal_bags(a, b)
    if isinstance(a, Union) and isinstance(b, Union):
        return _matched(a.parts, b.parts, equal)
    if isinstance(a, Matrix) and isinstance(b, Matrix):
        return len(a.rows) == len(b.rows) and all(map(_all_equal, a.rows, b.rows))
    return False


def _all_equal(a: Sequence[Form], b: Sequence[Form]) -> bool:
    """Whether the forms are equal one by one, in order."""
    return len(a) == len(b) and all(map(equal, a, b))


def _matched(a: Sequence[T], b: Sequence[T], same: Callable[[T, T], bool]) -> bool:
    """Whether each element finds a partner of its own; equality is transitive enough for the first to do."""
    left = list(b)
    for form in a:
        partner = next((i for i, other in enumerate(left) if same(form, other)), None)
        if partner is None:
            return False
        del left[partner]
    return not left


def _equal_bags(a: Bag, b: Bag) -> bool:
    """Two lists hold equal elements equally often; a set holds what the other holds, however often."""
    several = any(len({*map(_label, bag.elements)} - {None}) > 1 for bag in (a, b))

    def same(x: Form, y: Form) -> bool:
        return (not several or _label(x) == _label(y)) and equal(x, y)

    groups_a, groups_b = _groups(a), _groups(b)
    if groups_a or groups_b:
        return _matched(groups_a, groups_b, lambda x, y: _matched(x, y, same))
    if a.listed and b.listed and any(map(_is_word, (*a.elements, *b.elements))):
        return _all_equal(a.elements, b.elements)
    if a.listed and b.listed:
        return _matched(a.elements, b.elements, same)
    return all(any(same(x, y) for y in b.elements) for x in a.elements) and all(
        any(same(x, y) for x in a.elements) for y in b.elements
    )


def _label(form: Form) -> str | None:
    return form.label if isinstance(form, Relation) else None


def _groups(bag: Bag) -> list[list[Form]]:
    """Elements that belong together, where each group has the same labels; none where labels do not come again so."""
    groups: list[list[Form]] = [[]]
    for form in bag.elements:
        if _label(form) in map(_label, groups[-1]):
            groups.append([])
        groups[-1].append(form)
    labels = [{*map(_label, group)} for group in groups]
    return groups if len(groups) > 1 and len(labels[0]) > 1 and labels.count(labels[0]) == len(labels) else []


def _is_word(form: Form) -> bool:
    """Whether a form is a word, a code or another text that is not computed, whose place in a list may count."""
    return isinstance(form, Leaf) and (form.values is None or (len(form.key) == 1 and form.key.isupper()))


def _equal_leaves(a: Leaf, b: Leaf) -> bool:
    """Whether two expressions are equal, by the cheapest test that decides."""
    if a.unit != b.unit:
        return False
    if a.key == b.key:
        return bool(a.key)
    if a.number is not None and b.number is not None:
        return a.number == b.number
    if a.values is None or b.values is None or not all(map(_close, a.values, b.values)):
        return False
    if not _same_calls(a.calls, b.calls):
        return False
    return _verified(a.expression, b.expression)


def _same_calls(a: Calls, b: Calls) -> bool:
    """Whether what may be a function has the same arguments in two expressions."""
    return all(
        any(letter == other and _equal_leaves(x, y) for other, y in there)
        for here, there in ((a, b), (b, a))
        for letter, x in here
        if any(letter == other for other, _ in there)
    )


def _equal_relations(a: Relation, b: Relation) -> bool:
    """Labelled answers by the answer, chains side by side, the rest by the difference of their sides, as are answers
    that are solved for different letters."""
    if a.label is not None and b.label is not None and (a.label == b.label or equal(a.sides[-1], b.sides[-1])):
        return equal(a.sides[-1], b.sides[-1])
    if len(a.operators) > 1 or len(b.operators) > 1:
        backwards = tuple(MIRRORED[operator] for operator in b.operators[::-1])
        return (a.operators == b.operators and _all_equal(a.sides, b.sides)) or (
            a.operators == backwards and _all_equal(a.sides, b.sides[::-1])
        )
    same_way = a.operators == b.operators
    if not same_way and a.operators[0] != MIRRORED[b.operators[0]]:
        return False
    if not _same_calls(_calls(a), _calls(b)):
        return False
    difference_a, difference_b = _difference(a), _difference(b)
    if difference_a is None or difference_b is None:
        return _all_equal(a.sides, b.sides if same_way else b.sides[::-1])
    ratio = _ratio(difference_a, difference_b)
    if ratio is None or (a.operators[0] not in ("=", "!=") and (ratio.imag != 0 or (ratio.real > 0) != same_way)):
        return False
    factor = _rational(ratio)
    if factor is None:
        return _verified(_sympy_relation(a), _sympy_relation(b))
    return _verified(_sympy_difference(a), factor * _sympy_difference(b))


def _calls(relation: Relation) -> Calls:
    return tuple(call for side in relation.sides if isinstance(side, Leaf) for call in side.calls)


def _difference(relation: Relation) -> tuple[mpmath.mpc, ...] | None:
    """Left side minus right side at the points."""
    left, right = relation.sides
    if not (isinstance(left, Leaf) and isinstance(right, Leaf)) or left.values is None or right.values is None:
        return None
    with mpmath.workdps(DIGITS):
        return tuple(x - y for x, y in zip(left.values, right.values, strict=True))


def _ratio(a: tuple[mpmath.mpc, ...], b: tuple[mpmath.mpc, ...]) -> mpmath.mpc | None:
    """The constant by which a is a multiple of b, or None."""
    with mpmath.workdps(DIGITS):
        if any(value == 0 for value in (*a, *b)):
            return None
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        return ratios[0] if all(_close(ratio, ratios[0]) for ratio in ratios) else None


def _rational(ratio: mpmath.mpc) -> sympy.Rational | None:
    """The fraction that a ratio is to `AGREE` digits; None where it is none of small denominator."""
    with mpmath.workdps(DIGITS):
        near = Fraction(str(ratio.real)).limit_denominator(10**6)
        value = mpmath.mpc(mpmath.mpf(near.numerator) / near.denominator)
        return sympy.Rational(near.numerator, near.denominator) if _close(ratio, value) else None


def _sympy_sides(relation: Relation) -> tuple[sympy.Expr, sympy.Expr]:
    left, right = (side.expression for side in relation.sides if isinstance(side, Leaf))
    return left, right


def _sympy_difference(relation: Relation) -> sympy.Expr:
    left, right = _sympy_sides(relation)
    return left - right


def _sympy_relation(relation: Relation) -> sympy.Basic:
    return _SYMPY_RELATIONS[relation.operators[0]](*_sympy_sides(relation), evaluate=False)


def _close(a: mpmath.mpc, b: mpmath.mpc) -> bool:
    """Equal to `AGREE` digits; relative, so that two tiny numbers differ as large ones do."""
    with mpmath.workdps(DIGITS):
        return bool(abs(a - b) <= mpmath.mpf(10) ** -AGREE * max(abs(a), abs(b)))


def _verified(a: sympy.Basic | None, b: sympy.Basic | None) -> bool:
    """Whether math-verify holds two expressions equal both ways."""
    # No time-out of its own: it works by SIGALRM, and a process around this one has a better clock.
    return bool(verify(a, b, timeout_seconds=None)) and bool(verify(b, a, timeout_seconds=None))
