"""``python -m uvar_tune.bench loss``: the sides compute the same loss, and the rows say where they were measured."""

from __future__ import annotations

import json

import torch

from uvar_tune.bench import loss
from uvar_tune.bench.__main__ import main


def test_sides_have_the_same_gradients():
    shape = {"batch": 2, "scales": (1, 2, 3), "vocabulary": 64, "width": 8, "code_dim": 4}
    gradients = {}
    for side in loss.SIDES:
        problem = loss._problem(shape, "cpu", "embedding", "wasserstein")
        loss._step(side, problem)
        gradients[side] = [leaf.grad for leaf in problem[0]]
    for fused, autograd, plain in zip(gradients["fused"], gradients["autograd"], gradients["plain_ce"], strict=True):
        torch.testing.assert_close(fused, autograd, rtol=1e-4, atol=1e-7)
        assert not torch.allclose(plain, autograd, rtol=1e-3)


def test_rows(capsys):
    assert main(["loss", "--small", "--json", "--repeats", "1"]) == 0
    rows = {row["side"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(loss.SIDES)
    for row in rows.values():
        assert row["busy_sec"] > 0 and row["wall_sec"] > 0 and row["threads"] == torch.get_num_threads()
        assert {"device", "load", "torch", "combination", "repeats", "length", "vocabulary"} <= set(row)
    assert rows["plain_ce"]["time_to_plain"] == rows["autograd"]["time_to_autograd"] == 1.0
