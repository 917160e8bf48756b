"""Checks of a study before PyTorch and Ray are imported."""

from __future__ import annotations

from tests.helpers.log_lines import captured_log
from uvar_tune.commands.checks import check_study, few_samples
from uvar_tune.config.schema import Config
from uvar_tune.evaluation import EXTRACTORS
from uvar_tune.evaluation.features import FEATURES
from uvar_tune.metrics import FEATURE_WIDTHS


def config_of(samples, **evaluation):
    return Config.model_validate({"evaluation": {"extractor": "digits", "samples": samples, **evaluation}})


def test_fewer_samples_than_features_warn_once():
    with captured_log() as lines:
        check_study(config_of(64), ("search",))
        check_study(config_of(65), ("search",))
    assert [line for line in lines if "FID" in line] == [
        "warning: evaluation.samples 64: FID needs more images than the 64 features of 'digits', else its covariance is "
        "singular and it is biased upwards"
    ]
    assert few_samples(config_of(64, metrics=["kid"])) is None
    study = {"pruner": "median", "rungs": [640], "rung_samples": 32}
    rungs = config_of(65).model_copy(update={"study": config_of(65).study.model_validate(study)})
    assert few_samples(rungs).startswith("study.rung_samples 32:")
    assert "inception" in few_samples(config_of(2048, extractor="inception-v3-compat"))


def test_feature_widths_cover_the_networks():

    assert FEATURE_WIDTHS["digits"] == FEATURES and tuple(FEATURE_WIDTHS) == EXTRACTORS
