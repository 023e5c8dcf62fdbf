r"""The form of an answer, read from its text.

    read("x+1")        Leaf          read("x<3")          Row: the interval from -\infty to 3
    read("(1,2)")      Row           read(r"\{1,2\}")     Bag, as is the list "1,2"

The outer shape (lists, sets, tuples, intervals, unions, matrices, relations) is read here, because LaTeX parsers guess
at it: to them `(1,2)` is an interval, a tuple and a set. Only its innermost parts go to latex2sympy, one expression
each. Nothing is passed to a parser that evaluates Python.

Simplifications:

1. `x=` before an answer is a label, as for the exact grader, except where a list carries several labels.
2. Symbols are real, `i` is the imaginary unit, an upper-case letter is not the lower-case one.
3. What may mean two things is not parsed and equals only its own spelling: `1/2x`, `f(2)`, a prime, two `\pm`, degrees
   inside a function, more than two letters in a row, a Roman numeral (`ix`), `^T` on a letter, a bar that closes
   nothing.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import mpmath
import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from ttrl_pop.vote.graders.algebra.forms import DIGITS, MIRRORED, POINTS, Bag, Form, Leaf, Matrix, Relation, Row, Union
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.graders.labels import label_of
from ttrl_pop.vote.graders.quantities import quantity, tell_apart
from ttrl_pop.vote.graders.spelling import TEXT_COMMAND, clean, unwrapped
from ttrl_pop.vote.graders.units import unit_of

_KEY = ExactGrader().key
_CONVERSION = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
_OPENING = {"(", "[", "{", r"\{"}
_CLOSING = {")", "]", "}", r"\}"}
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
_OR = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|[或和]")
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
_BEFORE_UNIT = re.compile(r"\s|\\text|\\mathrm|\\mbox|%|\^\s*(?:\{\s*)?\\circ")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\overline\s*\{([0-9]+)\}")

_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp"
_FUNCTION = re.compile(_FUNCTIONS)
_NAMED = re.compile(rf"(?<![a-zA-Z\\])({_FUNCTIONS}|pi|infty)(?![a-zA-Z])")

_COMMANDS = frozenset(
    f"""frac sqrt binom cdot times pi lfloor rfloor lceil rceil
    alpha beta delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega
    Delta Theta Lambda Sigma Phi Psi Omega {_FUNCTIONS.replace("|", " ")}""".split()
)
_COMMAND = re.compile(r"\\([a-zA-Z]+)")

_OPAQUE = re.compile(
    r"""[a-zA-Z]{3} | I | [A-Z]\s*[A-Z] | [a-zA-Z]\s*[0-9] | (?<=[0-9a-zA-Z)}~])\s+[a-z]{2}\s+(?=[0-9a-zA-Z({~])
    | \([0-9]+\)\s*[0-9] | [0-9]\s*/\s*[0-9.]+\s*/ | [^-\w\s+*/^(){}\[\]|!.~] | [0-9]\s+[0-9.]
    | \}\s*[0-9] | \}\s*\([0-9.\s]*\) | /\s*(?:[0-9.]+|[a-zA-Z]|~(?:\{[^{}]*\}){1,2})\s*[a-zA-Z~(]
    | \|\s*_ | !\s*! | [0-9]\}?\s*_ | \^\s*\{[^{}]*\}\s*\^ | \^\s*\w\s*\^ | \.(?![0-9]) | \.[0-9]+\.""",
    re.VERBOSE,
)

_RIGHT = re.compile(r"\\r(?:floor|ceil)(?![a-zA-Z])")
_TRANSPOSED = re.compile(r"\^\s*(?:T|\\top|\{\s*(?:T|\\top)\s*\})(?![a-zA-Z])|\^\s*T(?=[A-Z])")
# A number, `e`, or a bracket that names no matrix.
_POWER_OF_T = re.compile(r"([0-9]|(?<![a-zA-Z\\])e|\((?:[^()A-Z]|\([^()A-Z]*\))*\))\s*\^T")

_LISTED = re.compile(
    r"[-+]?[0-9.,/]+(?:\s*-\s*[0-9.,/]+)+|[A-Z][a-z]|[a-z][A-Z]|[a-zA-Z]+(?:\s+[a-zA-Z]+)+|[0-9]+\s*[ap]m"
    r"|[A-Z](?:\s*-\s*[A-Z])+|[A-Z][0-9]*(?:\s*-\s*[A-Z0-9]+){2,}"
    r"|ii|iv|vi|ix|xi"
    r"|(?:am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|ok|on|or|so|to|up|us|we)"
)
"""What is not computed though it could be: dates, spans, scores (`3-2`), codes (`He`, `A-B`), Roman numerals, words
side by side."""
_WORDS = re.compile(rf"{TEXT_COMMAND}(?!\s*(?:{_FUNCTIONS})\s*\}})[^{{}}]*[a-zA-Z]{{2}}")


@lru_cache(maxsize=4096)
def read(answer: str) -> Form:
    """The form of an answer; never an error: what is not understood is a `Leaf` that only has its key."""
    text = clean(answer)
    text = _TRANSPOSED.sub("^T", _OR.sub(",", text))
    text = _GROUPED.sub(lambda number: number[0].replace(",", ""), text) if not set("([{") & set(text) else text
    return _read_list(re.sub(r"_\s*([A-Za-z0-9])", r"_{\1}", text))


def _read_list(text: str) -> Form:
    """The form of a text that may be a list without brackets."""
    text = text.strip().strip(",").strip()
    pieces = [piece for piece in _split(text, {","}) if piece.strip()]
    if len(pieces) < 2 or quantity(text) is not None:
        return _read_item(text)
    return Bag(_elements(pieces), listed=True)


def _elements(pieces: Sequence[str]) -> tuple[Form, ...]:
    r"""Forms of the pieces, with units that tell them apart; what `\pm` makes of one piece stands beside the others."""
    units = [_unit(piece) for piece in pieces]
    differ = tell_apart(units)
    forms: list[Form] = []
    for piece, unit in zip(pieces, units, strict=True):
        form = _read_item(piece)
        if differ and isinstance(form, Leaf):
            form = replace(form, unit=unit)
        forms.extend(form.elements if isinstance(form, Bag) and form.listed else [form])
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
            return Relation(("=",), (_read_item(pieces[0]), _read_item(pieces[-1])), label)
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
    return Row(opener, closer, _elements(pieces))


def _read_expression(text: str) -> Form:
    r"""The form of a text without shape; one `\pm` makes a list of two."""
    signs = _PLUS_MINUS.findall(text)
    if len(signs) == 1 and r"\mp" not in text:
        both = (_PLUS_MINUS.sub(sign, text).strip().removeprefix("+") for sign in "+-")
        return Bag(tuple(_leaf(branch, is_score=False) for branch in both), listed=True)
    return _leaf(text)


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


@lru_cache(maxsize=4096)
def _leaf(text: str, is_score: bool = True) -> Leaf:
    """An expression with as much as is understood of it: its key, its number, its values.

    Args:
        is_score: `3-2` stands for itself, as for the exact grader; no difference.
    """
    key = _KEY(text)
    measured = quantity(text)
    if measured is None:
        text, _ = _without_unit(text)
        measured = quantity(text)
    number = measured[0] if measured else None
    if number is None and (repeating := _REPEATING.fullmatch(text)):
        number = _repeating(*repeating.groups())
    if number is None:
        parsed = _parse(_for_parser(text, is_score))
        if parsed is None:
            return Leaf(key)
        expression, number = parsed
        if number is None:
            values = _values(expression)
            return Leaf(key, None, expression, values) if values else Leaf(key)
    expression = sympy.Rational(number.numerator, number.denominator)
    with mpmath.workdps(DIGITS):
        value = mpmath.mpc(mpmath.mpf(number.numerator) / number.denominator)
    return Leaf(key, number, expression, (value,) * POINTS)


def _unit(text: str) -> str:
    """The unit of one element of a list, or ""."""
    measured = quantity(text)
    return measured[1] if measured else _without_unit(text)[1]


def _without_unit(text: str) -> tuple[str, str]:
    r"""`2\pi \text{ cm}` without its unit, and the unit; a function's argument keeps its degrees."""
    text = text.strip()
    if not _FUNCTION.search(text):
        starts = [mark.start() for mark in _BEFORE_UNIT.finditer(text, max(map(text.rfind, "()=+")) + 1)]
        for start in starts:
            if unit := unit_of(text[start:], behind_formula=True):
                # What stands behind a unit that it does not go with is a direction, or a substance.
                is_apart = any(unit_of(text[first:start], behind_formula=True) for first in starts if first < start)
                return (text, "") if is_apart else (text[:start].strip(), unit)
    return text, ""


