"""Tokenisation, training step and sampling of the model; with a checkout, also of the official code.

CPU, one thread, float32; the training step has label dropout and drop path. The sides alternate; times are medians of
CPU seconds of the process. Peak memory is the maximum resident set of a fresh process of each side, including Python,
PyTorch and the networks.

Legend: B images, L positions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import multiprocessing
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from uvar_tune.config.schema import ModelConfig, TokenizerConfig
from uvar_tune.errors import ConfigError
from uvar_tune.model import VAR, VQVAE, SamplingSettings, generate, load_official

FULL = {
    "batch": 8,
    "depth": 4,
    "width": 256,
    "heads": 4,
    "vocab_size": 1024,
    "code_dim": 32,
    "channels": 32,
    "scales": (1, 2, 3, 4, 5, 6, 8),
    "num_classes": 1000,
}  # 128 px
SMALL = {
    **FULL,
    "batch": 2,
    "depth": 2,
    "width": 64,
    "heads": 2,
    "vocab_size": 64,
    "code_dim": 16,
    "scales": (1, 2),
    "num_classes": 10,
}
INFERENCE = {"cfg_scale": 1.5, "top_k": 900, "top_p": 0.96}
PARTS = ("tokenise", "forward", "backward", "update", "training step", "sampling, transformer", "decoder", "sampling")
WHOLE = {"sampling, transformer": "sampling", "decoder": "sampling", **dict.fromkeys(PARTS[:4], "training step")}
WORK = ("training step", "sampling")  # whose peak memory is measured
_MEMORY_RUNS = 3


class Side:
    """One implementation of both networks, with the same parts and timers."""

    def __init__(self, vqvae: torch.nn.Module, var: torch.nn.Module, shape: dict[str, Any]):
        self.vqvae, self.var = vqvae.eval().requires_grad_(False), var.requires_grad_(True)
        draws = torch.Generator().manual_seed(0)
        size = shape["scales"][-1] * 16
        self.images_B3HW = torch.rand(shape["batch"], 3, size, size, generator=draws) * 2 - 1
        self.labels_B = torch.randint(shape["num_classes"], (shape["batch"],), generator=draws)
        self.top_k = min(INFERENCE["top_k"], shape["vocab_size"])
        self.optimizer = torch.optim.AdamW(var.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def tokenise(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens_BL, teacher input) of the images."""
        raise NotImplementedError

    def sample(self, decoded: Callable[[Callable], Callable]) -> torch.Tensor:
        """Images of the labels; ``decoded`` wraps the decoder of the features."""
        raise NotImplementedError

    def train(self) -> dict[str, float]:
        """CPU seconds of the parts of a training step, and of the whole."""
        self.var.train()
        marks = [time.process_time()]
        tokens_BL, teacher_input = self.tokenise()
        marks.append(time.process_time())
        logits_BLV = self.var(self.labels_B, teacher_input)
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten())
        marks.append(time.process_time())
        loss.backward()
        marks.append(time.process_time())
        torch.nn.utils.clip_grad_norm_(self.var.parameters(), 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(time.process_time())
        parts = [end - start for start, end in zip(marks, marks[1:], strict=False)]
        return {**dict(zip(PARTS[:4], parts, strict=True)), "training step": marks[-1] - marks[0]}

    def generate(self) -> dict[str, float]:
        """CPU seconds of the parts of sampling a batch with guidance, and of the whole."""
        self.var.eval()
        spent = 0.0

        def decoded(decode: Callable) -> Callable:
            def timed(features: torch.Tensor) -> torch.Tensor:
                nonlocal spent
                began = time.process_time()
                images = decode(features)
                spent += time.process_time() - began
                return images

            return timed

        began = time.process_time()
        self.sample(decoded)
        whole = time.process_time() - began
        return {"sampling, transformer": whole - spent, "decoder": spent, "sampling": whole}


class Ours(Side):
    """This package."""

    def tokenise(self):
        """See `Side.tokenise`."""
        tokens, teacher_input = self.vqvae.encode(self.images_B3HW, with_teacher_input=True)
        return torch.cat(tokens, dim=1), teacher_input

    def sample(self, decoded):
        """See `Side.sample`."""
        self.vqvae.decode_features = decoded(type(self.vqvae).decode_features.__get__(self.vqvae))
        try:
            settings = SamplingSettings(**{**INFERENCE, "top_k": self.top_k})
            return generate(self.var, self.vqvae, self.labels_B, settings, chunk=len(self.labels_B)).images
        finally:
            del self.vqvae.decode_features


class Official(Side):
    """The official code."""

    def tokenise(self):
        """See `Side.tokenise`."""
        tokens = self.vqvae.img_to_idxBl(self.images_B3HW)
        return torch.cat(tokens, dim=1), self.vqvae.quantize.idxBl_to_var_input(tokens)

    def sample(self, decoded):
        """See `Side.sample`."""
        self.vqvae.fhat_to_img = decoded(type(self.vqvae).fhat_to_img.__get__(self.vqvae))
        try:
            return self.var.autoregressive_infer_cfg(
                len(self.labels_B),
                self.labels_B,
                cfg=INFERENCE["cfg_scale"],
                top_k=self.top_k,
                top_p=INFERENCE["top_p"],
            )
        finally:
            del self.vqvae.fhat_to_img


def run(*, small: bool = False, repeats: int = 7, official: str | None = None) -> list[dict]:
    """A row per part, with its share of the training step or of sampling, and one per peak memory.

    Args:
        small: a size that takes seconds.
        repeats: alternated measurements of each side, after one warm-up.
        official: a checkout of FoundationVision/VAR; rows then have the official figure and ``ratio``, official / ours.

    Raises:
        ConfigError: ``official`` is not such a checkout.
    """
    if official is not None and not (Path(official) / "models" / "var.py").is_file():
        raise ConfigError(
            "is not a checkout of FoundationVision/VAR: models/var.py is missing", where=f"--official {official}"
        )
    shape, before = SMALL if small else FULL, torch.get_num_threads()
    names = ["ours", *(["official"] if official else [])]
    measured = WORK if Path("/proc/self/status").exists() else ()  # peak memory is known on Linux only
    peaks = {work: {name: _peak_mib(name, work, shape, official) for name in names} for work in measured}
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            times = _alternated(_sides(names, shape, official), repeats)
    finally:
        torch.set_num_threads(before)
    machine = {
        "machine": platform.machine(),
        "threads": 1,
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "repeats": repeats,
        **{key: value for key, value in shape.items() if key not in ("scales", "num_classes")},
        "length": sum(p * p for p in shape["scales"]),
    }
    medians = {name: {part: statistics.median(values) for part, values in times[name].items()} for name in names}
    rows = [
        _row(
            part,
            "cpu_sec",
            {name: medians[name][part] for name in names},
            share=round(medians["ours"][part] / medians["ours"][WHOLE.get(part, part)], 3),
        )
        for part in PARTS
    ]
    both = {name: medians[name]["forward"] + medians[name]["backward"] for name in names}
    rows.append(
        _row("forward + backward", "cpu_sec", both, share=round(both["ours"] / medians["ours"]["training step"], 3))
    )
    rows += [_row(f"memory, {work}", "peak_mib", peaks[work]) for work in measured]
    return [{**row, **machine} for row in rows]


def _row(part: str, unit: str, figures: dict[str, float], **more: float) -> dict:
    row = {"part": part, **{f"{name}_{unit}": round(value, 4) for name, value in figures.items()}, **more}
    return row | ({"ratio": round(figures["official"] / figures["ours"], 3)} if "official" in figures else {})


def _alternated(sides: dict[str, Side], repeats: int) -> dict[str, dict[str, list[float]]]:
    times: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in sides}
    for repeat in range(repeats + 1):
        for work in (Side.train, Side.generate):
            for name in sorted(sides, reverse=bool(repeat % 2)):
                for part, seconds in work(sides[name]).items():
                    if repeat > 0:
                        times[name][part].append(seconds)
    return times


