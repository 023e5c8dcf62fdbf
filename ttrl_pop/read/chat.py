"""Turns of a chat in the words of many tools → role and text.

| | |
|---|---|
| role | `role`, `from` (ShareGPT), `author`, `type` (LangChain); others' words for it: `ROLES` |
| text | `content`, `value`, `parts` (Gemini), `text`; a text, or a list of parts of which `TEXT_PARTS` are joined |
"""

from collections.abc import Mapping
from typing import Any

from ttrl_pop.read.rows import is_text

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("human", "Human", "USER", "User"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "ai", "AI", "ASSISTANT", "Assistant"), "assistant"),
    # Chat templates know one role that says how to answer.
    **dict.fromkeys(("developer", "SYSTEM", "System"), "system"),
}
"""Others' words for a role, and ours."""

ROLE_FIELDS = ("role", "from", "author")
"""Fields of a turn's role, in the order in which they count."""

TYPED_ROLES = ("human", "ai", "system")
"""Values of `type` that are a role (LangChain), where they are those of parts and items elsewhere."""

CONTENT_FIELDS = ("content", "value", "parts", "text")
"""Fields of a turn's text, in the order in which they count."""

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of parts whose texts are joined; a part that has a text and no type is one of them."""


def role_of(turn: Any) -> str | None:
    """Who speaks in a turn, in our words; None where it says nothing of it, and is no turn."""
    if not isinstance(turn, dict):
        return None
    typed = turn.get("type") if turn.get("type") in TYPED_ROLES else None
    said = next((turn[field] for field in ROLE_FIELDS if is_text(turn.get(field))), typed)
    return None if said is None else ROLES.get(said, str(said))


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns."""
    return isinstance(value, list) and bool(value) and all(role_of(turn) is not None for turn in value)


def is_transcript(value: Any) -> bool:
    """Whether a value is a list of turns, or of items among which one is a turn; others are thoughts and calls."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return False
    roles = [role_of(item) for item in value]
    return is_chat(value) or (
        "assistant" in roles and all(role or "type" in item for role, item in zip(roles, value, strict=True))
    )


def is_parts(value: Any) -> bool:
    """Whether a value is a list of parts of one content, which all say their types and of which one is a text."""
    if not isinstance(value, list) or not all(isinstance(part, dict) and is_text(part.get("type")) for part in value):
        return False
    return any(part["type"] in TEXT_PARTS for part in value)


def part_text(part: Any) -> str | None:
    """The text of a part of a turn's content; None where it has none, or says what was thought."""
    if not isinstance(part, dict) or part.get("type", "text") not in TEXT_PARTS or part.get("thought") is True:
        return None
    text = part.get("text")
    return str(text) if is_text(text) else None


def joined(content: Any) -> Any:
    """The text of a list of text parts; anything else as it is."""
    if isinstance(content, list):
        texts = [part_text(part) for part in content]
        if all(text is not None for text in texts):
            return "".join(text for text in texts if text is not None)
    return content


def spoken(content: Any) -> Any:
    """What the text parts of an answer's content say, without its thoughts, its calls of tools, and pictures; anything
    else as it is."""
    if isinstance(content, list) and all(isinstance(part, dict) and role_of(part) is None for part in content):
        return "".join(text for part in content if (text := part_text(part)) is not None)
    return content
