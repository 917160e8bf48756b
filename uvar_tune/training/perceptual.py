"""LPIPS as a term of the tokenizer's loss: torchmetrics provides the network, the backbone's weights must be present.

Nothing is downloaded: a training on many nodes would fetch the same file many times, and fail without a network.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from uvar_tune.errors import ConfigError, choose, first_line

# network → (name in torchvision, its weights there, minimum image size in pixels)
NETWORKS = {
    "vgg": ("vgg16", "VGG16_Weights", 16),
    "alex": ("alexnet", "AlexNet_Weights", 31),
    "squeeze": ("squeezenet1_1", "SqueezeNet1_1_Weights", 17),
}


def open_lpips(network: str, *, image_size: int) -> nn.Module:
    """The frozen network: (images, images), both (B, 3, S, S) in [-1, 1] → LPIPS of each pair (B, 1, 1, 1).

    Args:
        network: `vgg` (common for training tokenizers), `alex` or `squeeze`.
        image_size: S in pixels.

    Raises:
        ConfigError: unknown network, images too small for it, or its weights are not in torch.hub's cache.
    """
    choose(network, NETWORKS, "LPIPS network", "tokenizer.lpips_network")
    minimum = NETWORKS[network][2]
    if image_size < minimum:
        raise ConfigError(
            f"{network!r} takes images of at least {minimum} px, these have {image_size}",
            where="tokenizer.lpips_network",
            nearest=None if network == "vgg" else "vgg",
        )
    path, url = weights_file(network)
    if not path.is_file():
        raise ConfigError(
            f"LPIPS needs the weights of {NETWORKS[network][0]} at {path} on every node: put {url} there, or set "
            "tokenizer.lpips_weight=0",
            where="tokenizer.lpips_weight",
        )
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity(net_type=network).net.eval().requires_grad_(False)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"holds no weights of {NETWORKS[network][0]} ({first_line(error)}); put {url} there", where=str(path)
        ) from None


def weights_file(network: str) -> tuple[Path, str]:
    """(path in torch.hub's cache, download URL)."""
    import torchvision

    url = getattr(torchvision.models, NETWORKS[network][1]).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1], url
