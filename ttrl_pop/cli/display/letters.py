"""A regime of the letters experiment, as the paper's figure 4 shows it: texts of one code beside others."""

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ttrl_pop.text import safe

LONGEST = 66
"""Signs of a text that are shown: all there are."""


def regime(row: Mapping[str, Any]) -> RenderableType:
    """A row of `ttrl-pop letters` for a person: the regime in two lines, then its texts."""
    found = row["temperatures"][0]
    bits = "bit" if row["kappa"] <= 1 else "bits"
    head = Text.assemble((f"κ = {fraction(row['kappa'])} {bits} a token", "bold"), f"   seed {row['seed']}   ")
    if row["alive"]:
        head.append(f"codes are worth {row['gap_bits']:.1f} bits a text")
    else:
        head.append("dead: the code is not used", "bold yellow")
    figures = Text(
        f"temperature {found['temperature']:g}   well-formed {_share(found['well_formed'])}"
        f"   at one place {_share(found['near_same'])} of one code, {_share(found['near_other'])} of two"
        f"   noise alike {_share(found['correlation_same'])} of one code, {_share(found['correlation_other'])} of two"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("texts of one code", no_wrap=True)
    table.add_column("texts of a fresh code each", no_wrap=True)
    for same, fresh in zip(row["same"], row["fresh"], strict=True):
        table.add_row(_text(same, "bright_blue"), _text(fresh, "green"))
    return Group(head, figures, table)


def fraction(kappa: float) -> str:
    """`1/64` for 0.015625, `8` for 8."""
    return f"1/{1 / kappa:g}" if kappa < 1 else f"{kappa:g}"


def _share(value: float) -> str:
    """Two decimals, and no sign before zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _text(text: str, style: str) -> Text:
    """A text in which letters stand out before blanks, and noise before both."""
    shown = Text(safe(text, LONGEST), style="bright_black")
    for found in re.finditer(r"[A-Z>]+|!+", shown.plain):
        shown.stylize("bright_yellow" if found[0].startswith("!") else f"bold {style}", *found.span())
    return shown
