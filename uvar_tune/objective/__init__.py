"""The loss L = L_CE + λ1·L_2nd + λ2·L_SE (Eq. 6): terms, references, class partitions, theory. Plain PyTorch."""

from uvar_tune.objective.discrepancy import DISCREPANCIES
from uvar_tune.objective.dispersion import DISPERSIONS
from uvar_tune.objective.first_order import FIRST_ORDER
from uvar_tune.objective.gradient_shares import gradient_shares, lambda_for_share, weights_for_shares
from uvar_tune.objective.loss import CompositeLoss, composite_loss, fused_composite_loss
from uvar_tune.objective.prepared import LossTerms, PreparedLoss, prepare_loss
from uvar_tune.objective.reference import REFERENCES, Reference, build_reference
from uvar_tune.objective.semantic_entropy import PARTITIONS, build_classes
from uvar_tune.objective.theory import (
    dirichlet_expected_entropy,
    dirichlet_moments,
    gaussian_wasserstein_2,
    total_variation,
    wasserstein_1,
)
from uvar_tune.objective.validate import NORMALIZATIONS

__all__ = [
    "DISCREPANCIES",
    "DISPERSIONS",
    "FIRST_ORDER",
    "NORMALIZATIONS",
    "PARTITIONS",
    "REFERENCES",
    "CompositeLoss",
    "LossTerms",
    "PreparedLoss",
    "Reference",
    "build_classes",
    "build_reference",
    "composite_loss",
    "dirichlet_expected_entropy",
    "dirichlet_moments",
    "fused_composite_loss",
    "gaussian_wasserstein_2",
    "gradient_shares",
    "lambda_for_share",
    "prepare_loss",
    "total_variation",
    "wasserstein_1",
    "weights_for_shares",
]
