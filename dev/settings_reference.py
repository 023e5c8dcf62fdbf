"""Print docs/SETTINGS.md, made from the texts below all settings. A test compares the two.

python dev/settings_reference.py > docs/SETTINGS.md
"""

from collections.abc import Iterator

from ttrl_pop.config import Config
from ttrl_pop.plugins import OPTIONS
from ttrl_pop.settings import OPTION_TABLES, Table, literal, tables

INTRODUCTION = """# Settings

All that `--config` and `--set` take, with what each is by itself. `ttrl-pop config` prints the same as TOML with
comments, `ttrl-pop config --schema` as a JSON schema for editors, and `ttrl-pop config --preset NAME` what a preset
makes of it. A run keeps all of them, with their values, in RUN/config.toml. What is not set (`None`) is left out of a
file.

Sources, each of which wins over those before it: defaults, `--preset`, each `--config`, flags, `--set`.

This page is the output of `python dev/settings_reference.py > docs/SETTINGS.md`.
"""


def every_table() -> Iterator[Table]:
    """The tables of a configuration, those of each built-in plug-in among them."""
    for table in tables(Config()):
        if table.name not in OPTION_TABLES:
            yield table
            continue
        kind = OPTION_TABLES[table.name]
        for name in OPTIONS[kind]:
            chosen = {"population": {"name": name}} if kind == "population" else {"backend": name}
            yield from (found for found in tables(Config.model_validate(chosen)) if found.name == table.name)


def page() -> str:
    """The reference as Markdown, a section for each table."""
    parts = [INTRODUCTION]
    for table in every_table():
        parts.append(f"## {f'`[{table.name}]`' if table.name else 'At the top'}\n")
        parts += [f"{table.meaning}\n"] if table.meaning else []
        parts.append("| setting | takes | by itself | |\n|---|---|---|---|")
        for setting in table.settings:
            value = "not set" if setting.value is None else f"`{literal(setting.value)}`"
            cells = (f"`{setting.name}`", setting.takes, value, setting.meaning)
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
