"""What an attempt finds in its directory: how an earlier one ended, and the checkpoints of which one is gone on from."""

from __future__ import annotations

import json

import pytest
import torch

from uvar_tune.errors import ConfigError
from uvar_tune.specs import OutcomeKind, TrialOutcome, crash
from uvar_tune.tracking.metrics_log import open_metrics_log
from uvar_tune.training import save_checkpoint
from uvar_tune.trial.outcome_file import read_crash, read_outcome, write_crash, write_outcome
from uvar_tune.trial.resume import resume

SEEDS, FILES = {"training": 1}, ("outcome.json", "crash.json")
COMPLETE, LOST = TrialOutcome(kind=OutcomeKind.COMPLETE), crash("OSError", "worker lost")
WHOLE = {"seeds": SEEDS, "attempt": 1, "outcome": LOST.to_dict()}
ASKED = {"data": {"name": "digits"}, "tokenizer": {"scales": (1, 2)}, "model": {"depth": 2}, "loss": {"lambda_1": 0.0}}
STATE = {"hyperparameters": {}, "optimizer": {}, "window": {}, "task": {}}


def found(directory):
    return read_outcome(directory, SEEDS), read_crash(directory, 1)


@pytest.mark.parametrize(
    "left",
    [
        pytest.param("[" * 10**5, id="deep"),
        pytest.param(json.dumps(WHOLE) + " " * 2**24, id="long"),
        json.dumps({"seeds": SEEDS, "attempt": 1}),
        json.dumps({**WHOLE, "outcome": []}),
        json.dumps({**WHOLE, "outcome": {"images": 1}}),
        json.dumps({**WHOLE, "outcome": {"kind": "complete", "images": "many"}}),
        json.dumps({**WHOLE, "outcome": {"kind": "crashed"}}),
        json.dumps({**WHOLE, "outcome": {"kind": "complete", "scores": {"fid": None}}}),
        json.dumps({**WHOLE, "outcome": {"kind": "complete", "values": 1.0}}),
    ],
)
def test_an_end_that_is_not_ours_is_none(tmp_path, left):
    for name in FILES:
        (tmp_path / name).write_text(json.dumps(WHOLE))
    assert all(found(tmp_path))
    for name in FILES:
        (tmp_path / name).write_text(left)
    assert found(tmp_path) == (None, None)


@pytest.mark.parametrize("leads_to", ["/proc/self/mem", "/"])
def test_unreadable_outcome_is_replaced(tmp_path, leads_to):
    """Reading the first is an input/output error, as of a bad sector."""
    for name in FILES:
        (tmp_path / name).symlink_to(leads_to)
    assert found(tmp_path) == (None, None)
    write_outcome(tmp_path, SEEDS, COMPLETE)
    write_crash(tmp_path, 1, LOST)
    assert all(found(tmp_path))


@pytest.fixture
def going_on(tmp_path):
    """Saves checkpoints of 64 and of 128 images, the latter with other content, and goes on: (images, weight, what was said)."""
    (tmp_path / "vae.pth").write_bytes(b"weights")

    def save(images: int, *, config=ASKED, state=STATE, **content) -> None:
        save_checkpoint(
            tmp_path / "checkpoints" / f"{images:012d}",
            tokenizer={"path": str(tmp_path / "vae.pth")},
            config=config,
            training_state={"images": images, **state},
            **{"var_state": {"weight": torch.full((1, 2), float(images))}, **content},
        )

    def go(**newest):
        save(64)
        save(128, **newest)
        var = torch.nn.Linear(2, 1, bias=False)
        with open_metrics_log(tmp_path) as recorder:
            state = resume(tmp_path / "checkpoints", var, recorder, ASKED)
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        return state["images"], var.weight.flatten().tolist(), [line["text"] for line in lines if line["kind"] == "log"]

    return go


def test_the_newest_is_gone_on_from(going_on):
    assert going_on() == (128, [128.0, 128.0], ["continues at 128 images"])


@pytest.mark.parametrize(
    ("newest", "why"),
    [
        ({"var_state": {"weight": torch.ones(1, 3)}}, "weight has shape (1, 3), expected (1, 2)"),
        ({"var_state": {"weight": torch.ones(1, 2), "bias": torch.ones(1)}}, "bias has shape (1,), expected None"),
        ({"ema_state": {}}, "weight has shape None, expected (1, 2)"),
        ({"config": {key: ASKED[key] for key in ("tokenizer", "model", "loss")}}, "config.yaml has no section 'data'"),
        ({"config": {**ASKED, "model": 2}}, "config.yaml has no section 'model'"),
        ({"config": []}, "config.yaml: holds no mapping"),
        ({"state": {**STATE, "ema": {"weight": torch.ones(1, 3)}}}, "weight has shape (1, 3), expected (1, 2)"),
        ({"state": {"hyperparameters": {}}}, "training.pt holds no 'optimizer'"),
    ],
)
def test_unusable_checkpoint_is_skipped_with_a_line(going_on, newest, why):
    images, weight, said = going_on(**newest)
    assert (images, weight) == (64, [64.0, 64.0])
    assert said == [f"checkpoint 000000000128 is not used: {why}", "continues at 64 images"]


def test_checkpoint_of_other_settings_is_refused(going_on):
    """If it were skipped, a change of the settings would restart the trial silently."""
    with pytest.raises(ConfigError, match="checkpoint of 128 images: cannot be continued .*: model.depth was 3, now 2"):
        going_on(config={**ASKED, "model": {"depth": 3}}, var_state={"weight": torch.ones(1, 3)})