def _repeating(whole: str, fixed: str, period: str) -> Fraction:
    r"""The number `whole.fixed\overline{period}`."""
    shift = 10 ** len(fixed)
    return Fraction(int(whole + fixed or 0), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))


def _for_parser(text: str, is_score: bool) -> str | None:
    """The text in a spelling at which latex2sympy need not guess (to it `2(3)` is a sum), or None."""
    if _WORDS.search(text):
        return None
    text = unwrapped(text)
    if is_score and _LISTED.fullmatch(text.strip()):
        return None
    text = text.replace("**", "^")
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s*([0-9]+)", r"\\sqrt{\1}", text)
    text = _NAMED.sub(r"\\\1 ", text)
    text = re.sub(r"(\\log\s*_\{[^{}]*\})\s*([0-9]+|[a-zA-Z])", r"\1{\2}", text)
    # In brackets it is a power to the parser, and bare the sign of a transposed matrix.
    text = _POWER_OF_T.sub(r"\1^{(T)}", text)
    if not _COMMANDS.issuperset(_COMMAND.findall(text)) or _OPAQUE.search(_COMMAND.sub("~", _RIGHT.sub(")", text))):
        return None
    if "^T" in text or text.count("|") % 2:
        return None
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"\^\s*(-?[0-9]+|[a-zA-Z])", r"^{\1}", text)
    text = re.sub(r"([0-9]*)\.([0-9]+)", lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)
    text = re.sub(r"(?<![0-9a-zA-Z}])([0-9]+)\s*(\\frac\{[0-9]+\}\{[0-9]+\})", r"(\1+\2)", text)
    return re.sub(r"(?<=[0-9)])\s*(?=\()|(?<=\))\s*(?=[0-9])", r"\\cdot ", text)


