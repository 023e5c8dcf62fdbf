"""Problems → token ids, tokens → text."""

import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ttrl_pop.errors import UsageError
from ttrl_pop.model.load import LoadedModel
from ttrl_pop.model.refusals import reason
from ttrl_pop.thoughts import SHORTEST, ends_in_thoughts, is_part_of_mark
from ttrl_pop.types import Message, Problem

TEMPLATE_ALLOWANCE = 256
"""Tokens that a chat template may add without the prompt's length being measured."""

PROBE = "What is 12,345 times 6.78?\n\n  Él a dit : « œuvre »\tif x_1 != y**2: \\frac{1}{2}; 答案是 ５７。 ﬁn 🙂\n"
"""A text by which tokenizers of one vocabulary are told apart: each cuts some of this in its own way."""

_FORMAT = re.compile(r"""(["'])((?:(?!\1).)*%(?:(?!\1).)*)\1""")
_DATED = "{% macro strftime_now(format) %}{{ dates_by_format[format] }}{% endmacro %}\n"


def encode(tokenizer: Any, problem: Problem, date: datetime.date | None = None) -> tuple[int, ...]:
    """Token ids of the prompt: text as it stands, with what the tokenizer puts before any text and without what it puts
    behind it; chat messages by the model's chat template, up to where the answer begins.

    Args:
        date: what the template is told where it asks for the date; None is today.

    Raises:
        UsageError: the prompt is chat and the tokenizer has no chat template, or it has no tokens.
    """
    if isinstance(problem.prompt, str):
        ids = _open_ended(tokenizer, problem.prompt)
    else:
        if not tokenizer.chat_template:
            raise UsageError(
                f"problem {problem.id!r} is a chat prompt, but the model has no chat template; pass --raw "
                "if its prompt is text, else name an instruct model"
            )
        try:
            text = rendered(tokenizer, list(problem.prompt), date)
        except Exception as error:
            # A template is a program, and ends as programs do.
            raise UsageError(
                f"problem {problem.id!r}: the model's chat template refuses it ({reason(error)}); change its messages"
            ) from error
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError(f"problem {problem.id!r} has an empty prompt; a prompt needs at least one token")
    return tuple(ids)


def opens_thoughts(tokenizer: Any, opening: str = "") -> bool:
    """Whether the chat template ends a prompt inside the thoughts, so that a completion begins with them.

    Args:
        opening: a mark that opens them beside those that are known (`ttrl_pop.thoughts.MARKS`).
    """
    text = rendered_turn(tokenizer, "?")
    return text is not None and ends_in_thoughts(text, opening)


def decode(tokenizer: Any, completion_ids: Sequence[int]) -> str:
    """Text of a completion, special tokens left out but for marks of thoughts, which extraction goes by."""
    dropped, marks = _special(tokenizer)
    if has_marks := not marks.isdisjoint(completion_ids):
        completion_ids = [token for token in completion_ids if token not in dropped]
    text: str = tokenizer.decode(completion_ids, skip_special_tokens=not has_marks, clean_up_tokenization_spaces=False)
    return text


