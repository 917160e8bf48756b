"""A training step as `train` runs it: λ = 0 against λ1, λ2 > 0, from cached tokens and with tokenisation in each step.

With a checkout of the official code its step is measured as well. Every step includes loss, clipping and AdamW; ours
also reads the data and draws the noise of each image. The columns are those of the paper's cost table (Table 5):
parameters, batch, memory of a device, time of an epoch (1,281,167 images of ImageNet). Steps alternate, ours in a
process set up like a worker of a study, the official one in another. Times are medians of CPU seconds of the process,
one thread (on CUDA of wall seconds, in bf16). Memory is that of a step: weights, gradients, optimizer moments and
activations (on CUDA the allocator's peak).

Legend: B images, L positions.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from uvar_tune.bench.model import FULL, SMALL, _official_networks
from uvar_tune.config.schema import Config
from uvar_tune.data import ImageSet, build_token_cache
from uvar_tune.data.image_set import to_unit
from uvar_tune.errors import ConfigError
from uvar_tune.model import VQVAE
from uvar_tune.paper.step_cost import WARMUP_STEPS, step_memory, step_of, wait
from uvar_tune.specs import Assets
from uvar_tune.training import save_tokenizer
from uvar_tune.training.memory import keep_freed_memory
from uvar_tune.trial.factory import batch_loss, new_vqvae

EPOCH_IMAGES = 1_281_167
WEIGHTS = {"loss.lambda_1": 0.1, "loss.lambda_2": 0.1}
SIDES = {
    "baseline": {},
    "ours": {**WEIGHTS, "training.fused": "off"},
    "ours, fused": {**WEIGHTS, "training.fused": "on"},
}
TOKENS = ("cached", "each step")
Step = tuple[torch.nn.Module, Callable[[], Any]]  # the model, and a function that runs its next step


def run(*, small: bool = False, repeats: int = 7, official: str | None = None, device: str | None = None) -> list[dict]:
    """A row per side and source of tokens: images_per_sec, the columns of Table 5, and ratios of times.

    ``to_baseline`` is the time divided by that of the baseline with the same tokens, ``ratio`` the official step's time
    divided by this one.

    Args:
        small: a size that takes seconds.
        repeats: alternated steps of each side, after the warm-up.
        official: a checkout of FoundationVision/VAR.
        device: `cpu` or `cuda`; None is CUDA if available.

    Raises:
        ConfigError: ``official`` is not such a checkout.
    """
    if official is not None and not (Path(official) / "models" / "var.py").is_file():
        raise ConfigError(
            "is not a checkout of FoundationVision/VAR: models/var.py is missing", where=f"--official {official}"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    shape = SMALL if small else FULL
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        sides = [
            _Sides(stack, shape, Path(folder), checkout, device)
            for checkout in (None, *([official] if official else []))
        ]
        facts = {key: fact for side in sides for key, fact in side.facts.items()}
        seconds = _alternated({key: functools.partial(side.step, key) for side in sides for key in side.facts}, repeats)
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": 1,
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "repeats": repeats,
        "length": sum(p * p for p in shape["scales"]),
        **{key: shape[key] for key in ("depth", "width", "vocab_size")},
    }
    return [{**_row(key, *facts[key], seconds, shape["batch"]), **machine} for key in facts]


class _Sides:
    """Our sides, or the official one, in a process of their own; ours is set up like a worker of a study.

    Attributes:
        facts: (side, tokens) → (parameters, bytes of a step).
    """

    def __init__(
        self, stack: contextlib.ExitStack, shape: dict[str, Any], folder: Path, official: str | None, device: str
    ):
        pool = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
        self._pool = stack.enter_context(pool)
        self.facts: dict[tuple[str, str], tuple[int, float]] = pool.submit(
            _make, shape, folder, official, device
        ).result()

    def step(self, key: tuple[str, str]) -> float:
        """Seconds of this side's next step."""
        return self._pool.submit(_step, key).result()


_STEPS: dict[tuple[str, str], Callable[[], float]] = {}  # in the process of a side


def _make(
    shape: dict[str, Any], folder: Path, official: str | None, device: str
) -> dict[tuple[str, str], tuple[int, float]]:
    torch.set_num_threads(1)
    if official is None:
        keep_freed_memory()
        makes = _ours(shape, folder, device)
    else:
        makes = {("official", "each step"): functools.partial(_official_step, shape, official, device)}
    facts: dict[tuple[str, str], tuple[int, float]] = {}
    for key, make in makes.items():
        memory = step_memory(make, device)
        var, step = make()
        facts[key] = sum(p.numel() for p in var.parameters()), memory
        _STEPS[key] = functools.partial(_timed, step, device)
    return facts


def _step(key: tuple[str, str]) -> float:
    return _STEPS[key]()


def _timed(step: Callable[[], Any], device: str) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    began = clock()
    step()
    wait(device)
    return clock() - began


