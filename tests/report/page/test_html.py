"""The page lets nothing in and nothing out, whatever models and files wrote."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fakes import CASES, text_of
from report.page.test_data import record, visit

from ttrl_pop.report.page import html
from ttrl_pop.report.page.data import page_data, readable
from ttrl_pop.report.page.html import SCRIPTS, page, policy
from ttrl_pop.report.page.record import Answer, ProblemRecord, RunRecord, Voice

OURS = Path(html.__file__).parent

MARKUP = (
    "<script>document.documentElement.dataset.pwned = 1</script>",
    "</script><script>document.documentElement.dataset.pwned = 2</script>",
    '<img src="http://127.0.0.1:9/x" onerror="document.documentElement.dataset.pwned = 3">',
    "<svg onload=document.documentElement.dataset.pwned=4>",
    "<!--<script>",
    "]]><![CDATA[",
    "</title><base href=//example.org>",
    "</style><link rel=stylesheet href=//example.org/x>",
    '<meta http-equiv="refresh" content="0;url=//example.org">',
    "<iframe srcdoc='<script>parent.document.documentElement.dataset.pwned=5</script>'></iframe>",
    '"onmouseover="document.documentElement.dataset.pwned=6',
    "javascript:document.documentElement.dataset.pwned=7",
    "{policy}{title}{style}{data}{library}{script}",
    "\\u003c/script\\u003e",
    "__proto__",
    "constructor",
    "${document.documentElement.dataset.pwned=8}",
    "\u2028document.documentElement.dataset.pwned=9\u2029",
    "\u202egnp.exe\u202c",
)
"""Texts that would do something in a page that takes them for more than texts."""

HOSTILE = [*MARKUP, *(text_of(case)[:300] for case in json.loads((CASES / "hostile.json").read_text()))]


def hostile_run(texts: list[str]) -> RunRecord:
    """A run in which every text that a model or a file can write is one of these."""

    def at(index: int) -> str:
        return texts[index % len(texts)]

    problems = tuple(
        ProblemRecord(
            at(i),
            at(i + 1),
            at(i + 2),
            tuple(
                visit(
                    step,
                    at(i + step),
                    right=False,
                    votes=tuple((at(i + step + j), 2) for j in range(3)),
                    voices=tuple(Voice(j, at(i + step + j), at(i + step + j + 1), j == 0) for j in range(2)),
                )
                for step in (1, 2)
            ),
            before=Answer(at(i + 3), 0.5, False, 0.25),
            after=Answer(at(i + 4), 0.5, True, 0.25),
        )
        for i in range(len(texts))
    )
    return record(
        *problems,
        steps=2,
        name=at(2),
        settings={at(0): at(1), "model": at(3), "population.minds": at(4)},
        metrics=({"step": 1, "vote/agreement": at(0), "alarm": at(1)}, {"step": 2, "vote/agreement": 0.5, at(5): 1}),
        notices=(at(0), at(2)),
        intervals={at(3): {1: (0.1, 0.2)}},
    )


class Parts(HTMLParser):
    """Tags with their attributes in order, and the text in each script, style and title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self._open: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in self.inside:
            self._open = tag
            self.inside[tag].append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.inside[self._open][-1] += data


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(page(page_data([hostile_run(HOSTILE), hostile_run(HOSTILE[::-1])], {"a": "<b>"})))


def test_hostile_texts_change_no_tag_and_no_attribute(parts):
    plain = Parts(page(page_data([record(ProblemRecord("p", "?", None, (visit(1),)))], {})))
    assert parts.tags == plain.tags


def test_the_page_refers_to_nothing(parts):
    for tag, attributes in parts.tags:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action", "style")
        ]
        assert attributes.get("href") in (None, "data:,"), tag
    assert not re.search(r"url\(|@import|expression", parts.inside["style"][0])


def test_the_policy_names_the_scripts_and_the_style_of_the_page_and_allows_nothing_else(parts):
    first = next(attributes for tag, attributes in parts.tags if "http-equiv" in attributes)
    assert [tag for tag, _ in parts.tags[:4]] == ["html", "head", "meta", "meta"], (
        "the policy stands before what it is for"
    )
    rules = dict(rule.strip().partition(" ")[::2] for rule in first["content"].split(";"))
    data, *scripts = parts.inside["script"]
    assert {rules[name] for name in ("default-src", "connect-src", "base-uri", "form-action")} == {"'none'"}
    assert rules["script-src"].split() == [hashed(script) for script in scripts]
    assert rules["style-src"].split() == [hashed(style) for style in parts.inside["style"]]
    assert rules["img-src"] == "data:"
    assert [attributes for tag, attributes in parts.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {"type": "module"},
        {"type": "module"},
    ]
    assert json.loads(data)["live"] is False


def test_a_live_page_asks_its_own_server_alone():
    assert policy(live=True) == policy(live=False).replace("connect-src 'none'", "connect-src 'self'")


def test_all_texts_are_in_the_data(parts):
    told = json.loads(parts.inside["script"][0])
    prompts = {row["prompt"] for row in told["problems"]}
    assert prompts == {readable(text) for text in HOSTILE}
    assert len(told["runs"][0]["rows"]) >= len(HOSTILE)
    assert told["runs"][0]["figures"]["vote/agreement"] == [None, 0.5]


def test_no_script_of_ours_makes_markup_or_code_of_a_text():
    sources = "\n".join((OURS / name).read_text() for name in SCRIPTS)
    found = re.findall(
        r"\w*(?:HTML|document\.write|\beval\b|new Function|setTimeout\(\s*[\"'`]|srcdoc|DOMParser)\w*", sources
    )
    assert found == []


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
