r"""One spelling for each answer: layout goes, and of several ways to write a sign one stays (`signs`).

Simplifications:

1. `1,234` is one thousand, wherever a comma does not separate; so is `1 234`, as groups of three digits are. A decimal
   comma is read where a semicolon separates (`0,5; 1,5`) or where dots or spaces group (`1.234,50`, `1 234,50`).
2. `+/-` is `\pm` everywhere, `+-` at the beginning of a term that none stands before: `3+-5` is a sum.
3. The sign of a currency is dropped, but in a list, where it may differ from number to number.
"""

import re
import unicodedata

from ttrl_pop.vote.graders.signs import COMMANDS, MATRICES, ROOTS, UNICODE, WRAPPERS
from ttrl_pop.vote.graders.units import CURRENCY_SIGNS

TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt)|[mhf]box|boxed)\s*\{"
_TEXT_BRACES = re.compile(rf"({TEXT_COMMAND})|\\[{{}}]|[{{}}]")
_WRAPPER_BRACES = re.compile(rf"((?:{'|'.join(map(re.escape, WRAPPERS))})\s*\{{)|\\[{{}}]|[{{}}]")
_ENDS_IN_COMMAND = re.compile(r"\\[a-zA-Z]+$")
_RARE = re.compile(
    rf"\\(?:{'|'.join(name[1:] for name in WRAPPERS)}|"
    r"(?:text)?color|[hv]s(?:pace|kip)|qty|SI|si|unit|choose|over|root|prime|mathbb)"
)
"""A command for which `_plain_commands` looks closer."""

_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣʸᵏ]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉ₙₖₘₓ]+")
_ROOT = re.compile(rf"([{''.join(ROOTS)}])\s*(?:([0-9]+(?:\.[0-9]+)?|[a-zA-Z])|\(([^()]*)\))?")
_DOLLAR_OF = re.compile(r"(?<![A-Za-z])(?:US|HK|NZ|CA|AU|[ACRS])\s?(?=\\?\$\s?[0-9])")

# `\\` comes first so that the `\\[2pt]` of a matrix is not taken for a delimiter.
_COMMAND = re.compile(
    r"""(?P<nothing>\\(?:left|right)(?![a-zA-Z])\s*\. | \\!\s* | (?<=[0-9])\\,\s*(?=[0-9]{3}(?![0-9])))
    | \\\\ | (?P<negated>\\not\s*(?:=|\\in(?![a-zA-Z]))) | \\[a-zA-Z]+ | \\.""",
    re.VERBOSE,
)
_LIST = re.compile(r",(?![0-9]{3}(?![0-9]))|;|and|or")
_COLOR = re.compile(r"\\(?:text)?color(?:box)?\s*(?:\[[^\[\]{}]*\])?\s*\{[^{}]*\}|\\[hv](?:space|skip)\*?\s*\{[^{}]*\}")
_MEASURED = re.compile(r"\\(?:qty|SI)\s*(?:\[[^\[\]{}]*\])?\s*\{([^{}]*)\}\s*\{([^{}]*)\}|\\(?:unit|si)\s*\{([^{}]*)\}")
_PREFIX = re.compile(r"\\(nano|micro|milli|centi|deci|kilo|mega|giga)(?![a-zA-Z])\s*\\?")
_INFIX = re.compile(r"\{([^{}]*)\\(choose|over)(?![a-zA-Z])([^{}]*)\}|^([^{}]*)\\(choose|over)(?![a-zA-Z])([^{}]*)$")
_MATRIX = re.compile(
    rf"([(\[]\s*)?\\begin\s*\{{({'|'.join(MATRICES)})\}}(?:(?<=array\}})\s*\{{[^{{}}]*\}})?(.*?)\\end\s*\{{\2\}}(\s*[)\]])?",
    re.DOTALL,
)
_ROW_GAP = re.compile(r"(?<=\\\\)\s*\[\s*-?[0-9.]+\s*[a-z]{2}\s*\]")
_BLACKBOARD = re.compile(r"\\mathbb\s*([A-Z])")
_GREEK = "alpha|beta|gamma|delta|theta|lambda|mu|pi|rho|sigma|tau|phi|omega"
_BARE = re.compile(r"\\(?:frac|sqrt|binom|pmod)(?!\{[^{}]*\}(?:\{|$))")
_ROOT_OF = re.compile(r"\\root\s*\{?\s*([0-9]+)\s*\}?\s*\\of\s*(?=\{|[0-9])")
_PRIME = re.compile(r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-zA-Z]))")
_BARE_ARGUMENT = re.compile(
    rf"(\\(?:frac|sqrt|binom|pmod))\s*(?:(\[[^\[\]]*\])\s*)?((?<=\s)[a-zA-Z]|[0-9]|\\(?:{_GREEK})(?![a-zA-Z]))"
)
_BARE_SECOND = re.compile(rf"(\\(?:frac|binom))\s*(\{{[^{{}}]*\}})\s*([a-zA-Z0-9]|\\(?:{_GREEK})(?![a-zA-Z]))")

