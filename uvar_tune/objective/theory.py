"""The statements of §3 as code: what the terms of the loss measure, in closed form and float64.

Shapes: M and N points, V codes, D dimensions.
"""

from __future__ import annotations

import numpy as np
import torch

from uvar_tune.errors import ConfigError


def total_variation(p_V: torch.Tensor, q_V: torch.Tensor) -> torch.Tensor:
    """½‖p − q‖₁, which is W1 under the 0–1 cost (§3.2, remark)."""
    return 0.5 * (p_V.double() - q_V.double()).abs().sum(-1)


def wasserstein_1(p_M: torch.Tensor, q_N: torch.Tensor, cost_MN: torch.Tensor) -> float:
    """The minimum over couplings of p and q of the mean cost (§3.2), by linear programming, for M·N up to about 10⁴.

    With d0 of the codes (``codebook_kernel.distances``) as cost it is W1 on the simplex. With W1 between the supports
    of two distributions over distributions as cost it is the lifted, second-order W1.

    Args:
        p_M: probabilities.
        q_N: probabilities.
        cost_MN: cost ≥ 0 of moving mass from m to n.

    Raises:
        ConfigError: not probabilities, or a cost of another shape.
    """
    from scipy.optimize import linprog

    p, q, cost = (np.asarray(x, dtype=np.float64) for x in (p_M, q_N, cost_MN))
    for name, values in (("p", p), ("q", q)):
        if values.ndim != 1 or (values < 0).any() or abs(values.sum() - 1.0) > 1e-6:
            raise ConfigError(f"sum {values.sum():.6g}, minimum {values.min():.6g}: probabilities sum to 1", where=name)
    if cost.shape != (len(p), len(q)):
        raise ConfigError(f"shape {cost.shape}, expected {(len(p), len(q))}", where="cost")
    rows = np.kron(np.eye(len(p)), np.ones(len(q)))
    columns = np.kron(np.ones(len(p)), np.eye(len(q)))
    # The last marginal follows from the others; its rounding error could make the program infeasible.
    conditions, sums = np.concatenate([rows, columns[:-1]]), np.concatenate([p / p.sum(), (q / q.sum())[:-1]])
    return float(linprog(cost.ravel(), A_eq=conditions, b_eq=sums, bounds=(0, None)).fun)


def _root(matrix_DD: torch.Tensor, name: str) -> torch.Tensor:
    """The square root of a symmetric positive semi-definite matrix."""
    if not torch.allclose(matrix_DD, matrix_DD.mT):
        raise ConfigError("a covariance is symmetric", where=name)
    values_D, vectors_DD = torch.linalg.eigh(matrix_DD)
    if float(values_D.min()) < -1e-10 * max(1.0, float(values_D.max())):
        raise ConfigError(f"eigenvalue {float(values_D.min()):.4g}: a covariance has none below 0", where=name)
    return (vectors_DD * values_D.clamp_min(0.0).sqrt()) @ vectors_DD.mT


def gaussian_wasserstein_2(
    mean_D: torch.Tensor, covariance_DD: torch.Tensor, other_mean_D: torch.Tensor, other_covariance_DD: torch.Tensor
) -> torch.Tensor:
    """W2² between Gaussians: ‖μ − μ⋆‖² + Tr(Σ + Σ⋆ − 2(Σ^½ Σ⋆ Σ^½)^½), the last the Bures term (Prop. 3.1).

    At equal means in one dimension it is (√a − √b)² of the variances: the discrepancy ``wasserstein`` (Prop. 3.2).

    Raises:
        ConfigError: a covariance that is not symmetric or has a negative eigenvalue.
    """
    mean_D, other_mean_D = mean_D.double(), other_mean_D.double()
    covariance_DD, other_covariance_DD = covariance_DD.double(), other_covariance_DD.double()
    root_DD, other_root_DD = _root(covariance_DD, "covariance"), _root(other_covariance_DD, "other_covariance")
    # Tr (Σ^½ Σ⋆ Σ^½)^½ is the nuclear norm of Σ⋆^½ Σ^½, whose singular values need no second root of rounding errors.
    cross = torch.linalg.svdvals(other_root_DD @ root_DD).sum()
    return (mean_D - other_mean_D).square().sum() + covariance_DD.trace() + other_covariance_DD.trace() - 2.0 * cross


def _concentration(alpha_V: torch.Tensor) -> torch.Tensor:
    alpha_V = alpha_V.double()
    if alpha_V.ndim != 1 or not bool((alpha_V > 0).all()) or not bool(torch.isfinite(alpha_V).all()):
        raise ConfigError(f"{alpha_V.tolist()}: the parameters of a Dirichlet are finite and > 0", where="alpha")
    return alpha_V


def dirichlet_moments(alpha_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Moments of Q = Dir(α), the second-order distribution of §3.3, with α0 = Σ α.

    Returns:
        The mean θ̄ = α/α0 (V,), the variance θ̄(1 − θ̄)/(α0 + 1) of each coordinate (V,), and their sum
        E‖θ − θ̄‖² = (1 − ‖θ̄‖²)/(α0 + 1), the spread of Q around its mean.

    Raises:
        ConfigError: a parameter that is not finite and > 0.
    """
    alpha_V = _concentration(alpha_V)
    mean_V = alpha_V / alpha_V.sum()
    variance_V = mean_V * (1.0 - mean_V) / (alpha_V.sum() + 1.0)
    return mean_V, variance_V, (1.0 - mean_V.square().sum()) / (alpha_V.sum() + 1.0)


def dirichlet_expected_entropy(alpha_V: torch.Tensor) -> torch.Tensor:
    """E_Q[H(θ)] = ψ(α0 + 1) − Σ_v θ̄_v ψ(α_v + 1) for Q = Dir(α), in nats (§3.3): the aleatoric part of H(θ̄).

    Raises:
        ConfigError: a parameter that is not finite and > 0.
    """
    alpha_V = _concentration(alpha_V)
    mean_V = alpha_V / alpha_V.sum()
    return torch.digamma(alpha_V.sum() + 1.0) - (mean_V * torch.digamma(alpha_V + 1.0)).sum()
