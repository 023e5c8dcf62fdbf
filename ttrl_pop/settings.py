"""Every setting with its value, what it takes and what it means: as commented TOML, and as a JSON schema.

Both, and the hint at the setting that an unknown key was meant for, are made of the configuration's classes and
the texts below their settings (`ttrl_pop.config.Section`).
"""

import difflib
import importlib
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w
from pydantic import BaseModel

from ttrl_pop.config import Config, Section
from ttrl_pop.plugins import OPTIONS, options_of

WIDTH = 120
"""Columns of commented TOML."""

LARGEST = 2**31
"""Bounds from which on they say nothing to a reader."""

OPTION_TABLES = {"population.options": "population", "backend_options": "backend"}
"""Tables that a plug-in describes, by its kind."""

HEAD = """\
Settings of ttrl-pop, as --config takes them. In square brackets stands what a setting takes. A line that is commented
out sets nothing (None), or shows the default of a plug-in."""

ELSEWHERE = {
    "learning_rate": "learn.lr",
    "epsilon": "learn.clip_low",
    "epsilon_high": "learn.clip_high",
    "beta": "learn.kl",
    "kl_coef": "learn.kl",
    "lr_scheduler_type": "learn.schedule",
    "loss_type": "learn.loss",
    "gradient_checkpointing": "learn.checkpointing",
    "mask_truncated_completions": "learn.mask_truncated",
    "lora_r": "learn.lora.rank",
    "lora_alpha": "learn.lora.alpha",
    "target_modules": "learn.lora.targets",
    "max_tokens": "sampling.max_new_tokens",
    "max_length": "sampling.max_new_tokens",
    "max_completion_length": "sampling.max_new_tokens",
    "num_generations": "population.minds",
    "max_steps": "steps",
    "batch_size": "problems_per_step",
    "save_steps": "checkpoint.every",
    "eval_steps": "eval_every",
    "report_to": "track",
}
"""Names that settings have in other trainers, of which none is a setting here."""

