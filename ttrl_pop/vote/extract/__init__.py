"""Extraction: a completion's text becomes its answer, or None, an abstention.

`extractor` finds one by name. `turn` takes off thoughts and special tokens. `chat` asks in order for all that can mark
an answer: `json_answers`, boxes, `answer_tags` and `answer_lines`; `remarks` takes off what is said around it. Others
with a name are `numbers`, `choice` and `pattern`. Words of languages are tables in `words`.

To add one: a function of (text, finish reason) in a file here, its short name in `ttrl_pop.plugins`, cases in
tests/cases/extract.json. What the token limit cut off is no answer, and all but the user's own patterns are linear in
the text's length: no pattern backtracks into what it has read.
"""
