r"""`\boxed{}`, the place where chat models and worked solutions put the final answer."""

import re

# `\{` and `\}` print a brace; `\\` ends a line, unless a doubled backslash wrote `\\boxed`.
_BOXES = re.compile(r"(\\boxed\s*+\{)|\\[{}]|\\\\(?!boxed)|[{}]")


def last_box(text: str) -> str | None:
    r"""Content of the balanced, non-empty `\boxed{}` that opens last (of nested boxes the innermost)."""
    not_a_box = -1
    opened: list[int] = []
    best, content = not_a_box, None
    for token in _BOXES.finditer(text):
        if token[1]:
            opened.append(token.end())
        elif token[0] == "{":
            opened.append(not_a_box)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start > best and (inside := text[start : token.start()].strip()):
                best, content = start, inside
    return content
