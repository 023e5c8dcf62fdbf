"""Extractors of a user's own."""

from pathlib import Path

import pytest


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_extract.py").write_text(
        "def whole(text, finish_reason): return text\ndef number(text, finish_reason): return 3\nnothing = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
