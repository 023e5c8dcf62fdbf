"""What a model or a file wrote: its last box, and one printable line of it for errors or for the screen."""

import re
import unicodedata

# `\{` and `\}` print a brace; `\\` ends a line, unless a doubled backslash wrote `\\boxed`.
_BOXES = re.compile(r"(\\(?:boxed|fbox|framebox)\s*+\{)|\\[{}]|\\\\(?!boxed|fbox|framebox)|[{}]")


def last_box(text: str) -> str | None:
    r"""Content of the balanced, non-empty `\boxed{}` or `\fbox{}` that opens last (of nested ones the innermost)."""
    box = last_box_with_place(text)
    return box[1] if box else None


def last_box_with_place(text: str) -> tuple[int, str] | None:
    """Where the content of `last_box` begins, and the content."""
    not_a_box = -1
    opened: list[int] = []
    best, content = not_a_box, ""
    for token in _BOXES.finditer(text):
        if token[1]:
            opened.append(token.end())
        elif token[0] == "{":
            opened.append(not_a_box)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start > best and (inside := text[start : token.start()].strip()):
                best, content = start, inside
    return (best, content) if content else None


def shown(text: str, limit: int | None = 40) -> str:
    r"""`text` on one line of an error: what does not print is escaped (`\n`, `\u202e`), what is too long is cut.

    Escapes tell characters apart that look alike or do not show, and can be searched for in the file that held them.
    On the screen, where answers are LaTeX and `\n` may begin `\nu`, `safe` stands in.

    Args:
        limit: characters that are left, those of escapes counted; None leaves all.
    """
    head = text if limit is None else text[: limit + 1]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in head)
    return escaped if limit is None or len(escaped) <= limit else escaped[: limit - 1] + "…"


def safe(text: str, limit: int = 60) -> str:
    """`text` in one cell of the screen: at most `limit` printable characters, each where it stood.

    Control characters become their pictures (ESC is ␛, a line feed ␊). Other characters that are invisible
    or change how their neighbours look (C1 controls, bidi marks, zero-width characters, variation selectors,
    line separators, lone surrogates) become �. A text that was shortened ends in …
    """
    head = "".join(map(_visible, text[:limit]))
    return head if len(text) <= limit else head[: limit - 1] + "…"


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    return "�" if hidden or selector else character
