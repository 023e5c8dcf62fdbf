"""`ttrl-pop letters`: rows on stdout, how far it is on stderr."""

import pytest
from cli.commands import rows_of, ttrl


def test_free_bits_without_a_regime_are_refused_by_name() -> None:
    refused = ttrl("letters", "--kappa", 0.5, code=2)
    assert "--kappa must be one of 0.015625, 0.125, 1, 8 (bits a token), got 0.5" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.slow
def test_a_regime_tells_of_each_quarter_and_prints_a_row() -> None:
    done = ttrl("letters", "--kappa", 0.015625, "--seed", 5, "--steps", 90)
    (row,) = rows_of(done.stdout)
    assert (row["kappa"], row["seed"], row["steps"]) == (1 / 64, 5, 90)
    assert row["gap_bits"] == pytest.approx((row["ce_prior"] - row["ce_posterior"]) * 65 * 1.4427, abs=1e-3)
    assert row["alive"] is (row["gap_bits"] >= 0.2)
    assert [found["temperature"] for found in row["temperatures"]] == [0.6, 1.0]
    assert {len(text) for text in row["same"] + row["fresh"]} == {66}
    assert len({text[0] for text in row["same"]}) == 1
    lines = done.stderr.splitlines()
    assert lines == [f"kappa 1/64  seed 5  step {step} of 90" for step in (40, 60, 80, 90)]