def _sides(names: list[str], shape: dict[str, Any], checkout: str | None) -> dict[str, Side]:
    """The named sides; if both are named, ours has the official weights."""
    torch.manual_seed(0)
    if "official" not in names:
        sizes = {key: shape[key] for key in ("scales", "vocab_size", "code_dim")}
        tokenizer = TokenizerConfig(channels=shape["channels"], channel_multipliers=(1, 1, 2, 2, 4), **sizes)
        model = ModelConfig(**{key: shape[key] for key in ("depth", "width", "heads")})
        return {"ours": Ours(VQVAE(tokenizer), VAR(model, num_classes=shape["num_classes"], **sizes), shape)}
    networks = _official_networks(shape, checkout)
    sides: dict[str, Side] = {"official": Official(*networks, shape)}
    if "ours" in names:
        vqvae, var = load_official(*(network.state_dict() for network in networks), scales=shape["scales"])
        sides["ours"] = Ours(vqvae, var.train(), shape)
    return sides


def _official_networks(shape: dict[str, Any], checkout: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    name = "huggingface_hub"  # imported by the official code, for uploads only
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = types.SimpleNamespace(PyTorchModelHubMixin=object)
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    from models.var import VAR as OfficialVAR
    from models.vqvae import VQVAE as OfficialVQVAE

    with contextlib.redirect_stdout(io.StringIO()):
        vqvae = OfficialVQVAE(
            vocab_size=shape["vocab_size"],
            z_channels=shape["code_dim"],
            ch=shape["channels"],
            v_patch_nums=shape["scales"],
        )
        var = OfficialVAR(
            vae_local=vqvae,
            num_classes=shape["num_classes"],
            depth=shape["depth"],
            embed_dim=shape["width"],
            num_heads=shape["heads"],
            patch_nums=shape["scales"],
            attn_l2_norm=True,
            drop_path_rate=0.1 * shape["depth"] / 24,
        )
        var.init_weights(init_adaln_gamma=1e-3, init_std=-1)
    return vqvae, var


def _peak_mib(name: str, work: str, shape: dict[str, Any], checkout: str | None) -> float:
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_of_work, name, work, shape, checkout).result()


def _peak_of_work(name: str, work: str, shape: dict[str, Any], checkout: str | None) -> float:
    """Peak memory of this process in MiB, after a few runs of the work."""
    torch.set_num_threads(1)
    side = _sides([name], shape, checkout)[name]
    for _ in range(_MEMORY_RUNS):
        side.train() if work == "training step" else side.generate()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(status["VmHWM"].split()[0]) / 2**10
