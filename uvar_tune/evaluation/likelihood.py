"""Likelihood of held-out tokens under a VAR: NLL of tokens, images and scales, class read-out, calibration.

Networks are in eval mode and every label is kept (no label dropout). `likelihood` turns the per-image results of the
other functions into named numbers.

Shapes: N images, B chunk, L positions, K scales, V codes, Y classes, T temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from uvar_tune.errors import ConfigError, Diverged
from uvar_tune.evaluation.calibration import (
    best_of_grid,
    class_calibration,
    expected_calibration_error,
    temperature_grid,
)
from uvar_tune.model.scales import boundaries, positions, split

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TokenScores:
    """Scores of each token at one temperature.

    Attributes:
        nll_NL: −log p(token), in nats.
        confidence_NL: the largest probability.
        correct_NL: whether the token has it.
    """

    nll_NL: Tensor
    confidence_NL: Tensor
    correct_NL: Tensor


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the block; each module's mode is restored afterwards."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def teacher_forced(
    var, vqvae, tokens_NL, labels_N, *, chunk: int = 64, device="cpu", progress: Progress | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits_BLV float32, tokens_BL) of consecutive chunks, on ``device``; to be called inside `evaluating`.

    Chunks have one fixed size, the last one padded, because kernels round by batch shape.

    Raises:
        ConfigError: tokens that do not fit the VAR's scales.
        Diverged: logits that are not finite.
    """
    labels_N = torch.as_tensor(labels_N).long()
    for tokens_BL, index_B, count in _chunks(var, tokens_NL, chunk, device):
        teacher_input = vqvae.teacher_input(split(tokens_BL, var.scales))
        logits_BLV = var(labels_N[index_B].to(device), teacher_input)[:count].float()
        if not torch.isfinite(logits_BLV).all():
            raise Diverged("the VAR's logits on held-out tokens are not finite")
        yield logits_BLV, tokens_BL[:count]
        if progress:
            progress(int(index_B[count - 1]) + 1, len(tokens_NL))


def token_scores(
    var,
    vqvae,
    tokens_NL,
    labels_N,
    *,
    temperature: float = 1.0,
    chunk: int = 64,
    device="cpu",
    progress: Progress | None = None,
) -> TokenScores:
    """Scores of held-out tokens under their labels, with logits divided by ``temperature``; on the CPU."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluating(var, vqvae):
        for logits_BLV, tokens_BL in teacher_forced(
            var, vqvae, tokens_NL, labels_N, chunk=chunk, device=device, progress=progress
        ):
            log_p_BLV = (logits_BLV / temperature).log_softmax(-1)
            best_BL, guess_BL = log_p_BLV.max(-1)
            nll_BL = -log_p_BLV.gather(-1, tokens_BL[..., None])[..., 0]
            parts.append((nll_BL.double().cpu(), best_BL.exp().cpu(), (guess_BL == tokens_BL).cpu()))
    return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def tempered_nll(var, vqvae, tokens_NL, labels_N, *, temperatures_T: Tensor, chunk: int = 64, device="cpu") -> Tensor:
    """Each image's mean −log p(token) at each temperature: (N, T) float64, on the CPU."""
    parts: list[Tensor] = []
    with evaluating(var, vqvae):
        for logits_BLV, tokens_BL in teacher_forced(var, vqvae, tokens_NL, labels_N, chunk=chunk, device=device):
            target_BL = logits_BLV.gather(-1, tokens_BL[..., None])[..., 0]
            columns = [(logits_BLV / t).logsumexp(-1) - target_BL / t for t in temperatures_T.tolist()]
            parts.append(torch.stack([nll_BL.double().mean(1) for nll_BL in columns], 1).cpu())
    return torch.cat(parts)


def class_log_likelihoods(
    var, vqvae, tokens_NL, *, chunk: int = 64, device="cpu", progress: Progress | None = None
) -> Tensor:
    """The log-likelihood log p(R | y) in nats of each image under each class: (N, Y) float64, on the CPU."""
    classes = var.num_classes
    parts: list[Tensor] = []
    with evaluating(var, vqvae):
        for tokens_BL, index_B, count in _chunks(var, tokens_NL, chunk, device):
            teacher_input = vqvae.teacher_input(split(tokens_BL, var.scales))
            columns = []
            for label in range(classes):
                logits_BLV = var(torch.full((len(tokens_BL),), label, device=device), teacher_input).float()
                target_BL = logits_BLV.gather(-1, tokens_BL[..., None])[..., 0] - logits_BLV.logsumexp(-1)
                columns.append(target_BL.double().sum(1)[:count])
            parts.append(torch.stack(columns, 1).cpu())
            if progress:
                progress(int(index_B[count - 1]) + 1, len(tokens_NL))
    log_likelihood_NY = torch.cat(parts)
    if not torch.isfinite(log_likelihood_NY).all():
        raise Diverged("the VAR's likelihood of held-out tokens is not finite")
    return log_likelihood_NY


