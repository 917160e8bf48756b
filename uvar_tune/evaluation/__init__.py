"""Evaluation: fidelity, likelihood, diversity, robustness, each number with its protocol. Plain PyTorch.

Importing this costs no more than torch; torch-fidelity, torchmetrics and SciPy are imported where they are called.
"""

from uvar_tune.evaluation.calibration import auroc, expected_calibration_error, mean_corruption_error, ood_score
from uvar_tune.evaluation.diversity import code_statistics, density_coverage, pairwise_ssim
from uvar_tune.evaluation.features import (
    DigitClassifier,
    classify,
    conditional_accuracy,
    load_classifier,
    save_classifier,
    to_uint8,
    train_classifier,
)
from uvar_tune.evaluation.fidelity import (
    EXTRACTORS,
    FIDELITY_METRICS,
    Extractor,
    Features,
    FidelityWarning,
    check_extractor,
    fidelity_scores,
    open_extractor,
    reference_features,
    scores_from_features,
)
from uvar_tune.evaluation.image_grid import grid, save_grid
from uvar_tune.evaluation.likelihood import class_log_likelihoods, likelihood, token_scores
from uvar_tune.evaluation.metrics import FAMILIES, MetricInputs, evaluate
from uvar_tune.evaluation.protocol import (
    Origin,
    Protocol,
    ProtocolMismatch,
    fidelity_protocol,
    held_out_protocol,
    require_equal,
)
from uvar_tune.evaluation.robustness import (
    Corrupted,
    corrupted_sets,
    corruption_errors,
    mean_error,
    ood_detection,
    out_of_distribution_sets,
    read_out,
    tokenize,
)
from uvar_tune.evaluation.scorecard import scorecard
from uvar_tune.evaluation.test_folders import class_folders, imagenet_c

__all__ = [
    "EXTRACTORS",
    "FAMILIES",
    "FIDELITY_METRICS",
    "Corrupted",
    "DigitClassifier",
    "Extractor",
    "Features",
    "FidelityWarning",
    "MetricInputs",
    "Origin",
    "Protocol",
    "ProtocolMismatch",
    "auroc",
    "check_extractor",
    "class_folders",
    "class_log_likelihoods",
    "classify",
    "code_statistics",
    "conditional_accuracy",
    "corrupted_sets",
    "corruption_errors",
    "density_coverage",
    "evaluate",
    "expected_calibration_error",
    "fidelity_protocol",
    "fidelity_scores",
    "out_of_distribution_sets",
    "grid",
    "held_out_protocol",
    "imagenet_c",
    "likelihood",
    "load_classifier",
    "mean_corruption_error",
    "mean_error",
    "ood_detection",
    "ood_score",
    "open_extractor",
    "pairwise_ssim",
    "read_out",
    "reference_features",
    "require_equal",
    "save_classifier",
    "save_grid",
    "scorecard",
    "scores_from_features",
    "to_uint8",
    "token_scores",
    "tokenize",
    "train_classifier",
]
