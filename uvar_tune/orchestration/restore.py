"""A checkpoint back as models: what `generate`, `evaluate` and others start from."""

from __future__ import annotations

from pathlib import Path

from uvar_tune.config import Config
from uvar_tune.errors import ConfigError
from uvar_tune.orchestration.build import new_var
from uvar_tune.training import latest_valid, load_checkpoint, load_tokenizer


def restore(path: str | Path, *, tokenizer: str | None = None, device: str = "cpu"):
    """(VAR, VQVAE, description) of a checkpoint directory, or of a trial's directory (its newest valid checkpoint).

    Raises:
        ConfigError: not a checkpoint, a corrupt one, or its tokenizer is not where it was.
    """
    directory = find(Path(path))
    checkpoint = load_checkpoint(directory)
    config = Config.model_validate(checkpoint.config)
    place = tokenizer or checkpoint.tokenizer["path"]
    if not Path(place).exists():
        raise ConfigError(f"the tokenizer of this checkpoint is not at {place}; give its place with --tokenizer",
                          where=str(directory))
    vqvae = load_tokenizer(place).to(device).eval().requires_grad_(False)
    var = new_var(config, vqvae, checkpoint.var_state["class_emb.weight"].shape[0] - 1, seed=0)
    var.load_state_dict(checkpoint.var_state)
    return var.to(device).eval(), vqvae, f"{directory} ({checkpoint.images:,} images)"


def find(path: Path) -> Path:
    """The checkpoint directory meant by ``path``."""
    if (path / "manifest.json").exists():
        return path
    for parent in (path / "checkpoints", path):
        if parent.is_dir():
            found = latest_valid(parent, on_skip=lambda skipped, why: None)
            if found is not None:
                return found
    raise ConfigError("is not a checkpoint: a directory with manifest.json and var.safetensors, or a trial's directory",
                      where=str(path))