_PLUS_MINUS = re.compile(r"(?:\+\s*/|(?:^|(?<=[=,(\[]))\s*\+)\s*-(?=\s*[0-9\\a-zA-Z(])")
_UNUSUAL = re.compile(
    r"""[;'"`_<>!\[\]] | \+\s*/?\s*- | [0-9]\ +[0-9] | \.[0-9]{3}[.,] | \.{3}
    | \\(?:\{\s*\\\}|(?:not)?in|[cs]u[bp]|cap|setminus)""",
    re.VERBOSE,
)
"""What `_plain_notation` looks for: without it a text is spelled as it should be."""
_RELATION = re.compile(r"([<>])=|(?<![0-9)\]}!])!=|(?<=\s)!=")
_RELATIONS = {">": r"\ge ", "<": r"\le "}
_PLUS_INFINITY = re.compile(r"(^|[(\[\],;<>={]|\\(?:cup|in|to|le|ge|ne)(?![a-zA-Z]))\s*\+\s*(?=\\infty)")
_SETS = r"\\(?:in|notin|cup|cap|subset|subseteq|supset|supseteq|setminus)(?![a-zA-Z])"
_PLAIN_SET = re.compile(rf"({_SETS}\s*|^(?=\{{[^{{}}]*\}}\s*{_SETS}))\{{([^{{}}]*,[^{{}}]*|\s*-?[0-9]+\s*)\}}")
_SET_OF = re.compile(r"^(\\?)\{(\s*[a-zA-Z][^:|{},]*)[:|]([^{}]*?)\1\}$")
_NO_ELEMENTS = re.compile(r"\\\{\s*\\\}")
# Behind a comma or a plus, or, at the end, behind decimals or an element: those of a sentence that breaks off go.
_DOTS = re.compile(r"([,+]|\.[0-9]+(?=\.{3,}$)|[,+]\s*(?:[^\s,+.a-zA-Z]+|[a-zA-Z])(?=\.{3,}$))\s*\.{3,}")
_QUOTES = (("'", "'"), ('"', '"'), ("`", "`"), ("``", "''"))
_GROUPED = re.compile(
    r"(?<![\w.,'])(?<![0-9.,] )[1-9][0-9]{0,2}"
    r"(?:(?: +[0-9]{3})+(?:,[0-9]{1,2})?|(?:'[0-9]{3})+|(?:_[0-9]{3})+|(?: +[0-9]{3})* +0[0-9]{2}(?=/))"
    r"(?![\w']| *[0-9]|(?<! 0[0-9]{2})/| +/)"
)
_DOTTED = re.compile(
    r"(?<![\w.,])([0-9]{1,3}(?:\.[0-9]{3}){2,}|[0-9]{1,3}(?:\.[0-9]{3})+(?=,[0-9]))(?:,([0-9]+))?(?![\w.,])"
)
_SEPARATED = re.compile(r"[()\[\]{};,]")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_REVERSED = re.compile(r"^\s*\]|\[\s*(?:$|[,;]|\\c[ua]p(?![a-zA-Z]))|(?:\\c[ua]p|\\in|[,;=])\s*\]")
_INTERVAL = re.compile(r"([\[\]])([^\[\]()]*[,;][^\[\]()]*)([\[\]])")


