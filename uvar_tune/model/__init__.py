"""Tokenizer, transformer and sampler of visual autoregressive modelling (VAR, Tian et al. 2024) in plain PyTorch.

    images ─ VQVAE.encode ─► tokens, coarse to fine ─ VQVAE.teacher_input ─► VAR ─► logits
    labels ─ generate ─► tokens ─ VQVAE.decode ─► images
    image, mask, label ─ inpaint ─► images

`load_official` and `save_official` exchange both networks with the official VAR release; `start_from` loads its
weights into a VAR that is trained further.
"""

from uvar_tune.model.editing import box_mask, inpaint
from uvar_tune.model.filtering import CFG_CONVENTION, filter_logits
from uvar_tune.model.official import load_official, save_official, start_from
from uvar_tune.model.presets import PRESETS, Preset, preset
from uvar_tune.model.sampling import Samples, SamplingSettings, generate
from uvar_tune.model.var import VAR
from uvar_tune.model.vqvae import VQVAE

__all__ = [
    "CFG_CONVENTION",
    "PRESETS",
    "Preset",
    "Samples",
    "SamplingSettings",
    "VAR",
    "VQVAE",
    "box_mask",
    "filter_logits",
    "generate",
    "inpaint",
    "load_official",
    "preset",
    "save_official",
    "start_from",
]
