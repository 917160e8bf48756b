"""A checkpoint as networks, and the pipeline that draws images from them.

Legend: N images, S image size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from uvar_tune.config.loading import validate
from uvar_tune.config.schema import Config
from uvar_tune.data import resolve_label
from uvar_tune.errors import ConfigError, choose
from uvar_tune.io.safe_load import check_size
from uvar_tune.model import VAR, VQVAE, SamplingSettings, box_mask, generate, inpaint, load_official, start_from
from uvar_tune.training import Checkpoint, load_checkpoint, tokenizer_hash
from uvar_tune.trial.factory import find_checkpoint, new_var, open_tokenizer

if TYPE_CHECKING:
    from PIL import Image

_MIN_TENSORS_PER_BLOCK = 10  # of a VAR
__all__ = ["VARPipeline", "find_checkpoint", "open_networks", "resolve_device", "restore", "stored_config"]


class VARPipeline:
    """A VAR with its tokenizer, ready to draw images.

    Args:
        var: the transformer, in evaluation mode.
        vqvae: its tokenizer.
        settings: sampling settings that a call does not override.

    Attributes:
        num_classes: number of labels.
        class_names: in the order of the labels; empty if unknown.
        image_size: side of an image in pixels.
    """

    def __init__(self, var: VAR, vqvae: VQVAE, *, settings: SamplingSettings | None = None):
        self.var, self.vqvae = var, vqvae
        self.settings = settings or SamplingSettings()
        self.class_names = var.class_names
        self.num_classes, self.image_size = var.num_classes, vqvae.image_size

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, tokenizer: str | Path | None = None, device: str = "auto"
    ) -> VARPipeline:
        """The pipeline of a checkpoint directory, or of a trial's directory (its newest valid checkpoint).

        Args:
            path: the directory.
            tokenizer: the tokenizer, if it has moved.
            device: auto (a GPU if there is one), cpu, cuda, cuda:1, …

        Raises:
            ConfigError: not a checkpoint, a corrupted one, or its tokenizer is missing or another one.
        """
        directory = find_checkpoint(Path(path))
        var, vqvae, _ = restore(directory, tokenizer=tokenizer, device=resolve_device(device))
        config = stored_config(load_checkpoint(directory), directory)
        settings = SamplingSettings.from_config(config.inference)
        return cls(var, vqvae, settings=settings)

    @classmethod
    def from_official(cls, vae: str | Path, var: str | Path, *, device: str = "auto") -> VARPipeline:
        """The pipeline of the official files of tokenizer and transformer.

        Raises:
            ConfigError: what `load_official` refuses.
        """
        transformer, vqvae, _ = open_networks(None, vae=str(vae), var=str(var), device=resolve_device(device))
        return cls(transformer, vqvae)

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.var.class_emb.weight.device

    def __call__(
        self,
        labels: int | str | Sequence[int | str] | None = None,
        *,
        count: int = 1,
        seeds: int | Sequence[int] = 0,
        output: str = "tensor",
        progress: Callable[[int, int], None] | None = None,
        **sampling: float,
    ) -> torch.Tensor | list[Image.Image]:
        """Draw ``count`` images of each label.

        Args:
            labels: 0 … num_classes−1, num_classes (unconditional) or class names; all classes by default.
            count: images per label.
            seeds: one per image, or the first of consecutive seeds. A seed gives the same image in any call.
            output: ``tensor`` or ``pil``.
            progress: called with (images done, images).
            sampling: cfg_scale, cfg_ramp, top_k, top_p, temperature; those of `settings` by default.

        Returns:
            uint8 (N, 3, S, S), or N PIL images; the images of a label are consecutive.

        Raises:
            ConfigError: a label, a number of seeds or a setting out of range.
        """
        labels = range(self.num_classes) if labels is None else [labels] if isinstance(labels, (int, str)) else labels
        labels_N = torch.as_tensor([self._label(label) for label in labels]).repeat_interleave(count)
        images, _ = generate(
            self.var,
            self.vqvae,
            labels_N,
            self._sampling_settings(sampling),
            seeds=_consecutive(seeds, len(labels_N)),
            progress=progress,
        )
        return _as_output(images, output)

    def inpaint(
        self,
        image: Image.Image | torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
        box: tuple[int, int, int, int] | None = None,
        label: int | str | None = None,
        count: int = 1,
        seeds: int | Sequence[int] = 0,
        **options: Any,
    ) -> torch.Tensor | list[Image.Image]:
        """Sample a part of an image and keep the rest.

        Args:
            image: a PIL image (another size is shrunk and centre-cropped), or (3, S, S), uint8 or in [0, 1].
            mask: bool (S, S), true where the image is sampled.
            box: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, sampled inside; instead of a mask.
            label: number or name of the class to sample; unconditional by default.
            count: completions.
            seeds: as in a call.
            options: ``output`` and the sampling settings, as in a call.

        Returns:
            uint8 (N, 3, S, S), or N PIL images. The known part is as the tokenizer reconstructs it.

        Raises:
            ConfigError: both or neither of mask and box, or what `inpaint` refuses.
        """
        if (mask is None) == (box is None):
            raise ConfigError("give either mask or box", where="mask")
        output = options.pop("output", "tensor")
        known_SS = box_mask(box, self.image_size, known="outside") if mask is None else ~mask
        images, _ = inpaint(
            self.var,
            self.vqvae,
            self._as_unit_image(image),
            known_SS,
            [self.num_classes if label is None else self._label(label)] * count,
            self._sampling_settings(options),
            seeds=_consecutive(seeds, count),
        )
        return _as_output(images, output)

    def _label(self, label: int | str) -> int:
        if isinstance(label, str):
            return resolve_label(label, self.class_names, self.num_classes, where="label")
        return label

    def _sampling_settings(self, sampling: dict[str, float]) -> SamplingSettings:
        unknown = sampling.keys() - SamplingSettings.__dataclass_fields__.keys()
        if unknown:
            raise TypeError(f"unknown sampling setting {sorted(unknown)[0]!r}")
        return dataclasses.replace(self.settings, **sampling)

    def _as_unit_image(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        if not torch.is_tensor(image):
            image = torch.from_numpy(np.array(fit_image(image.convert("RGB"), self.image_size))).permute(2, 0, 1)
        return image.float() / 255 if image.dtype == torch.uint8 else image


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """An image of size x size as it is; any other shrunk (`shrink`) and centre-cropped, like a validation image."""
    from uvar_tune.data.folder import shrink

    if image.size == (size, size):
        return image
    image = shrink(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def open_networks(
    checkpoint: str | None,
    *,
    vae: str | None = None,
    var: str | None = None,
    tokenizer: str | None = None,
    device: str = "cpu",
):
    """(VAR, VQVAE, description) of a checkpoint directory, or of official files.

    Raises:
        ConfigError: both or neither of the two given, one official file without the other, or what `restore` and
            `load_official` refuse.
    """
    if vae is None and var is None:
        if checkpoint is None:
            raise ConfigError(
                "a checkpoint is missing: its directory, or official files by --vae and --var", where="command line"
            )
        return restore(checkpoint, tokenizer=tokenizer, device=device)
    if vae is None or var is None:
        raise ConfigError(
            "official files come in pairs: the tokenizer's by --vae and the transformer's by --var",
            where="--var" if vae is None else "--vae",
        )
    for value, name in ((checkpoint, "a checkpoint directory"), (tokenizer, "--tokenizer")):
        if value is not None:
            raise ConfigError(f"{name} ({value}) and official files: give one or the other", where="--vae and --var")
    check_device(device)
    vqvae, transformer = load_official(vae, var)
    vqvae = vqvae.to(device).eval().requires_grad_(False)
    return transformer.to(device).eval().requires_grad_(False), vqvae, f"{var}, tokenizer {vae} (official files)"


def restore(path: str | Path, *, tokenizer: str | Path | None = None, device: str = "cpu") -> tuple[VAR, VQVAE, str]:
    """(VAR, VQVAE, description) of a checkpoint directory, or of a trial's directory (its newest valid checkpoint).

    Raises:
        ConfigError: not a checkpoint, a corrupted one, or its tokenizer is missing or another one.
    """
    check_device(device)
    directory = find_checkpoint(Path(path))
    checkpoint = load_checkpoint(directory)
    config = stored_config(checkpoint, directory)
    tokenizer_path = tokenizer or checkpoint.tokenizer["path"]
    if not Path(tokenizer_path).exists():
        raise ConfigError(
            f"the tokenizer of this checkpoint is not at {tokenizer_path}; give its path with --tokenizer",
            where=str(directory),
        )
    if tokenizer_hash(tokenizer_path) != checkpoint.tokenizer["sha256"]:
        raise ConfigError(
            f"{tokenizer_path} is not the tokenizer that this checkpoint was trained with", where=str(directory)
        )
    vqvae = open_tokenizer(tokenizer_path, config).to(device).eval().requires_grad_(False)
    weights = checkpoint.ema_state or checkpoint.var_state
    classes = weights.get("class_emb.weight")
    if classes is None or classes.ndim != 2:
        raise ConfigError("var.safetensors has no class embedding: not a VAR of this package", where=str(directory))
    if _MIN_TENSORS_PER_BLOCK * config.model.depth > len(weights):  # before so many modules are built
        raise ConfigError(
            f"its settings describe {str(config.model.depth):.20} blocks, its weights are {len(weights):,} tensors",
            where=str(directory),
        )
    with torch.device("meta"):
        check_size(new_var(config, vqvae, len(classes) - 1, seed=0, empty=True), weights, str(directory))
    var = new_var(config, vqvae, len(classes) - 1, seed=0, empty=True)
    start_from(var, weights, where=f"{directory} with the tokenizer {tokenizer_path}")
    if len(checkpoint.class_names) == var.num_classes:
        var.class_names = checkpoint.class_names
    return var.to(device).eval(), vqvae, f"{directory} ({checkpoint.images:,} images)"


def stored_config(checkpoint: Checkpoint, directory: Path) -> Config:
    """The configuration that a checkpoint was trained with; ConfigError if it is invalid."""
    return validate(checkpoint.config, str(directory / "config.yaml"))


def resolve_device(device: str) -> str:
    """The device itself; for ``auto`` the GPU, or the CPU if PyTorch sees no GPU.

    Raises:
        ConfigError: PyTorch does not know the device or does not see it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def check_device(device: str) -> None:
    """ConfigError unless PyTorch can compute there."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"{device!r} is not a device (cpu, cuda, cuda:1, …)", where="--device", nearest="cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{device!r} needs a GPU, and PyTorch sees none here", where="--device", nearest="cpu")


def _consecutive(seeds: int | Sequence[int], count: int) -> list[int]:
    return [seeds + i for i in range(count)] if isinstance(seeds, int) else list(seeds)


def _as_output(images_N3SS: torch.Tensor, output: str) -> torch.Tensor | list[Image.Image]:
    choose(output, ("tensor", "pil"), "output", "output")
    pixels_N3SS = images_N3SS.mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
    if output == "tensor":
        return pixels_N3SS
    from PIL import Image

    return [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in pixels_N3SS.permute(0, 2, 3, 1).numpy()]