def clean(answer: str) -> str:
    r"""The answer in one spelling: without `$`, `\left`, `\large`, layout and the final period, `\frac` and `\sqrt`
    with braces, signs as in `signs`, `[2;5[` as `[2,5)`.
    """
    text = answer if answer.isascii() else _plain_characters(answer)
    if "$" in text:
        text = _DOLLAR_OF.sub("", text)
    if "\\" in text:
        text = _plain_commands(text)
    text = text.replace("$", "").replace("~", " ").replace("{,}", ",")
    if not text.isascii():
        text = _without_currency(text)
    text = text.strip()
    if _UNUSUAL.search(text):
        text = _plain_notation(text)
    return trim(text)


def trim(text: str) -> str:
    """A text without the spaces around it and the marks that end a sentence."""
    return text.strip().rstrip(".,; \n")


def unwrapped(text: str) -> str:
    r"""`\text{...}` and its relatives without the command and its braces, at any depth."""
    return _rewritten(text, _TEXT_BRACES) if "\\" in text else text


def unquoted(text: str) -> str:
    """A text without the quotation marks around the whole of it."""
    for opening, closing in _QUOTES:
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inside and not {*opening, *closing} & {*inside}:
            return inside
    return text


def _rewritten(text: str, braces: re.Pattern[str]) -> str:
    """The text with each command that `braces` finds replaced by what `WRAPPERS` puts around its argument."""
    pieces: list[str] = []
    closing: list[str] = []
    read = 0
    for token in braces.finditer(text):
        mark = token[0]
        pieces.append(text[read : token.start()])
        read = token.end()
        if token[1]:
            before, behind = WRAPPERS.get(mark[:-1].rstrip(), ("", ""))
            # `\cdot\text{m}` must not become `\cdotm`.
            pieces.append(" " if not before and _ENDS_IN_COMMAND.search(pieces[-1]) else before)
            closing.append(behind)
            continue
        if mark == "{":
            closing.append(mark)
        elif mark == "}" and closing and (behind := closing.pop()) != "{":
            pieces.append(behind)
            continue
        pieces.append(mark)
    return "".join(pieces) + text[read:]


def _plain_characters(text: str) -> str:
    """A text in NFKC where that keeps its meaning. Applied blindly it would read `10²` as 102 and `1½` as 11/2."""
    text = _SUPERSCRIPTS.sub(lambda run: "^{" + unicodedata.normalize("NFKC", run[0]).replace("−", "-") + "}", text)
    text = _SUBSCRIPTS.sub(lambda run: "_{" + unicodedata.normalize("NFKC", run[0]) + "}", text)
    if not ROOTS.keys().isdisjoint(text):
        text = _ROOT.sub(_plain_root, text)
    return "".join(_plain_character(c) for c in unicodedata.normalize("NFC", text))


def _plain_root(match: re.Match[str]) -> str:
    argument = match[2] or match[3]
    return ROOTS[match[1]] + (f"{{{argument}}}" if argument else " ")


def _plain_character(c: str) -> str:
    if c.isascii():
        return c
    if c in UNICODE:
        return UNICODE[c]
    if c.isspace():
        return " "
    if c.isdecimal():
        return str(unicodedata.decimal(c))
    if unicodedata.category(c) == "Cf":  # zero-width
        return ""
    tag = unicodedata.decomposition(c).partition(" ")[0]
    if tag == "<fraction>":
        above, _, below = unicodedata.normalize("NFKC", c).partition("⁄")
        return rf"\frac{{{above}}}{{{below}}}"
    plain = unicodedata.normalize("NFKC", c) if tag in ("<wide>", "<narrow>", "<font>", "<square>") else c
    return UNICODE.get(plain, plain)


def _plain_commands(text: str) -> str:
    """The text with one command for each sign, and braces around arguments."""
    text = _COMMAND.sub(_plain_command, text)
    rare = _RARE.search(text)
    if rare:
        text = _MEASURED.sub(_plain_measured, _COLOR.sub("", text))
        text = _ROOT_OF.sub(r"\\sqrt[\1]", _INFIX.sub(_plain_infix, text))
        text = _BLACKBOARD.sub(r"\\mathbb{\1}", _PRIME.sub("'", text))
    if r"\begin" in text:
        text = _MATRIX.sub(_plain_matrix, text)
    if _BARE.search(text):
        text = _BARE_ARGUMENT.sub(lambda m: f"{m[1]}{m[2] or ''}{{{m[3]}}}", text)
        text = _BARE_SECOND.sub(r"\1\2{\3}", text)
    return _rewritten(text, _WRAPPER_BRACES) if rare else text


