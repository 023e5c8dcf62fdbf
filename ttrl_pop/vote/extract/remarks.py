r"""An answer without what was said around it: `It is 57.`, `$57$. I hope it is correct.`, `57 (since 7*8+1)` → `57`.

Only what is known to be a remark goes (`ttrl_pop.words`). Anything else may be a part of the answer:
`5 apples`, `x = 3 or x = 4`, `57, 58`, `57 (mod 60)` stay whole.
"""

import re

from ttrl_pop.vote.extract.numbers import number_at_start
from ttrl_pop.words import (
    CONSEQUENCE,
    CORRECT,
    GLOSS,
    IS_WORD,
    NAMED,
    PLAIN_REASON,
    POLITE,
    REASON,
    SENTENCE,
    any_of,
)

ADORNMENT = "*_` \t\r"
"""Signs of Markdown around an answer."""
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "„": "“", "«": "»", "「": "」", "『": "』", "‹": "›"}
DONE = "✅✔☑✓🎉👍⭐🎯💯😊🙂🏆■∎🔥👏\ufe0f\u200d"
"""Signs behind an answer that say that it is one."""
OPENERS, CLOSERS = "([{（【", ")]}）】"

_BOLD = re.compile(r"(?<!\w)(\*\*|__)(?![\s*_])([^*_\n]++)\1(?!\w)")
_TAGS = re.compile(r"</?(?:b|strong|em|i|u|p|br|center|span|mark|h[1-6])\s?/?>", re.IGNORECASE)
_MATH = r"(?:\$\$[^$]++\$\$|\$[^$]++\$|\\\((?:[^\\]|\\(?!\)))*+\\\)|\\\[(?:[^\\]|\\(?!\]))*+\\\])"
_LEAD = re.compile(
    rf"""(?: {NAMED} [ \t*_]*+ (?: {IS_WORD} [ \t]?+ [:：]?+ | [:：] ) | (?:it|that|this)[ ]++(?:is|equals)(?!\w)
      | it['’]s(?!\w) | (?P<subject>(?:[^\W\d_]++(?:['’]s)?+[ ]++){{1,8}}?)(?:is|are|equals)(?!\w)
      | we[ ](?:get|have|obtain)(?!\w) | (?:equals|is)(?!\w) | = ) [ \t]*+""",
    re.VERBOSE | re.IGNORECASE,
)
# What says that a sentence names more than one value.
_MORE = re.compile(r"(?<!\w)(?:is|are|equals|and|or)(?!\w)|[=,;，；]")
_REMARK = re.compile(
    rf"""[.!。！;；] ["'”’*_)\]]*+ (?: \s++ | (?<=[。！；]) ) (?=(?-i:{any_of(SENTENCE)}))
      | [,，;；]\s*+ (?:{any_of(REASON)})(?![a-z])
      | (?<!\s) \s*+ [(（\[] (?:{any_of(REASON, GLOSS)})(?![a-z])
      | (?<!\s) \s++ (?: [-–—]{{1,2}} \s++ (?:{any_of(REASON)}) | {any_of(PLAIN_REASON)} )(?![a-z])""",
    re.VERBOSE | re.IGNORECASE,
)
_BEHIND_VALUE = re.compile(
    rf"""(?<!\s) \s*+ (?: (?:is|are)\s++(?:{any_of(CORRECT)})(?![a-z]) | since(?![a-z])
      | as\s++(?:shown|required|expected)(?![a-z]) | [,，]\s*+(?:{any_of(CONSEQUENCE)})(?![a-z])
      | (?:{any_of(POLITE)}) )""",
    re.VERBOSE | re.IGNORECASE,
)
_SENTENCE_BEHIND = re.compile(r"[.!]\s++[A-Z]")
_UNIT = re.compile(r"\s?+[%°℃℉$€£¥₹]?+(?:[ -]?+[^\W\d_]{1,20}+[²³]?+(?:/[a-z]{1,4}+)?+){0,3}+\s*+[.!。]?+\s*+")
_FORMULA = re.compile(r"(?:\\[a-zA-Z]++|[^\W\d_]{1,2}+(?![^\W\d_])|\d|[^\w]|_)++")
# No end of an abbreviation (`p.m.`) or of an ellipsis.
_END_OF_VALUE = re.compile(r"(?<!\.)(?<!\.\w)\.\Z")
_ALONE = re.compile(r"[(\[]?[^\W\d_][)\]]?\.?")
_HAS_SIZE = re.compile(r"\d|\\[a-zA-Z]")
_WHOLE_MATH = re.compile(rf"{_MATH}\s?+[.!。]?+")
_MATH_AT_START = re.compile(_MATH)


def answer_itself(text: str) -> str | None:
    """The answer in what stands on an answer line or in tags; None where nothing does."""
    text = _plain(text)
    for _ in range(3):
        lead = _LEAD.match(text)
        value = _plain(_without_remark(text[lead.end() :])) if lead else ""
        if lead is None or not is_value(value) or (lead["subject"] and _MORE.search(value)):
            break
        text = value
    text = _plain(_without_remark(text))
    return (_END_OF_VALUE.sub("", text) if is_value(text) else text) or None


def is_value(text: str) -> bool:
    """Whether a text is a number, with or without a unit, a formula, or a letter alone: no sentence, and no word."""
    text = text.strip(ADORNMENT)
    number = number_at_start(text)
    if (number and _UNIT.fullmatch(text, number.end)) or _WHOLE_MATH.fullmatch(text):
        return True
    return bool(_ALONE.fullmatch(text) or (_HAS_SIZE.search(text) and _FORMULA.fullmatch(text)))


def _without_remark(text: str) -> str:
    """The text up to where a remark begins; all of it where nothing stands before."""
    remark = _REMARK.search(text)
    head = text[: remark.start()] if remark else text
    if math := _MATH_AT_START.match(head):
        if _SENTENCE_BEHIND.match(head, math.end()) or _BEHIND_VALUE.match(head, math.end()):
            head = math[0]
    elif (number := number_at_start(head)) and (behind := _BEHIND_VALUE.search(head, number.end)):
        is_unit = _UNIT.fullmatch(head, number.end, behind.start())
        head = head[: behind.start()] if is_unit else head
    return head if head.strip(ADORNMENT) else text


def _plain(text: str) -> str:
    """A text without the Markdown, the tags, the quotes and the signs around it."""
    text = _BOLD.sub(r"\2", _TAGS.sub(" ", text)) if _has_layout(text) else text
    text = text.strip(ADORNMENT)
    done = text.rstrip(ADORNMENT + DONE)
    text = (done or text).removesuffix("。").removesuffix("।")
    if text.count("|") == 1:
        # The end of a row of a table.
        text = text.removesuffix("|").rstrip(ADORNMENT)
    if not any(opener in text for opener in OPENERS):
        # A bracket that opened before the word for the answer.
        text = text.rstrip(CLOSERS + ADORNMENT) or text
    inner = text[1:-1]
    if inner and QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(inner):
        return inner.strip(ADORNMENT)
    return text


def _has_layout(text: str) -> bool:
    return "*" in text or "_" in text or "<" in text