def _parse(text: str | None) -> tuple[sympy.Basic, Fraction | None] | None:
    """The expression, and its value where that is rational; None where a library gives up."""
    if text is None:
        return None
    try:
        parsed = latex2sympy(
            text, is_real=True, convert_degrees=False, normalization_config=None, conversion_config=_CONVERSION
        )
        expression = parsed.xreplace({sympy.Symbol("i", real=True): sympy.I})
        if not isinstance(expression, sympy.Expr):
            return None
        value = expression.doit() if not expression.free_symbols else expression
    except Exception:  # latex2sympy raises bare Exception for a syntax error, sympy whatever it meets
        return None
    return expression, Fraction(int(value.p), int(value.q)) if isinstance(value, sympy.Rational) else None


def _values(expression: sympy.Expr) -> tuple[mpmath.mpc, ...] | None:
    """Values of an expression at the points; None where one of them is no finite number."""
    symbols = expression.free_symbols
    found = []
    for index in range(POINTS if symbols else 1):
        at = {symbol: _coordinate(str(symbol), index) for symbol in symbols}
        try:
            real, imaginary = expression.evalf(DIGITS, subs=at).as_real_imag()
        except Exception:  # as above
            return None
        if not (isinstance(real, sympy.Number) and isinstance(imaginary, sympy.Number)):
            return None
        if not (real.is_finite and imaginary.is_finite):
            return None
        with mpmath.workdps(DIGITS):
            found.append(mpmath.mpc(_mpf(real), _mpf(imaginary)))
    return tuple(found) if symbols else (found[0],) * POINTS


def _coordinate(name: str, index: int) -> sympy.Rational:
    """A rational number that depends on the symbol's name and the point alone."""
    digest = hashlib.sha256(f"{index}:{name}".encode()).digest()
    value = sympy.Rational(101 + digest[0] * 7, 211 + digest[1])
    return -value if index >= POINTS // 2 and digest[2] % 2 else value


def _mpf(number: sympy.Number) -> mpmath.mpf:
    """A number of sympy's as one of mpmath's."""
    # A precision of 1 is how sympy says that not one digit is certain: it is zero as far as anyone can tell.
    return mpmath.mpf(0 if getattr(number, "_prec", DIGITS) == 1 else number._to_mpmath(mpmath.mp.prec))
