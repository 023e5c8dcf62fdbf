"""Read: a JSON Lines file, a JSON array, standard input, a datasets name or a rule → problems and their answer key.

    found = read_problems("problems.jsonl", ProblemsConfig(), gold="gold.jsonl")
    found.problems[0].prompt, found.answers.get("7x8")

Each row is read by itself, so one file may mix layouts: its prompt by `question`, its gold answer by `gold`, its id
from the first of `ttrl_pop.read.rows.ID_FIELDS` that is there. Null is the same as absent. A field that the user names
is taken instead; a dotted name such as `extra_info.index` reaches into an object. A row that cannot be read refuses the
source, as training on a part of it would be another experiment.

A string `prompt` stays text, of which `ttrl_pop.model.turns` makes a turn where the model is one for chats. Gold
answers go into the `AnswerKey` and never into a `Problem`.
"""

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from ttrl_pop.config import ProblemsConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.read.choices import Choices
from ttrl_pop.read.gold import GOLD_FIELDS, Gold
from ttrl_pop.read.gym import PREFIX, gym_rows
from ttrl_pop.read.hub import DatasetLoader, Resolver, hub_rows, load_from_hub, resolve_on_hub
from ttrl_pop.read.lines import ByteStream, source_name
from ttrl_pop.read.logs import read_logged
from ttrl_pop.read.question import read_question
from ttrl_pop.read.rows import ID_FIELDS, Counted, Notice, Row, Source, read_rows, rows_of, unsaid
from ttrl_pop.text import shown
from ttrl_pop.types import AnswerKey, GoldAnswer, Problem, ProblemSet


def read_problems(
    source: Source,
    options: ProblemsConfig,
    gold: Source | None = None,
    stdin: ByteStream | None = None,
    *,
    load_dataset: DatasetLoader = load_from_hub,
    resolve: Resolver = resolve_on_hub,
    notice: Notice = unsaid,
) -> ProblemSet:
    """Read the problems in `source`: a file, `-` for `stdin`, `hf:NAME[@REVISION][:config][:split]`,
    `gym:NAME[:SIZE[:SEED]]`, or rows in memory.

    Args:
        source: a lone `train`, `test`, `validation` or `dev` after NAME is the split, anything else the
            config; without a split `test` is read, else `train`.
        gold: gold answers by problem id, from a source of their own; they replace those in the rows.
        stdin: standard input, in bytes; None is that of the process.
        load_dataset: stands in for `datasets.load_dataset`.
        resolve: stands in for the hub, which says what commit a revision is.
        notice: is told what may be a part of the question and is not read, and what is in doubt of gold answers.

    Raises:
        UsageError: a source cannot be read or a row breaks a rule; the message begins with file and line.
    """
    template = options.prompt_template
    if template is not None and template.count("{prompt}") != 1:
        raise UsageError(f"prompt_template must hold {{prompt}} exactly once, got '{shown(template)}'.")
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    numbered: set[str] = set()
    unread = Counted(source_name(source))
    named = [key.partition(".")[0] for key in (options.answer_key, options.id_key) if key]
    advice = "Put what belongs to it into the question"
    if options.answer_key is None:
        advice += ", or, if it is the gold answer, name it with --answer-key"
    found = Gold((options.answer_key,) if options.answer_key else GOLD_FIELDS)
    rows, kept = _read_rows(source, stdin, load_dataset, resolve, notice)
    for row in islice(rows, options.limit):
        problem_id = _claim(row, _said_id(row, options.id_key), seen, numbered)
        question = read_question(row, options)
        problems.append(Problem(problem_id, question.prompt, len(problems)))
        if names := ", ".join(shown(name) for name in question.unread if name not in named):
            unread.add(f"not read beside the question: {names}. {advice}.", row)
        found.add(row, problem_id)
    found.settle()
    answers = found.answers
    for said in unread.notices():
        notice(said)
    if gold is None:
        _tell(found, source, notice)
    else:
        rows, _ = _read_rows(gold, stdin, load_dataset, resolve, notice)
        answers |= _read_gold(rows, options, gold, notice, ids=seen, choices=found.choices)
    if options.answer_key and not answers:
        raise UsageError(
            f"{source_name(source)}: no row has an answer in {shown(options.answer_key)}. "
            "Pass another --answer-key or none."
        )
    return ProblemSet(tuple(problems), AnswerKey(answers), fingerprint(problems), kept)


def read_gold(source: Source, options: ProblemsConfig, notice: Notice = unsaid) -> AnswerKey:
    """Read gold answers by problem id; a file of problems with answers will do, and a log of lm-eval or inspect.

    Args:
        notice: is told what is in doubt of them.

    Raises:
        UsageError: the source cannot be read, a row breaks a rule, or none has an answer; the message begins with file
            and line.
    """
    rows, _ = _read_rows(source, None, load_from_hub, resolve_on_hub, notice, logged=True)
    return AnswerKey(_read_gold(rows, options, source, notice))