def _plain_command(match: re.Match[str]) -> str:
    if match["nothing"]:
        return ""
    if match["negated"]:
        return r"\ne" if match[0].endswith("=") else r"\notin"
    return COMMANDS.get(match[0], match[0])


def _plain_matrix(match: re.Match[str]) -> str:
    """A matrix in round brackets, which are not written twice."""
    opening, _, cells, closing = (group or "" for group in match.groups())
    cells = _ROW_GAP.sub("", cells)
    matrix = rf"\begin{{pmatrix}}{cells.strip().removesuffix(chr(92) * 2)}\end{{pmatrix}}"
    return matrix if opening and closing else opening + matrix + closing


def _plain_measured(match: re.Match[str]) -> str:
    r"""`\qty{40}{\kilo\gram}` as `40\text{ kilogram }`."""
    words = _PREFIX.sub(r" \1", match[2] or match[3] or "").replace("\\", " ")
    return rf"{match[1] or ''}\text{{ {words} }}"


def _plain_infix(match: re.Match[str]) -> str:
    above, command, below = match.groups()[:3] if match[2] else match.groups()[3:]
    return rf"\{'binom' if command == 'choose' else 'frac'}{{{above.strip()}}}{{{below.strip()}}}"


def _without_currency(text: str) -> str:
    """The text without its sign of currency, which in a list stays, as a unit of what it stands at."""
    signs = (CURRENCY_SIGNS | {"¤"}).intersection(text)
    if len(signs) == 1 and not _LIST.search(text):
        return text.replace(min(signs), "")
    return text.replace("¤", "$")


def _plain_notation(text: str) -> str:
    """The text in the notation of English mathematics, where it was in another or in that of a keyboard."""
    text = unquoted(text)
    if "=" in text:
        text = _RELATION.sub(lambda m: _RELATIONS.get(m[1], r"\ne "), text)
    if "+" in text:
        text = _PLUS_MINUS.sub(r"\\pm ", text)
    if r"\infty" in text:
        text = _PLUS_INFINITY.sub(r"\1", text)
    if _REVERSED.search(text):
        text = _INTERVAL.sub(_plain_interval, text)
    if ";" in text:
        text = _with_commas(text)
    text = _GROUPED.sub(lambda m: re.sub(r"[ '_]", "", m[0]).replace(",", "."), text)
    text = _DOTTED.sub(lambda m: m[1].replace(".", "") + ("." + m[2] if m[2] else ""), text)
    if "{" in text:
        text = _SET_OF.sub(r"\\{\2|\3\\}", text)
        text = _NO_ELEMENTS.sub(r"\\emptyset ", _PLAIN_SET.sub(r"\1\\{\2\\}", text))
    return _DOTS.sub(r"\1\\dots ", text) if "..." in text else text


def _plain_interval(match: re.Match[str]) -> str:
    """`]2,5[` as `(2,5)`."""
    return ("[" if match[1] == "[" else "(") + match[2] + ("]" if match[3] == "]" else ")")


def _with_commas(text: str) -> str:
    """The text with commas for semicolons; the commas between them are those of numbers, or all stay as they are."""
    characters = list(text)
    levels: list[tuple[list[int], list[int]]] = [([], [])]
    for mark in _SEPARATED.finditer(text):
        at = mark.start()
        if mark[0] in "([{":
            levels.append(([], []))
        elif mark[0] in ")]}":
            _separate(characters, text, *levels.pop())
            levels = levels or [([], [])]
        else:
            levels[-1][mark[0] == ","].append(at)
    for level in levels:
        _separate(characters, text, *level)
    return "".join(characters)


def _separate(characters: list[str], text: str, semicolons: list[int], commas: list[int]) -> None:
    """Write a level's semicolons as commas, and its commas as points or, where all part thousands, not at all."""
    if not semicolons or not all(text[at - 1 : at].isdigit() and text[at + 1 : at + 2].isdigit() for at in commas):
        return
    thousands = all(_THOUSANDS.match(text, at) for at in commas)
    for at in commas:
        characters[at] = "" if thousands else "."
    for at in semicolons:
        characters[at] = ", "  # with a space, lest `1;234` become one number
