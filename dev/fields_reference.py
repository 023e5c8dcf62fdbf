"""Print docs/PROBLEMS.md, the fields that rows of problems and rollouts are read by. A test compares the two.

python dev/fields_reference.py > docs/PROBLEMS.md
"""

from collections.abc import Iterable

from ttrl_pop.read import choices, gold, question, rollouts, rows

INTRODUCTION = """# Problems, gold answers and rollouts

Rows of JSON Lines, an array, a table or a data set. Of the fields in a line below the first that a row has counts; null
is the same as absent, and a dotted name reaches into an object. `--prompt-key`, `--id-key` and `--answer-key` name any
other field, and `--text-key` the text of a rollout. A row without an id is known by its number.

```json
{"id": "p1", "question": "What is 12 + 34?"}
{"id": "p2", "question": "Which is even?", "choices": ["3", "4", "5"], "answer": "B"}
{"id": "p3", "messages": [{"role": "user", "content": "What is 7 times 8?"}], "solution": "7 times 8 is \\\\boxed{56}."}
```

Gold answers may stand in the rows or in a file of their own (`--gold`), by id. Nothing learns from them.

This page is the output of `python dev/fields_reference.py > docs/PROBLEMS.md`.
"""

PARTS: dict[str, Iterable[str]] = {
    "question": question.PROMPT_FIELDS,
    "id": rows.ID_FIELDS,
    "gold answer": gold.GOLD_FIELDS,
    "choices, all in one field": choices.CHOICE_FIELDS,
    "choices, a field each (`{}` is a letter or a number)": choices.SERIES,
    "what is to be done with the question": question.TASK_FIELDS,
    "what it is about": question.CONTEXT_FIELDS,
    "system turn": question.SYSTEM_FIELDS,
    "turns before it": question.HISTORY_FIELDS,
    "rollouts: what was written": rollouts.TEXT_FIELDS,
}
"""What a row holds, and the fields that it is looked for in."""


def page() -> str:
    """The reference as Markdown, a line for each part."""
    lines = ["| part | fields, in the order in which they count |", "|---|---|"]
    lines += [f"| {part} | {', '.join(f'`{field}`' for field in fields)} |" for part, fields in PARTS.items()]
    return "\n".join([INTRODUCTION, *lines])


if __name__ == "__main__":
    print(page())
