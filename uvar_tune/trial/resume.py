"""Where an attempt begins: the λ that run, the checkpoint it continues from, the weights of another trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uvar_tune.config.schema import LAMBDAS, Config, ModelConfig
from uvar_tune.errors import ConfigError
from uvar_tune.objective import weights_for_shares
from uvar_tune.specs import TrialSpec
from uvar_tune.tracking.metrics_log import MetricsLog
from uvar_tune.training import Checkpoint, differences, latest_valid, load_checkpoint, require_same
from uvar_tune.trial.factory import new_var
from uvar_tune.trial.scoring import gradient_shares_at

_TRAINED = ("data", "tokenizer", "model", "loss")  # `train` itself compares its own settings
_STATE = ("images", "hyperparameters", "optimizer", "window", "task")  # what it goes on from


class InfeasibleTrial(Exception):
    """No λ below its limit moves the share of the gradient that was asked for."""


def resolve_lambdas(
    config: Config, spec: TrialSpec, vqvae, device, log: MetricsLog | None = None
) -> tuple[Config, dict[str, float]]:
    """Convert λ given as gradient shares (`loss.lambda_unit: share`) to plain λ (docs/method.md).

    The shares are measured at the predictions of the study's baseline, a network of the architecture in the baseline's
    own configuration, also if the space searches the architecture.

    Args:
        config: of the trial.
        spec: names the baseline and the shared artifacts.
        vqvae: the tokenizer.
        device: to measure on.
        log: rank 0's metrics log, which records the architecture and the shares at λ = 1.

    Returns:
        The configuration with plain λ, and those λ by name; {} if λ is given as it is.

    Raises:
        InfeasibleTrial: no λ below its limit moves the requested share.
        ConfigError: the baseline has no valid checkpoint.
    """
    if config.loss.lambda_unit != "share":
        return config, {}
    plain = config.model_copy(update={"loss": config.loss.baseline()})
    if any(config.loss.weights):
        checkpoint = _newest_checkpoint(spec.baseline_directory)
        model = ModelConfig.model_validate(checkpoint.config["model"])
        own = config.model_copy(update={"model": model})
        baseline = new_var(own, vqvae, spec.assets.num_classes, seed=0, empty=True).to(device)
        baseline.load_state_dict(checkpoint.ema_state or checkpoint.var_state)
        shares = gradient_shares_at(plain, spec.assets, baseline.eval(), vqvae, device)
        if log is not None:
            log.event("gradient_shares", baseline_model=model.model_dump(mode="json"), shares=shares)
        try:
            plain = plain.model_copy(update={"loss": weights_for_shares(config.loss, shares)})
        except ConfigError as error:
            raise InfeasibleTrial(str(error)) from None
    return plain, {name: plain.get(name) for name in LAMBDAS}


def best_available_weights(trial_directory: str) -> dict[str, Any]:
    """The weights of a trial that are scored: of its newest valid checkpoint, the averaged ones if there are any.

    Raises:
        ConfigError: it has no valid checkpoint.
    """
    checkpoint = _newest_checkpoint(trial_directory)
    return checkpoint.ema_state or checkpoint.var_state


def _newest_checkpoint(trial_directory: str) -> Checkpoint:
    path = latest_valid(Path(trial_directory) / "checkpoints", on_skip=lambda path, why: None)
    if path is None:
        raise ConfigError("this trial has no valid checkpoint any more", where=trial_directory)
    return load_checkpoint(path)


def broadcast_choice(choose: Callable[[], Path | None], recorder, device: torch.device) -> Path | None:
    """The checkpoint that rank 0, who has the recorder, chooses, on every rank: until rank 0 is the only one that
    writes there, a worker of an earlier attempt may still add another.
    """
    choice = [choose() if recorder is not None else None]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(choice, src=0, device=device)
    return choice[0]


def resume(checkpoints: Path, var, recorder, asked: dict[str, Any]):
    """Bring ``var`` to the newest checkpoint that it can be brought to; its training state, None where there is none.

    Raises:
        ConfigError: it was trained under other settings than those ``asked``; the difference is shown.
    """
    read: dict[Path, Checkpoint] = {}

    def check(path: Path, *, training_state: bool) -> None:
        read[path] = _read(path, var, asked)

    def skipped(path: Path, why: str) -> None:
        if recorder:
            recorder.event("log", text=f"checkpoint {path.name} is not used: {why}")

    found = broadcast_choice(
        lambda: latest_valid(checkpoints, on_skip=skipped, training_state=True, check=check),
        recorder,
        next(var.parameters()).device,
    )
    if found is None:
        return None
    checkpoint = read.get(found) or _read(found, var, asked)
    require_same(_trained(checkpoint.config), _trained(asked), where=f"checkpoint of {checkpoint.images:,} images")
    var.load_state_dict(checkpoint.var_state)
    if recorder:
        recorder.event("resumed", images=checkpoint.images)
        recorder.event("log", text=f"continues at {checkpoint.images:,} images")
    return checkpoint.training_state


def _read(path: Path, var, asked: dict[str, Any]) -> Checkpoint:
    """A checkpoint that ``var`` can go on from, or one of other settings than those ``asked``, which is the user's to
    settle.

    Raises:
        ConfigError: it is damaged, or not what its own settings make.
    """
    checkpoint = load_checkpoint(path, training_state=True)
    for section in _TRAINED:
        if not isinstance(checkpoint.config.get(section), dict):
            raise ConfigError(f"config.yaml has no section {section!r}", where=str(path))
    state = checkpoint.training_state or {}
    if missing := [key for key in _STATE if key not in state]:
        raise ConfigError(f"training.pt holds no {missing[0]!r}", where=str(path))
    if not differences(_trained(checkpoint.config), _trained(asked)):
        require_shapes(checkpoint.var_state, var.state_dict(), str(path))
        if checkpoint.ema_state is not None:
            require_shapes(checkpoint.ema_state, var.state_dict(), str(path))
    return checkpoint


def _trained(tree: dict[str, Any]) -> dict[str, Any]:
    return {section: tree[section] for section in _TRAINED}


def require_shapes(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], where: str) -> None:
    """ConfigError that names the first tensor in which ``weights`` differ from those ``wanted``."""
    found, expected = ({name: tuple(value.shape) for name, value in state.items()} for state in (weights, wanted))
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            raise ConfigError(f"{name} has shape {found.get(name)}, expected {expected.get(name)}", where=where)
