"""The notebook in examples/ runs as it stands, on TinyLM in place of the built-in model."""

from pathlib import Path

import pytest
from fakes import ROOT, save_tiny

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = ROOT / "examples" / "minds.ipynb"
BUILT_IN = 'model = "smollm2"'

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    tiny = f"model = {str(save_tiny(tmp_path / 'tiny'))!r}"
    first = next(cell for cell in notebook.cells if BUILT_IN in cell.source)
    first.source = first.source.replace(BUILT_IN, tiny)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    texts = ["".join(map(str, cell.get("outputs", []))) for cell in notebook.cells]
    assert "step 2: agreement" in "".join(texts)
    assert any("'plain'" in text and "greedy completions equal" in text for text in texts)


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