_KINDS = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}
_KINDS |= {"array": "a list", "object": "a table"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, as a reader is told of it."""

    name: str
    value: Any
    """As TOML has it; None: not set."""
    takes: str
    """What it can be, in words."""
    meaning: str
    is_set: bool = True
    """Whether it is part of the configuration; an option that was left out has its plug-in's default."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of settings; that of the root has no name."""

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def tables(config: Config) -> Iterator[Table]:
    """Yield all tables of a configuration, each before those inside it, and each of its plug-ins' in its place.

    Raises:
        UsageError: a plug-in that it names cannot be had.
    """
    yield from _tables(config, "", config)


def commented_toml(config: Config) -> str:
    """The whole configuration as TOML that `--config` reads back to an equal one."""
    lines = [*_comment(HEAD), ""]
    for table in tables(config):
        if table.name:
            lines += [*_comment(table.meaning), f"[{table.name}]"]
        for setting in table.settings:
            lines += _comment(f"{setting.meaning} [{setting.takes}]")
            value = "" if setting.value is None else literal(setting.value)
            lines.append(f"{'' if setting.is_set and value else '# '}{_key(setting.name)} = {value}".rstrip())
        lines.append("")
    return "\n".join(lines)


def json_schema() -> dict[str, Any]:
    """A JSON schema of a configuration file, in which the options of built-in plug-ins are described."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    for place, kind in OPTION_TABLES.items():
        owner, _, field = place.rpartition(".")
        holder = definitions[type(getattr(Config(), owner)).__name__] if owner else schema
        known = [found for name in OPTIONS[kind] if (found := options_of(kind, name)) is not None]
        for table in known:
            definitions[table.__name__] = table.model_json_schema()
        others = {"type": "object", "description": "Options of a plug-in."}
        choices = [*({"$ref": f"#/$defs/{table.__name__}"} for table in known), others]
        described = {key: value for key, value in holder["properties"][field].items() if key == "description"}
        holder["properties"][field] = {**described, "anyOf": choices}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "ttrl-pop"}


def literal(value: Any) -> str:
    """A value as TOML has it, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {literal(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(literal, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").removesuffix("\n")


def _tables(section: Section, name: str, config: Config, meaning: str = "") -> Iterator[Table]:
    schema = type(section).model_json_schema()
    values = section.model_dump(mode="json")
    settings, inner = [], []
    for field, info in type(section).model_fields.items():
        place = f"{name}.{field}".lstrip(".")
        value = getattr(section, field)
        told = " ".join((info.description or "").split())
        if isinstance(value, Section):
            inner.append(_tables(value, place, config, told))
        elif place in OPTION_TABLES:
            inner.append(_options(place, value, config, told))
        else:
            settings.append(Setting(field, values[field], _takes(schema["properties"][field]), told))
    yield Table(name, meaning, tuple(settings))
    for tables_inside in inner:
        yield from tables_inside


def _options(place: str, given: Mapping[str, Any], config: Config, meaning: str) -> Iterator[Table]:
    """The table of a plug-in's options: those that are given, and those that are left to their defaults."""
    kind = OPTION_TABLES[place]
    name = config.population.name if kind == "population" else config.backend
    known = options_of(kind, name)
    defaults = _defaults(known) if known else {}
    schema = known.model_json_schema().get("properties", {}) if known else {}
    settings = []
    for option in [*defaults, *(option for option in given if option not in defaults)]:
        told = " ".join(schema.get(option, {}).get("description", f"An option of {name}.").split())
        value = given.get(option, defaults.get(option))
        settings.append(Setting(option, value, _takes(schema.get(option, {})), told, option in given))
    yield Table(place, f"{meaning} These are those of {name}.", tuple(settings))


def _defaults(options: type[BaseModel]) -> dict[str, Any]:
    fields = {name: field.get_default(call_default_factory=True) for name, field in options.model_fields.items()}
    return options.model_construct(**fields).model_dump(mode="json")


def _takes(schema: Mapping[str, Any]) -> str:
    """What a property of a JSON schema can be, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_takes(part) for part in schema["anyOf"] if part.get("type") != "null"))
    if "enum" in schema:
        return " or ".join(map(literal, schema["enum"]))
    if "const" in schema:
        return literal(schema["const"])
    if schema.get("format") == "date":
        return "a date"
    words = _KINDS.get(schema.get("type", ""), "anything")
    bounds = (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "up to"),
        ("exclusiveMaximum", "below"),
    )
    limits = [f"{word} {schema[key]:g}" for key, word in bounds if key in schema and schema[key] < LARGEST]
    return " ".join([words, *limits])


def _key(name: str) -> str:
    return tomli_w.dumps({name: 0}).removesuffix(" = 0\n")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")


# --- hints ---


def hint(key: str, model: type[BaseModel], tree: Mapping[str, Any]) -> str | None:
    """The known key that `key` most likely stands for: one of that name in another table or another trainer, else the
    most alike.

    Args:
        key: dotted.
        model: what knows the keys; a `Config` knows those of the options of built-in plug-ins, too.
        tree: what was to become of it.
    """
    known = _known_keys(model) + (_option_keys(tree) if model is Config else [])
    by_name: dict[str, str] = {}
    for full in known:
        by_name.setdefault(full.rpartition(".")[2], full)
    name = key.rpartition(".")[2]
    if name in by_name:
        return by_name[name]
    if model is Config and name in ELSEWHERE:
        return ELSEWHERE[name]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    named = difflib.get_close_matches(name, by_name, n=1)
    if near and named and _alike(name, named[0]) > _alike(key, near[0]):
        return by_name[named[0]]
    return near[0] if near else next((by_name[n] for n in named), None)


def _alike(word: str, other: str) -> float:
    return difflib.SequenceMatcher(None, other, word).ratio()


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _option_keys(tree: Mapping[str, Any]) -> list[str]:
    """Keys of the options of the population and the backend that are named, where they are built in: nothing else is
    imported for a hint."""
    table = tree.get("population")
    default = Config()
    population = table.get("name", default.population.name) if isinstance(table, Mapping) else default.population.name
    named = (
        ("population", population, "population.options."),
        ("backend", tree.get("backend", "hf"), "backend_options."),
    )
    keys = []
    for kind, name, prefix in named:
        module, _, attribute = OPTIONS[kind].get(str(name), "").partition(":")
        if module:
            keys += _known_keys(getattr(importlib.import_module(module), attribute), prefix)
    return keys
