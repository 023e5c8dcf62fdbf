r"""An expression without shape, read from its text: its key, its number, its values.

    leaf(r"\sqrt{12}")     2√3, to 50 digits          leaf("f(2)")     its key alone

Nothing is passed to a parser that evaluates Python.

Simplifications:

1. Symbols are real, `i` is the imaginary unit, an upper-case letter is not the lower-case one.
2. What may mean two things is not parsed and equals only its own spelling: `1/2x`, `f(2)`, a prime, two `\pm`, degrees
   inside a function, more than two letters in a row, a Roman numeral (`ix`), `^T` on a letter, a bar that closes
   nothing.
3. A letter before a bracket multiplies it, and may call a function as well (`calls_in`).
"""

import hashlib
import re
from fractions import Fraction
from functools import lru_cache

import mpmath
import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from ttrl_pop.vote.graders.algebra.forms import DIGITS, POINTS, Leaf
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.graders.quantities import quantity
from ttrl_pop.vote.graders.spelling import TEXT_COMMAND, unwrapped
from ttrl_pop.vote.graders.units import unit_of

_KEY = ExactGrader().key
_CONVERSION = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
FUNCTIONS = "fghFGTPE"
"""Letters that are called as functions, though they may be variables."""

_CALL = re.compile(r"\\[a-zA-Z]+|([a-zA-Z])(?:\s*\^\s*\{[^{}]*\})?\s*\(")
_BEFORE_UNIT = re.compile(r"\s|\\text|\\mathrm|\\mbox|%|\^\s*(?:\{\s*)?\\circ")
# `2.5(3)` is a product.
_REPEATING = re.compile(
    r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\s*(?:\{([0-9]+)\}|([0-9]))"
    r"|(?:([0-9]+)\.|(0)\.([0-9]+))\(([0-9]+)\)"
)
_ODD_ROOT = re.compile(r"\\sqrt\s*\[\s*([0-9]*[13579])\s*\]\s*\{\s*-\s*([0-9.]+|\\frac\{[0-9]+\}\{[0-9]+\})\s*\}")

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
def leaf(text: str, is_score: bool = True) -> Leaf:
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
        whole, fixed, period, digit, before, zero, behind, inside = repeating.groups(default="")
        number = _repeating(whole or before or zero, fixed or behind, period or digit or inside)
    if number is None:
        parsed = _parse(_for_parser(text, is_score))
        if parsed is None:
            return Leaf(key)
        expression, number = parsed
        if number is None:
            values = _values(expression)
            return Leaf(key, None, expression, values, calls=calls_in(text)) if values else Leaf(key)
    expression = sympy.Rational(number.numerator, number.denominator)
    with mpmath.workdps(DIGITS):
        value = mpmath.mpc(mpmath.mpf(number.numerator) / number.denominator)
    return Leaf(key, number, expression, (value,) * POINTS)


def calls_in(text: str, functions: str = FUNCTIONS) -> tuple[tuple[str, Leaf], ...]:
    """Letters before brackets that may be functions, each with its argument.

    In `h(2-h)` and `h(x+1)(x+2)` they are factors.
    """
    text = unwrapped(text)
    found = []
    for call in _CALL.finditer(text):
        if call[1] is None or call[1] not in functions:
            continue
        end, depth = call.end(), 1
        while depth and end < len(text):
            depth += (text[end] == "(") - (text[end] == ")")
            end += 1
        argument = text[call.end() : end - 1]
        if call[1] not in argument and not text[end:].lstrip().startswith("("):
            found.append((call[0].replace(" ", ""), leaf(argument)))
    return tuple(found)


def unit_beside(text: str) -> str:
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
    # The real root, not the first one of the complex plane.
    text = _ODD_ROOT.sub(r"(-\\sqrt[\1]{\2})", text)
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
