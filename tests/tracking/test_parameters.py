"""Parameters of a run: searched values and effective ones."""

from uvar_tune.config.schema import Config
from uvar_tune.tracking.parameters import effective_parameters, run_parameters

SHARES = Config.model_validate(
    {
        "loss": {"lambda_unit": "share"},
        "space": {
            "loss.lambda_1": {"role": "scientific", "type": "float", "low": 0.001, "high": 0.3, "log": True},
            "inference.cfg_scale": {"role": "inference", "type": "float", "low": 0, "high": 4},
        },
    }
)


def test_searched_share_and_effective_weight(store, log_lines):
    """MLflow's parameters cannot change: under one name the weight, known later, would be lost without a word."""
    asked = run_parameters(SHARES, {"loss.lambda_1": 0.05})
    tracker = store.tracker("shares")
    tracker.start_study({}, {})
    tracker.start_trial(1, store.trial("shares", 1), asked, {"uvar.kind": "search"})
    tracker.finish_trial(
        1, "FINISHED", {"fid": 3.0}, effective_parameters({"loss.lambda_1": 0.75, "loss.lambda_2": 0.0})
    )
    tracker.finish_study("FINISHED")
    assert tracker.close(60) and log_lines == []
    [run] = store.runs("uvar.trial", "shares/1")
    shown = store.params(run)
    assert (shown["loss.lambda_unit"], shown["loss.lambda_1"]) == ("share", "0.05")
    assert (shown["effective.loss.lambda_1"], shown["effective.loss.lambda_2"]) == ("0.75", "0.0")
