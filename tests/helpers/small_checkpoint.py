"""An untrained VAR of 8 × 8 pixels and four classes, as a checkpoint with its tokenizer."""

from __future__ import annotations

from pathlib import Path

from uvar_tune.config.schema import ModelConfig, TokenizerConfig
from uvar_tune.model import VAR, VQVAE
from uvar_tune.training import save_checkpoint, save_tokenizer

CLASSES = ["cat", "dog", "owl", "fox"]


def write_checkpoint(trial: Path, tokenizer: Path, classes=CLASSES) -> Path:
    """Write ``trial/checkpoints/64`` and its tokenizer; the checkpoint's directory."""
    scales = (1, 2, 4)
    vqvae = VQVAE(TokenizerConfig(vocab_size=24, code_dim=8, channels=16, channel_multipliers=(1, 2), scales=scales))
    model = ModelConfig(depth=2, width=32, heads=2)
    var = VAR(model, scales=scales, vocab_size=24, code_dim=8, num_classes=4)
    save_tokenizer(tokenizer, vqvae)
    save_checkpoint(
        trial / "checkpoints" / "64",
        var_state=var.state_dict(),
        config={
            "data": {"image_size": 8},
            "tokenizer": {"scales": [1, 2, 4], "channel_multipliers": [1, 2]},
            "model": {"depth": 2, "width": 32, "heads": 2},
            "inference": {"cfg_scale": 2.5},
        },
        tokenizer={"path": str(tokenizer)},
        training_state={"images": 64},
        class_names=classes,
    )
    return trial / "checkpoints" / "64"