def _row(
    key: tuple[str, str], parameters: int, memory: float, seconds: dict[tuple[str, str], float], batch: int
) -> dict:
    side, tokens = key
    row = {
        "side": side,
        "tokens": tokens,
        "images_per_sec": round(batch / seconds[key], 3),
        "parameters_m": round(parameters / 1e6, 3),
        "batch_size": batch,
        "memory_gib": round(memory / 2**30, 4),
        "epoch_sec": round(EPOCH_IMAGES / batch * seconds[key]),
        "step_sec": round(seconds[key], 4),
    }
    if side == "official":
        return row
    official = seconds.get(("official", "each step"))
    ratio = {} if official is None else {"ratio": round(official / seconds[key], 3)}
    return {**row, "to_baseline": round(seconds[key] / seconds["baseline", tokens], 3), **ratio}


def _alternated(steps: dict[tuple[str, str], Callable[[], float]], repeats: int) -> dict[tuple[str, str], float]:
    """The median time of a step of each side."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for turn in range(WARMUP_STEPS + repeats):
        for key in sorted(steps, reverse=bool(turn % 2)):
            times[key].append(steps[key]())
    return {key: statistics.median(values[WARMUP_STEPS:]) for key, values in times.items()}


def configuration(shape: dict[str, Any]) -> Config:
    """A configuration of this shape for random images."""
    size = shape["scales"][-1] * 16
    tokenizer = {
        **{key: shape[key] for key in ("scales", "vocab_size", "code_dim", "channels")},
        "channel_multipliers": (1, 1, 2, 2, 4),
    }
    training = {
        "batch_size": shape["batch"],
        "images": 1000 * shape["batch"],
        "warmup_images": 0,
        "learning_rate": 1e-4,
    }
    return Config.model_validate(
        {
            "data": {"image_size": size},
            "tokenizer": tokenizer,
            "training": training,
            "model": {key: shape[key] for key in ("depth", "width", "heads")},
        }
    )


def random_images(shape: dict[str, Any], count: int) -> ImageSet:
    """Random pixels and labels."""
    draws, size = torch.Generator().manual_seed(0), shape["scales"][-1] * 16
    pixels = torch.randint(256, (count, 3, size, size), generator=draws, dtype=torch.uint8)
    labels_N = torch.randint(shape["num_classes"], (count,), generator=draws)
    return ImageSet(pixels, labels_N, [str(label) for label in range(shape["num_classes"])], "0" * 64, size)


def _ours(shape: dict[str, Any], folder: Path, device: str) -> dict[tuple[str, str], Callable[[], Step]]:
    """A factory for each of our sides."""
    config, images = configuration(shape), random_images(shape, 4 * shape["batch"])
    vqvae = new_vqvae(config).eval().requires_grad_(False)
    save_tokenizer(folder / "tokenizer", vqvae)
    build_token_cache(folder / "tokens", images, vqvae, batch=shape["batch"])
    assets = Assets(
        str(folder / "tokenizer"),
        {"train": str(folder / "tokens")},
        str(folder / "cache"),
        shape["num_classes"],
        images.class_names,
        {"train": images.sha256},
        None,
        {},
    )
    vqvae, pixels = vqvae.to(device), to_unit(images.images[: shape["batch"]]).to(device)
    makes: dict[tuple[str, str], Callable[[], Step]] = {}
    for tokens in TOKENS:
        for side, values in SIDES.items():
            arm = config.with_values(values)
            loss = functools.partial(_tokenising, arm, assets, vqvae, pixels, device) if tokens == "each step" else None
            makes[side, tokens] = functools.partial(step_of, arm, assets, vqvae, device, loss)
    return makes


def _tokenising(
    config: Config, assets: Assets, vqvae: VQVAE, pixels: torch.Tensor, device: str, var: torch.nn.Module
) -> Callable[..., Any]:
    """The configured loss on images that are tokenised first; the cached tokens of `train` are ignored."""
    compute = batch_loss(config, assets, vqvae, var, device)

    def loss(model, tokenizer, tokens_BL, labels_B, noise):
        tokens, teacher_input = tokenizer.encode(pixels, with_teacher_input=True)
        return compute(model, teacher_input, torch.cat(tokens, dim=1), labels_B, noise)

    return loss


def _official_step(shape: dict[str, Any], checkout: str, device: str) -> Step:
    """The official VAR, and its step as the official trainer runs it: the tokenizer in float32, outside autocast."""
    torch.manual_seed(0)
    vqvae, var = (network.to(device) for network in _official_networks(shape, checkout))
    images = random_images(shape, 4 * shape["batch"])
    pixels = to_unit(images.images[: shape["batch"]]).to(device)
    vqvae.eval().requires_grad_(False)
    var.train()
    optimizer = torch.optim.AdamW(var.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    labels_B = images.labels_N[: len(pixels)].to(device)

    def step() -> None:
        with torch.no_grad():
            tokens = vqvae.img_to_idxBl(pixels)
            teacher_input = vqvae.quantize.idxBl_to_var_input(tokens)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits_BLV = var(labels_B, teacher_input)
            loss = F.cross_entropy(logits_BLV.flatten(0, 1), torch.cat(tokens, dim=1).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(var.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return var, step