def write_problems(problems: Sequence[Problem]) -> Iterator[str]:
    """One JSON object a problem, without line ends; `read_problems` of these lines gives equal problems.

    That holds for problems as `read_problems` makes them: unique ids, counted from 0, prompts not blank.
    """
    for problem in problems:
        field = "messages" if problem.is_chat else "prompt"
        yield json.dumps({"id": problem.id, field: problem.prompt}, ensure_ascii=False)


def write_gold(answers: AnswerKey) -> Iterator[str]:
    """One JSON object a gold answer, without line ends; `read_gold` of these lines gives equal answers."""
    for problem_id, answer in answers.items():
        others = {"others": answer.others} if isinstance(answer, GoldAnswer) and answer.others else {}
        yield json.dumps({"id": problem_id, "answer": answer, **others})


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 (hex) over ids and prompts in order."""
    canonical = json.dumps([(problem.id, problem.prompt) for problem in problems], sort_keys=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


# --- source → rows ---


def _read_rows(
    source: Source,
    stdin: ByteStream | None,
    load_dataset: DatasetLoader,
    resolve: Resolver,
    notice: Notice,
    logged: bool = False,
) -> tuple[Iterator[Row], str]:
    """Rows, and where they were read from."""
    found = None
    if isinstance(source, str) and source.startswith("hf:"):
        found = hub_rows(source, load_dataset, resolve)
    elif isinstance(source, str) and source.startswith(PREFIX):
        found = gym_rows(source, notice)
    if found is not None:
        return rows_of(enumerate(found.rows, 1), source_name(source), "row"), found.source
    rows = read_logged(source, stdin, once=True) if logged else read_rows(source, stdin)
    return rows, source if isinstance(source, str) else source_name(source)


# --- row → id, gold ---


def _claim(row: Row, said: str | None, seen: dict[str, int], numbered: set[str]) -> str:
    """The id of a row: the one that it says, or its number.

    Args:
        seen: ids of the rows before, and where they stand.
        numbered: those of them that are numbers of rows.

    Raises:
        UsageError: another row has it.
    """
    row_id = str(row.number) if said is None else said
    number = seen.setdefault(row_id, row.number)
    if number != row.number:
        other = f"{row.unit} {number}"
        if said is None:
            raise row.error(f"has no id and would get its number, {row_id}, the id of {other}. Give each row an id.")
        if row_id in numbered:
            raise row.error(f"id '{shown(row_id)}' is that of {other}, by its number. Give each row an id.")
        raise row.error(f"id '{shown(row_id)}' stands on {other} already. Make ids unique.")
    if said is None:
        numbered.add(row_id)
    return row_id


def _said_id(row: Row, key: str | None) -> str | None:
    row_id = row.id((key,) if key else ID_FIELDS)
    if row_id is None and key:
        raise row.error(f"no id field {shown(key)} (found: {row.listed()}). Pass another --id-key or none.")
    return row_id


def _read_gold(
    rows: Iterable[Row],
    options: ProblemsConfig,
    source: Source,
    notice: Notice,
    ids: Container[str] | None = None,
    choices: Mapping[str, Choices] | None = None,
) -> dict[str, str]:
    id_fields = (options.id_key, *ID_FIELDS) if options.id_key else ID_FIELDS
    fields = (options.answer_key, *GOLD_FIELDS) if options.answer_key else GOLD_FIELDS
    gold = Gold(fields, choices=dict(choices or {}))
    seen: dict[str, int] = {}
    first = None
    for row in rows:
        if (row_id := row.id(id_fields)) is None:
            raise row.error(f"no problem id (found: {row.listed()}). Give each gold answer the id of its problem.")
        if ids is not None and row_id not in ids:
            if options.limit is not None:
                continue
            raise row.error(f"no problem has the id '{shown(row_id)}'. Correct the id or leave the row out.")
        _claim(row, row_id, seen, set())
        gold.add(row, row_id)
        first = first or row
    gold.settle()
    if not gold.answers and first is not None:
        if (doubt := next(gold.notices(), None)) is not None:
            raise UsageError(f"{source_name(source)}: {doubt}.")
        raise first.error(f"no gold answer (found: {first.listed()}). Name its field with --answer-key.")
    _tell(gold, source, notice)
    return gold.answers


def _tell(gold: Gold, source: Source, notice: Notice) -> None:
    for said in gold.notices():
        notice(f"{source_name(source)}: {said}")
