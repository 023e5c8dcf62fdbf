"""The forms that texts are read as."""

from fractions import Fraction

import pytest

from ttrl_pop.vote.graders.algebra.forms import Bag, Form, Leaf, Matrix, Relation, Row, Union
from ttrl_pop.vote.graders.algebra.reading import read


def outline(form: Form) -> object:
    """A form without what is computed of it: numbers, keys and brackets."""
    match form:
        case Leaf():
            return form.number if form.number is not None else form.key
        case Row():
            return (form.opener, *map(outline, form.elements), form.closer)
        case Bag():
            return ["list" if form.listed else "set", *map(outline, form.elements)]
        case Union():
            return {"union": [*map(outline, form.parts)]}
        case Matrix():
            return {"matrix": [[*map(outline, row)] for row in form.rows]}
        case Relation():
            return {"sides": [*map(outline, form.sides)], "operators": form.operators, "label": form.label}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("x+1", "x+1"),
        ("(x+1)", "x+1"),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"\frac{1}{2}+\frac{1}{2}", 1),
        ("1,234", 1234),
        ("(1,2)", ("(", 1, 2, ")")),
        ("[0,1)", ("[", 0, 1, ")")),
        ("1,-2", ["list", 1, -2]),
        (r"1 \text{ and } 2", ["list", 1, 2]),
        (r"\pm 2", ["list", 2, -2]),
        (r"3, \pm 2", ["list", 3, 2, -2]),
        (r"\{1,2,2\}", ["set", 1, 2, 2]),
        (r"(0,1) \cup [2,3]", {"union": [("(", 0, 1, ")"), ("[", 2, 3, "]")]}),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", {"matrix": [[1, 2], [3, 4]]}),
        ("1<x<2", ("(", 1, 2, ")")),
        (r"2 > x \ge 1", ("[", 1, 2, ")")),
        ("x>2", ("(", 2, r"\infty", ")")),
        (r"x \le 2", ("(", r"-\infty", 2, "]")),
        (r"x \in [0,1]", ("[", 0, 1, "]")),
        ("x=5", {"sides": ["x", 5], "operators": ("=",), "label": "x"}),
        ("5=x", {"sides": ["x", 5], "operators": ("=",), "label": "x"}),
        ("x+y=5", {"sides": ["x+y", 5], "operators": ("=",), "label": None}),
    ],
)
def test_the_shape_of_a_text(text: str, form: object) -> None:
    assert outline(read(text)) == form


@pytest.mark.parametrize("text", ["1/2x", "f(2)", "x'", r"\pm 1 \pm 2", r"\sin 30^\circ", "velocity", "1+", ""])
def test_what_may_mean_two_things_has_a_key_alone(text: str) -> None:
    form = read(text)
    assert isinstance(form, Leaf)
    assert (form.number, form.expression, form.values) == (None, None, None)
