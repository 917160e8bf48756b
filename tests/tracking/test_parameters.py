"""Which parameters a run shows: what was asked for, and beside it what was decided of it later."""

from uvar_tune.config.schema import Config
from uvar_tune.tracking.parameters import run_parameters, that_ran

SHARES = Config.model_validate(
    {
        "loss": {"lambda_unit": "share"},
        "space": {
            "loss.lambda_1": {"role": "scientific", "type": "float", "low": 0.001, "high": 0.3, "log": True},
            "inference.cfg_scale": {"role": "inference", "type": "float", "low": 0, "high": 4},
        },
    }
)


def test_the_share_that_was_asked_for_and_the_weight_that_ran_are_both_shown(place, said):
    """MLflow's parameters cannot change: under one name the weight, known later, would be lost without a word."""
    asked = run_parameters(SHARES, {"loss.lambda_1": 0.05})
    sink = place.sink("shares")
    sink.start_study({}, {})
    sink.watch_trial(1, place.trial("shares", 1), asked, {"uvar.kind": "search"})
    sink.finish_trial(1, "FINISHED", {"fid": 3.0}, that_ran({"loss.lambda_1": 0.75, "loss.lambda_2": 0.0}))
    sink.finish_study("FINISHED")
    assert sink.close(60) and said == []
    [run] = place.runs("uvar.trial", "shares/1")
    shown = place.params(run)
    assert (shown["loss.lambda_unit"], shown["loss.lambda_1"]) == ("share", "0.05")
    assert (shown["ran.loss.lambda_1"], shown["ran.loss.lambda_2"]) == ("0.75", "0.0")
