"""The page as one HTML text: style, data, charts' library and our scripts inside, and a policy that lets nothing else
in or out.

Texts of models and files stand in a data block, which no browser runs, with all markup escaped; the policy names each
script and the style by its hash, and allows no request. The library is what vl-convert bundles: Vega, Vega-Lite and
Vega-Embed, with Vega's interpreter, so that the policy need not allow code made of texts.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from ttrl_pop.errors import UsageError
from ttrl_pop.report.page.data import embedded

SCRIPTS = ("elements.js", "charts.js", "problems.js", "page.js")
"""Our scripts, which are run as one module in this order. The library is another module: neither sees the other's
names, but for `vegaEmbed`."""


def page(data: Mapping[str, Any], live: bool = False) -> str:
    """The page of `data`, as `page_data` makes it.

    Args:
        live: ask the server that the page is from for newer data, and for nothing else.

    Raises:
        UsageError: vl-convert is not there.
    """
    style, script, library = _ours("page.css"), _script(), _library()
    names = " · ".join(run["name"] for run in data["runs"]) or "no run"
    parts = {
        "policy": policy(live),
        "title": html.escape(f"{names} – ttrl-pop"),
        "style": style,
        "data": embedded({**data, "live": live}),
        "library": library,
        "script": script,
    }
    # All at once: what is put in is not looked through again.
    return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], _ours("page.html"))


def policy(live: bool) -> str:
    """The Content-Security-Policy of the page."""
    scripts = " ".join(_hash(script) for script in (_library(), _script()))
    server = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src {_hash(_ours('page.css'))}; img-src data:; "
        f"connect-src {server}; base-uri 'none'; form-action 'none'"
    )


@cache
def _library() -> str:
    try:
        import vl_convert
    except ImportError as error:
        raise UsageError("the page needs Vega-Altair and vl-convert. Install ttrl-pop[report].") from error
    library: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    if re.search("</script|<!--", library, re.IGNORECASE):
        raise RuntimeError("the bundle of Vega would end its script element")
    return library


@cache
def _script() -> str:
    return "\n".join(map(_ours, SCRIPTS))


@cache
def _ours(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