def tokenizer_fingerprint(model: LoadedModel) -> str:
    """Hash over what decides which tokens a prompt has, and where a completion ends: vocabulary, special tokens, the
    tokens of `PROBE`, chat template, and the tokens that end a sequence. The template's source counts and not what it
    says, which may hang on the date."""
    tokenizer = model.tokenizer
    added = [(number, token.content, token.special) for number, token in tokenizer.added_tokens_decoder.items()]
    known = [
        *(sorted(tokenizer.get_vocab().items()), sorted(added), _open_ended(tokenizer, PROBE)),
        *(tokenizer.chat_template, sorted(model.eos_ids)),
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


class Prompts(Mapping[str, tuple[int, ...]]):
    """Token ids by problem id, encoded when asked for: a file of 100,000 problems costs nothing until it is visited."""

    def __init__(
        self,
        model: LoadedModel,
        problems: Sequence[Problem],
        max_new_tokens: int,
        date: datetime.date | None = None,
    ) -> None:
        """
        Args:
            date: as `encode` takes it.

        Raises:
            UsageError: a prompt and `max_new_tokens` together do not fit the model's context, or the model has no
                embedding for a token of it.
        """
        self._model, self._date = model, date
        self._problems = {problem.id: problem for problem in problems}
        room = model.context_length - max_new_tokens
        if room < 1:
            raise UsageError(
                f"sampling.max_new_tokens {max_new_tokens} leaves no room for a prompt in the model's context of "
                f"{model.context_length} tokens; pass less, as in --set sampling.max_new_tokens="
                f"{max(1, model.context_length // 2)}"
            )
        # The chat template can be missing or refuse an order of roles: say so before anything is written.
        kinds = {() if isinstance(p.prompt, str) else tuple(m["role"] for m in p.prompt): p for p in reversed(problems)}
        for problem in kinds.values():
            encode(model.tokenizer, problem, date)
        for problem in problems:
            # No tokenizer makes more tokens than bytes, so only long prompts need to be encoded to be checked.
            if _bytes(problem) + TEMPLATE_ALLOWANCE > room and len(self[problem.id]) > room:
                raise UsageError(
                    f"problem {problem.id!r}: prompt of {len(self[problem.id])} tokens and {max_new_tokens} new ones "
                    f"do not fit the model's context of {model.context_length}; shorten it or lower "
                    "sampling.max_new_tokens"
                )

        if _highest_id(model.tokenizer) >= (rows := model.network.get_input_embeddings().weight.shape[0]):
            self._check_embedded(rows)

    def __getitem__(self, problem_id: str) -> tuple[int, ...]:
        return encode(self._model.tokenizer, self._problems[problem_id], self._date)

    def __iter__(self) -> Iterator[str]:
        return iter(self._problems)

    def __len__(self) -> int:
        return len(self._problems)

    def _check_embedded(self, rows: int) -> None:
        """Most models whose tokenizer knows more tokens than they do never meet those: only prompts tell."""
        for problem_id, ids in self.items():
            if (unknown := max(ids)) >= rows:
                token = self._model.tokenizer.convert_ids_to_tokens(unknown)
                raise UsageError(
                    f"problem {problem_id!r}: the model has embeddings for {rows} tokens, but its tokenizer makes "
                    f"token {unknown} ({token!r}) of the prompt; pass a model with the tokenizer that belongs to it"
                )


@lru_cache(maxsize=4)
def _special(tokenizer: Any) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of a tokenizer's special tokens: of those to leave out, and of marks of thoughts."""
    special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks = frozenset(number for number, text in special.items() if is_part_of_mark(text))
    return frozenset(special) - marks, marks


@lru_cache(maxsize=16)
def stop_ids(tokenizer: Any, stop: tuple[str, ...]) -> frozenset[int]:
    """Ids of those stop strings that are special tokens of this tokenizer: texts leave them out, so that only their ids
    tell that they were written.

    Raises:
        UsageError: a stop string has such a token and more in it, and would never be found.
    """
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for text in stop:
        # A special token such as `!` stands in ordinary texts.
        inside = [t for t in special if t in text and len(t) >= SHORTEST and not is_part_of_mark(t)]
        if inside and text not in special:
            raise UsageError(
                f"sampling.stop must be text, or a special token alone, got {text!r}: no text holds the special token "
                f"{inside[0]!r}; write it alone"
            )
    return frozenset(special[text] for text in stop if text in special)


def has_special_marks(tokenizer: Any) -> bool:
    """Whether marks around thoughts are special tokens of this tokenizer."""
    return bool(_special(tokenizer)[1])


def rendered_turn(tokenizer: Any, content: str) -> str | None:
    """The chat template's text for a lone turn of the user; None without a template, or where it takes no such chat."""
    if not tokenizer.chat_template:
        return None
    try:
        return rendered(tokenizer, [{"role": "user", "content": content}], None)
    except Exception:
        # A template is a program, and may raise anything. `encode` says so of the problems that need it.
        return None


def rendered(tokenizer: Any, messages: list[Message], date: datetime.date | None) -> str:
    """The chat template's text for these messages, up to where the answer begins."""
    template: str = tokenizer.get_chat_template()
    if date is None or "strftime_now" not in template:
        dated, told = template, {}
    else:
        # transformers gives templates the clock, and nothing else that can be called: so a macro of that name stands
        # before the template, with the date in every format that the template spells out.
        formats = {found[2] for found in _FORMAT.finditer(template)}
        dated, told = _DATED + template, {"dates_by_format": {each: date.strftime(each) for each in formats}}
    text: str = tokenizer.apply_chat_template(
        messages, chat_template=dated, tokenize=False, add_generation_prompt=True, **told
    )
    return text


def _open_ended(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that goes on: an end token that the tokenizer puts behind every text is left out, one that
    the text itself ends with stays."""
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids, added = list(encoded["input_ids"]), encoded["special_tokens_mask"]
    while ids and added[len(ids) - 1]:
        ids.pop()
    return ids


def _highest_id(tokenizer: Any) -> int:
    highest: int = max(len(tokenizer) - 1, *tokenizer.added_tokens_decoder, 0)
    return highest


def _bytes(problem: Problem) -> int:
    if isinstance(problem.prompt, str):
        return len(problem.prompt.encode())
    return sum(len(message["content"].encode()) for message in problem.prompt)
