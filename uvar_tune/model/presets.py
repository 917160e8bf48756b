"""The sizes that have a name: the official models, one smaller, and the digits."""

from __future__ import annotations

from typing import Any

from uvar_tune.errors import choose
from uvar_tune.model.scales import OFFICIAL_SCALES, SCALES_512

_OFFICIAL_VQVAE = {"vocab_size": 4096, "code_dim": 32, "channels": 160, "channel_multipliers": (1, 1, 2, 2, 4)}


def _official(depth: int, scales: tuple[int, ...] = OFFICIAL_SCALES[10], shared_aln: bool = False) -> dict[str, Any]:
    return {
        "vqvae": {**_OFFICIAL_VQVAE, "scales": scales},
        "var": {"depth": depth, "width": 64 * depth, "heads": depth, "num_classes": 1000, "shared_aln": shared_aln},
    }


PRESETS: dict[str, dict[str, Any]] = {
    **{f"d{depth}": _official(depth) for depth in (12, 16, 20, 24, 30)},  # 256 px
    "d36-s": _official(36, SCALES_512, shared_aln=True),  # 512 px
    "digits": {
        "vqvae": {
            "vocab_size": 128,
            "code_dim": 16,
            "channels": 32,
            "channel_multipliers": (1, 2, 4),
            "scales": (1, 2, 3, 4),
        },
        "var": {"depth": 2, "width": 96, "heads": 4, "num_classes": 10},
    },
}


def preset(
    name: str, *, vocab_size: int | None = None, num_classes: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments of `VQVAE`, arguments of `VAR`) of a preset, with another vocabulary or number of classes where given.

    Raises:
        ConfigError: no preset of this name.
    """
    found = PRESETS[choose(name, PRESETS, "preset", "preset")]
    vqvae, var = dict(found["vqvae"]), dict(found["var"])
    vqvae["vocab_size"] = vocab_size or vqvae["vocab_size"]
    var["num_classes"] = num_classes or var["num_classes"]
    return vqvae, {**var, **{key: vqvae[key] for key in ("scales", "vocab_size", "code_dim")}}
