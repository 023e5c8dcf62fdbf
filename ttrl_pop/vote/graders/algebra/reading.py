r"""The form of an answer, read from its text.

    read("x+1")        Leaf          read("x<3")          Row: the interval from -\infty to 3
    read("(1,2)")      Row           read(r"\{1,2\}")     Bag, as is the list "1,2"

The outer shape (lists, sets, tuples, intervals, unions, matrices, relations) is read here, because LaTeX parsers guess
at it: to them `(1,2)` is an interval, a tuple and a set. Only its innermost parts go to latex2sympy, one expression
each (`expressions`).

Simplifications:

1. `x=` before an answer is a label, as for the exact grader, except where a list carries several labels.
2. `and` and `or` separate as a comma does, but not in round or square brackets, whose commas count places. Inequalities
   for one letter with `or` between them are a union.
3. Of inner parts: see `expressions`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from ttrl_pop.vote.graders.algebra.expressions import FUNCTIONS, calls_in, leaf, unit_beside
from ttrl_pop.vote.graders.algebra.forms import MIRRORED, Bag, Form, Leaf, Matrix, Relation, Row, Union
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.graders.labels import label_of
from ttrl_pop.vote.graders.quantities import quantity, tell_apart
from ttrl_pop.vote.graders.spelling import clean

_KEY = ExactGrader().key
_OPENING = {"(", "[", "{", r"\{"}
_CLOSING = {")", "]", "}", r"\}"}
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
_OR = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|[或和]")
_ALTERNATIVES = re.compile(r"\\text\s*\{\s*,?\s*or\s*\}|(?<![a-zA-Z\\])or(?![a-zA-Z])|或")
_SEPARATED = re.compile(rf"(?P<word>{_OR.pattern})|(?P<opening>\\?\{{|[(\[])|(?P<closing>\\?\}}|[)\]])|=|\\[a-zA-Z]+")
_INEQUALITIES = {"<", ">", r"\le", r"\ge"}
_GROUPED = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)

_RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\in": "in",
}

_LABEL = re.compile(r"[A-Za-z](?:_\{[A-Za-z0-9]+\})?(?:\([a-z](?:,[a-z])*\))?|\\[a-zA-Z]+")
_TRANSPOSED = re.compile(r"\^\s*(?:T|\\top(?![a-zA-Z])|\{\s*(?:T|\\top)\s*\})")


@lru_cache(maxsize=4096)
def read(answer: str) -> Form:
    """The form of an answer; never an error: what is not understood is a `Leaf` that only has its key."""
    text = _TRANSPOSED.sub("^T", clean(answer))
    if union := _read_union(text):
        return union
    text = _with_commas(text)
    text = _GROUPED.sub(lambda number: number[0].replace(",", ""), text) if not set("([{") & set(text) else text
    return _read_list(re.sub(r"_\s*([A-Za-z0-9])", r"_{\1}", text))


def _read_union(text: str) -> Union | None:
    """The union that `x<1 or x>3` stands for; None where one part is no inequality for the same letter."""
    pieces = [_split(piece.strip().strip(","), _INEQUALITIES) for piece in _ALTERNATIVES.split(text)]
    if len(pieces) < 2 or any(len(sides) < 2 or "," in "".join(sides) for sides in pieces):
        return None
    named = [{side.strip() for side in sides if _LABEL.fullmatch(side.strip())} for sides in pieces]
    parts = tuple(_read_item(piece.strip().strip(",")) for piece in _ALTERNATIVES.split(text))
    is_one = len(set.union(*named)) == 1 and all(named)
    return Union(parts) if is_one and all(isinstance(part, Row) for part in parts) else None


def _with_commas(text: str) -> str:
    """The text with commas for the words that separate: `(1, 2 or 3)` keeps its one, as it is a pair."""
    opened: list[tuple[str, bool]] = []
    pieces, end = [], 0
    for mark in _SEPARATED.finditer(text):
        if mark["opening"]:
            opened.append((mark[0], False))
        elif mark["closing"] and opened:
            opened.pop()
        elif mark[0] == "=" and opened:
            opened[-1] = opened[-1][0], True
        elif mark["word"] and (not opened or opened[-1][0] not in ("(", "[") or opened[-1][1]):
            pieces += [text[end : mark.start()], ","]
            end = mark.end()
    return "".join(pieces) + text[end:]


def _read_list(text: str) -> Form:
    """The form of a text that may be a list without brackets."""
    text = text.strip().strip(",").strip()
    pieces = [piece for piece in _split(text, {","}) if piece.strip()]
    if len(pieces) < 2 or quantity(text) is not None:
        return _read_item(text)
    return Bag(_elements(pieces), listed=True)


def _elements(pieces: Sequence[str], in_places: bool = False) -> tuple[Form, ...]:
    r"""Forms of the pieces, with units that tell them apart.

    Args:
        in_places: each has a place of its own; else what `\pm` makes of one stands beside the others.
    """
    units = [unit_beside(piece) for piece in pieces]
    differ = tell_apart(units)
    forms: list[Form] = []
    for piece, unit in zip(pieces, units, strict=True):
        form = _read_item(piece)
        if differ and isinstance(form, Leaf):
            form = replace(form, unit=unit)
        forms.extend(form.elements if isinstance(form, Bag) and form.listed and not in_places else [form])
    return tuple(forms)


def _read_item(text: str) -> Form:
    """The form of one element of a list: no comma stands in it outside all brackets."""
    text = text.strip()
    operators = [_RELATIONS[token] for token, depth in _tokens(text) if depth == 0 and token in _RELATIONS]
    if operators:
        return _read_relation(text, operators)
    parts = _split(text, {r"\cup"})
    if len(parts) > 1:
        return Union(tuple(_read_item(part) for part in parts))
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in matrix[1].split(r"\\") if row.strip()]
        return Matrix(tuple(tuple(_read_item(cell) for cell in row.split("&")) for row in rows))
    return _read_bracket(text) or _read_expression(text)


def _read_relation(text: str, operators: list[str]) -> Form:
    """The form of a text with these operators: what stands behind a label, an interval, or else a relation."""
    pieces = _split(text, set(_RELATIONS))
    if "in" in operators:
        return _read_item(pieces[1]) if len(pieces) == 2 and _LABEL.fullmatch(pieces[0].strip()) else Leaf(_KEY(text))
    names = [piece.strip() if _LABEL.fullmatch(piece.strip()) else None for piece in pieces]
    if set(operators) == {"="}:
        if len(pieces) == 2 and names[0] is None and names[1] is not None:
            names, pieces = names[::-1], pieces[::-1]
        if label := names[0] or label_of(pieces[0], pieces[-1]):
            value = _read_item(pieces[-1])
            if isinstance(value, Leaf) and label[1:2] == "(":
                # Of `a(n)=2a(n/2)` the letter is a function, as others are by custom.
                value = replace(value, calls=calls_in(pieces[-1], FUNCTIONS + label[0]))
            return Relation(("=",), (_read_item(pieces[0]), value), label)
    elif interval := _read_interval(pieces, names, operators):
        return interval
    return Relation(tuple(operators), tuple(_read_item(piece) for piece in pieces))


def _read_interval(pieces: list[str], names: list[str | None], operators: list[str]) -> Row | None:
    r"""The interval that `x>2` or `1<x\le 2` stands for; None for another relation."""
    if all(operator[0] == ">" for operator in operators):
        pieces, names, operators = pieces[::-1], names[::-1], [MIRRORED[operator] for operator in operators[::-1]]
    elif not all(operator[0] == "<" for operator in operators):
        return None
    brackets = {"<": "()", "<=": "[]"}
    if len(pieces) == 3 and names[1] and not names[0] and not names[2]:
        ends = (_read_item(pieces[0]), _read_item(pieces[2]))
        return Row(brackets[operators[0]][0], brackets[operators[1]][1], ends)
    if len(pieces) == 2 and names[0] and not names[1]:
        return Row("(", brackets[operators[0]][1], (Leaf(_KEY(r"-\infty")), _read_item(pieces[1])))
    if len(pieces) == 2 and names[1] and not names[0]:
        return Row(brackets[operators[0]][0], ")", (_read_item(pieces[0]), Leaf(_KEY(r"\infty"))))
    return None


def _read_bracket(text: str) -> Form | None:
    """The form of a text that one pair of brackets encloses."""
    tokens = list(_tokens(text))
    if len(tokens) < 2 or tokens[0][0] not in _OPENING or tokens[-1][0] not in _CLOSING:
        return None
    if any(depth == 0 for _, depth in tokens[1:-1]) or tokens[-1][1] != 0:
        return None
    opener, closer = tokens[0][0], tokens[-1][0]
    inside = text[len(opener) : -len(closer)]
    pieces = _split(inside, {","})
    if (opener, closer) == ("{", "}"):
        return _read_list(inside) if len(pieces) == 1 else Bag(_elements(pieces), listed=False)
    if (opener, closer) == (r"\{", r"\}"):
        return Bag(_elements(pieces), listed=False)
    if len(pieces) == 1 and (opener, closer) == ("(", ")"):
        return _read_list(inside)
    return Row(opener, closer, _elements(pieces, in_places=True))


def _read_expression(text: str) -> Form:
    r"""The form of a text without shape; one `\pm` makes a list of two."""
    signs = _PLUS_MINUS.findall(text)
    if len(signs) == 1 and r"\mp" not in text:
        both = (_PLUS_MINUS.sub(sign, text).strip().removeprefix("+") for sign in "+-")
        return Bag(tuple(leaf(branch, is_score=False) for branch in both), listed=True)
    return leaf(text)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Tokens with the depth of the brackets around them; a bracket has the depth outside it."""
    depth = 0
    for token in _TOKEN.findall(text):
        if token in _CLOSING:
            depth -= 1
        yield token, depth
        if token in _OPENING:
            depth += 1


def _split(text: str, separators: set[str]) -> list[str]:
    """Pieces between the separators that stand outside all brackets."""
    pieces = [""]
    for token, depth in _tokens(text):
        if depth == 0 and token in separators:
            pieces.append("")
        else:
            pieces[-1] += token
    return pieces
