"""An exported folder, opened by vLLM as it stands, is the run's mind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exports import Tiny
from fakes import ROOT, save_tiny
from vllm_models import WIDTH, soften

CASES = [
    ("llama", "plain", False),
    ("gemma3", "code", True),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("llama", "code", True),
            ("qwen2", "plain", False),
            ("phi3", "plain", False),
            ("gpt2", "plain", True),
            ("qwen3", "code", True),
            ("mistral", "code", True),
        ]
    ),
]
"""Family, form, and whether mu of the final norm learned."""


@pytest.mark.parametrize(("family", "form", "final_mu"), CASES)
def test_a_folder_that_vllm_opens_is_the_runs_mind(family: str, form: str, final_mu: bool, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family, width=WIDTH)
    if family == "gemma3":
        soften(base)
    tiny = Tiny(base, family, final_mu)
    found = tiny.evidence()
    folder = tiny.export(form, tmp_path / "out")
    asked = json.dumps([[witness.prompt_ids, witness.completion_ids] for witness in found.witnesses])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "vllm_opened.py"), str(folder), str(form == "code")],
        input=asked,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert found.moved > 0.1
    for witness, (logprobs, greedy) in zip(found.witnesses, rows, strict=True):
        own_KV = torch.log_softmax(witness.logits_KV, dim=-1)
        own = own_KV.gather(1, torch.tensor(witness.completion_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), own, rtol=0, atol=1e-4)
        assert tuple(greedy) == witness.completion_ids