def token_metrics(scores: TokenScores, scales: tuple[int, ...]) -> dict[str, float]:
    """`nll_token` (nats), `nll_image` (its sum over the image), `ece_token`, `nll_token/scale_k` (k from 1)."""
    metrics = {
        "nll_token": float(scores.nll_NL.mean()),
        "nll_image": float(scores.nll_NL.sum(1).mean()),
        "ece_token": expected_calibration_error(scores.confidence_NL, scores.correct_NL),
    }
    for k, (start, end) in enumerate(boundaries(scales), start=1):
        metrics[f"nll_token/scale_{k}"] = float(scores.nll_NL[:, start:end].mean())
    return metrics


def likelihood(
    var, vqvae, tokens_NL, labels_N, *, chunk: int = 64, device="cpu", progress: Progress | None = None
) -> dict[str, float]:
    """All likelihood metrics of held-out tokens R with labels y.

    Args:
        var: the transformer.
        vqvae: the tokenizer.
        tokens_NL: integers, tensor or array.
        labels_N: 0 … Y-1.
        chunk: images processed at once.
        device: of the networks.
        progress: called with (images done, images) during the class read-out, the longest part.

    Returns:
        The metrics of `token_metrics`; `nll_token_tempered`, `ece_token_tempered` and `temperature_token` at the
        temperature of lowest NLL, which separate a gain in calibration from one that temperature alone gives;
        `accuracy` (argmax_y p(R | y)), `nll_class`, `ece_class` and the same tempered.
    """
    settings = {"chunk": chunk, "device": device}
    scales = var.scales
    labels_N = torch.as_tensor(labels_N).long()
    metrics = token_metrics(token_scores(var, vqvae, tokens_NL, labels_N, **settings), scales)
    grid_T = temperature_grid()
    nll_NT = tempered_nll(var, vqvae, tokens_NL, labels_N, temperatures_T=grid_T, **settings)
    temperature = best_of_grid(grid_T, nll_NT.mean(0))
    tempered = token_metrics(token_scores(var, vqvae, tokens_NL, labels_N, temperature=temperature, **settings), scales)
    if tempered["nll_token"] > metrics["nll_token"]:  # by rounding, if 1 is the best
        temperature, tempered = 1.0, metrics
    metrics |= {f"{name}_tempered": tempered[name] for name in ("nll_token", "ece_token")}
    metrics["temperature_token"] = temperature
    log_likelihood_NY = class_log_likelihoods(var, vqvae, tokens_NL, progress=progress, **settings)
    return metrics | class_calibration(log_likelihood_NY, labels_N)


def _chunks(var, tokens_NL, chunk: int, device) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(tokens_BL, index_B, count) with B = ``chunk`` always; rows from ``count`` on repeat the first image."""
    length, vocabulary = positions(var.scales), var.vocab_size
    if len(tokens_NL) == 0 or tokens_NL.shape[1] != length:
        raise ConfigError(
            f"tokens of shape {tuple(tokens_NL.shape)} do not fit a VAR of {length} positions "
            f"(scales {list(var.scales)})",
            where="tokens",
        )
    for start in range(0, len(tokens_NL), chunk):
        index_B = torch.arange(start, min(start + chunk, len(tokens_NL)))
        count = len(index_B)
        index_B = torch.cat([index_B, torch.zeros(chunk - count, dtype=torch.long)])
        tokens_BL = torch.as_tensor(np.asarray(tokens_NL[index_B.numpy()]).astype(np.int64)).to(device)
        if int(tokens_BL.max()) >= vocabulary:
            raise ConfigError(
                f"token {int(tokens_BL.max())} is outside the VAR's vocabulary of {vocabulary}", where="tokens"
            )
        yield tokens_BL, index_B, count
