"""Where an attempt begins: the λ that run, the checkpoint it continues from, the weights of another trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uvar_tune.config.schema import LAMBDAS, Config
from uvar_tune.errors import ConfigError
from uvar_tune.objective import weights_for_shares
from uvar_tune.specs import TrialSpec
from uvar_tune.training import Checkpoint, differences, latest_valid, load_checkpoint, require_same
from uvar_tune.trial.factory import new_var
from uvar_tune.trial.scoring import gradient_shares_at

_TRAINED = ("data", "tokenizer", "model", "loss")  # `train` itself compares its own settings
_STATE = ("images", "hyperparameters", "optimizer", "window", "task")  # what it goes on from


class InfeasibleTrial(Exception):
    """No λ below its limit moves the share of the gradient that was asked for."""


def resolve_lambdas(config: Config, spec: TrialSpec, vqvae, device) -> tuple[Config, dict[str, float]]:
    """(the configuration with plain λ, those λ by name): under `lambda_unit: share` what moves the asked shares of the
    gradient at the baseline's predictions (docs/method.md); {} where λ is given as it is."""
    if config.loss.lambda_unit != "share":
        return config, {}
    plain = config.model_copy(update={"loss": config.loss.baseline()})
    if any(config.loss.weights):
        weights = best_available_weights(spec.baseline_directory)
        baseline = new_var(config, vqvae, spec.assets.num_classes, seed=0, empty=True).to(device)
        baseline.load_state_dict(weights)
        shares = gradient_shares_at(plain, spec.assets, baseline.eval(), vqvae, device)
        try:
            plain = plain.model_copy(update={"loss": weights_for_shares(config.loss, shares)})
        except ConfigError as error:
            raise InfeasibleTrial(str(error)) from None
    return plain, {name: plain.get(name) for name in LAMBDAS}


def best_available_weights(trial_directory: str) -> dict[str, Any]:
    """What was scored of a trial: its newest sound checkpoint, the averaged weights where there are any.

    Raises:
        ConfigError: it has none.
    """
    found = latest_valid(Path(trial_directory) / "checkpoints", on_skip=lambda path, why: None)
    if found is None:
        raise ConfigError("this trial has no sound checkpoint any more", where=trial_directory)
    checkpoint = load_checkpoint(found)
    return checkpoint.ema_state or checkpoint.var_state


def chosen(choose: Callable[[], Path | None], recorder, device: torch.device) -> Path | None:
    """The checkpoint that rank 0, who has the recorder, chooses, on every rank: until rank 0 is the only one that writes there,
    a worker of an earlier attempt may still add another."""
    told = [choose() if recorder is not None else None]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(told, src=0, device=device)
    return told[0]


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

    found = chosen(
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
    """A checkpoint that ``var`` can go on from, or one of other settings than those ``asked``, which is the user's to settle.

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
