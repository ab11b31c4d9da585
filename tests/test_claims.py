import io
import sys

import numpy as np
import pytest
import torch

from metarl_lib.claims import claim


@pytest.mark.parametrize("holds", [True, np.True_, np.array([True]), torch.tensor(True), torch.tensor([1.0]) > 0])
def test_a_true_claim_prints_its_sentence(holds, capsys):
    claim("SARSA earns more", holds)
    assert capsys.readouterr().out == "✓ SARSA earns more\n"


@pytest.mark.parametrize("holds", [False, np.False_, torch.tensor(False), torch.tensor(float("nan")) < 0])
def test_a_false_claim_raises_its_sentence(holds, capsys):
    with pytest.raises(AssertionError, match=r"^SARSA earns more$"):
        claim("SARSA earns more", holds)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "holds, given",
    [
        (torch.tensor([True, False]), r"Tensor of shape \(2,\)"),
        (np.array([True, True]), r"ndarray of shape \(2,\)"),
        (torch.zeros(0, dtype=torch.bool), r"Tensor of shape \(0,\)"),
        (torch.tensor(0.3), r"Tensor of shape \(\)"),
        (0.3, "0.3"),
        (1, "1"),
        ("yes", "'yes'"),
        (None, "None"),
    ],
)
def test_what_is_no_truth_value_is_refused(holds, given):
    with pytest.raises(TypeError, match=f"holds must be one truth value, got {given}"):
        claim("something", holds)


def test_a_console_without_the_tick_still_gets_the_sentence(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n")
    monkeypatch.setattr(sys, "stdout", console)
    claim("θ moves", True)
    console.flush()
    assert console.buffer.getvalue() == b"[ok] ? moves\n"
