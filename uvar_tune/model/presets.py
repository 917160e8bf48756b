"""Named model sizes: the official models, a smaller one, and the digits."""

from __future__ import annotations

from dataclasses import dataclass

from uvar_tune.config.schema import ModelConfig, TokenizerConfig
from uvar_tune.errors import choose
from uvar_tune.model.scales import OFFICIAL_SCALES, SCALES_512
from uvar_tune.model.var import VAR
from uvar_tune.model.vqvae import VQVAE


@dataclass(frozen=True)
class Preset:
    """Sizes of both networks; the methods build them with fresh weights from the global random state."""

    tokenizer: TokenizerConfig
    model: ModelConfig
    num_classes: int

    def build_vqvae(self) -> VQVAE:
        """The tokenizer."""
        return VQVAE(self.tokenizer)

    def build_var(self) -> VAR:
        """The transformer."""
        tokenizer = self.tokenizer
        return VAR(
            self.model,
            vocab_size=tokenizer.vocab_size,
            code_dim=tokenizer.code_dim,
            scales=tokenizer.scales,
            num_classes=self.num_classes,
        )


def _official(depth: int, scales: tuple[int, ...] = OFFICIAL_SCALES[10], shared_aln: bool = False) -> Preset:
    tokenizer = TokenizerConfig(
        vocab_size=4096, code_dim=32, channels=160, channel_multipliers=(1, 1, 2, 2, 4), scales=scales
    )
    return Preset(tokenizer, ModelConfig(depth=depth, shared_aln=shared_aln), num_classes=1000)


PRESETS: dict[str, Preset] = {
    **{f"d{depth}": _official(depth) for depth in (12, 16, 20, 24, 30)},  # 256 px
    "d36-s": _official(36, SCALES_512, shared_aln=True),  # 512 px
    "digits": Preset(TokenizerConfig(), ModelConfig(depth=2, width=96, heads=4), num_classes=10),  # 16 px
}


def preset(name: str, *, vocab_size: int | None = None, num_classes: int | None = None) -> Preset:
    """A preset by name.

    Args:
        name: one of `PRESETS`.
        vocab_size: another number of codes.
        num_classes: another number of classes.

    Raises:
        ConfigError: no preset of this name.
    """
    sizes = PRESETS[choose(name, PRESETS, "preset", "preset")]
    tokenizer = sizes.tokenizer if vocab_size is None else sizes.tokenizer.model_copy(update={"vocab_size": vocab_size})
    return Preset(tokenizer, sizes.model, num_classes or sizes.num_classes)
