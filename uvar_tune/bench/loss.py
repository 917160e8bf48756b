"""Forward and backward pass of the loss from the last hidden states: plain cross-entropy, autograd, fused.

``plain_ce`` is ``F.cross_entropy`` on the float32 logits of the head, as VAR trains; ``autograd`` adds both terms with
``composite_loss``; ``fused`` is ``fused_composite_loss``. Each measurement ends with the three gradients (hidden
states, weight, bias). On CUDA the products are computed under bf16 autocast, as in training: in float32 they would hide
the overhead of the loss. Sides alternate; times are medians of CPU seconds of the process (of device seconds on CUDA).
On a busy machine measure with OMP_NUM_THREADS=1, because threads that spin while waiting for a core count as CPU. Peak
memory is the maximum of a fresh process beyond inputs and the three gradients (on CUDA the allocator's count).
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F

from uvar_tune.config.schema import LossConfig
from uvar_tune.objective import composite_loss, fused_composite_loss
from uvar_tune.objective.dispersion import anchor_of
from uvar_tune.objective.moments import prepare_codes

OFFICIAL = {"batch": 16, "scales": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), "vocabulary": 4096, "width": 1024, "code_dim": 32}
SMALL = {"batch": 4, "scales": (1, 2, 3, 4, 5, 6, 8), "vocabulary": 1024, "width": 256, "code_dim": 16}


def _plain(hidden_BLD, weight_VD, bias_V, targets_BL, settings):
    return F.cross_entropy(F.linear(hidden_BLD, weight_VD, bias_V).float().flatten(0, 1), targets_BL.flatten())


def _autograd(hidden_BLD, weight_VD, bias_V, targets_BL, settings):
    return composite_loss(F.linear(hidden_BLD, weight_VD, bias_V), targets_BL, **settings).total


def _fused(hidden_BLD, weight_VD, bias_V, targets_BL, settings):
    return fused_composite_loss(hidden_BLD, weight_VD, bias_V, targets_BL, **settings).total


SIDES = {"plain_ce": _plain, "autograd": _autograd, "fused": _fused}


def _problem(shape: dict, device: str, dispersion: str, discrepancy: str):
    generator = torch.Generator().manual_seed(0)
    vocabulary, width, scales = shape["vocabulary"], shape["width"], shape["scales"]
    length = sum(p * p for p in scales)
    hidden_BLD = torch.randn(shape["batch"], length, width, generator=generator).to(device)
    weight_VD = (torch.randn(vocabulary, width, generator=generator) * width**-0.5).to(device)
    targets_BL = torch.randint(vocabulary, (shape["batch"], length), generator=generator).to(device)
    codebook = torch.randn(vocabulary, shape["code_dim"], generator=generator).to(device)
    classes = torch.randperm(vocabulary, generator=generator) % (vocabulary // 16)
    anchor = anchor_of(dispersion, prepare_codes(codebook))
    settings = {
        "scales": scales,
        "codebook": codebook,
        "classes": classes.to(device),
        "reference_variance": torch.full((len(scales),), 0.5 * anchor),
        "config": LossConfig(lambda_1=0.1, lambda_2=0.1, dispersion=dispersion, discrepancy=discrepancy),
    }
    leaves = [x.requires_grad_() for x in (hidden_BLD, weight_VD, torch.zeros(vocabulary, device=device))]
    return leaves, targets_BL, settings


def _step(side: str, problem) -> None:
    leaves, targets_BL, settings = problem
    for leaf in leaves:
        leaf.grad = None
    device = leaves[0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        total = SIDES[side](*leaves, targets_BL, settings)
    total.backward()


def _seconds(side: str, problem, device: str) -> tuple[float, float]:
    """(busy seconds of the CPU or the CUDA device, wall seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        _step(side, problem)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3, time.perf_counter() - wall
    _step(side, problem)
    return time.process_time() - cpu, time.perf_counter() - wall


def _resident_mib(key: str) -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(fields[key].split()[0]) / 2**10


def _peak_mib(side: str, shape: dict, device: str, dispersion: str, discrepancy: str) -> float | None:
    """Peak memory of one step in a fresh process, beyond its inputs and the three gradients."""
    problem = _problem(shape, device, dispersion, discrepancy)
    gradients_mib = sum(leaf.numel() * leaf.element_size() for leaf in problem[0]) / 2**20
    if device == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        _step(side, problem)
        return torch.cuda.max_memory_allocated() / 2**20 - before - gradients_mib
    if not Path("/proc/self/status").exists():
        return None
    _step(side, _problem({**SMALL, "batch": 1}, device, dispersion, discrepancy))  # loads code and allocates workspaces
    before = _resident_mib("VmRSS")
    _step(side, problem)
    return _resident_mib("VmHWM") - before - gradients_mib


def run(
    *,
    small: bool = False,
    repeats: int = 5,
    device: str | None = None,
    dispersion: str = "embedding",
    discrepancy: str = "wasserstein",
) -> list[dict]:
    """One row per side: ``busy_sec`` and ``wall_sec`` (medians), ``peak_mib``, and ratios to the other sides.

    Args:
        small: a size that takes seconds instead of VAR's 16 × 680 positions, V = 4096, D = 1024.
        repeats: alternated measurements of each side, after one warm-up.
        device: ``cpu`` or ``cuda``; None is CUDA if available.
        dispersion: as ``LossConfig``.
        discrepancy: as ``LossConfig``.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    shape = SMALL if small else OFFICIAL
    spawn = multiprocessing.get_context("spawn")
    peaks = {}
    for side in SIDES:
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
            peaks[side] = pool.submit(_peak_mib, side, shape, device, dispersion, discrepancy).result()
    problem = _problem(shape, device, dispersion, discrepancy)
    times = {side: [] for side in SIDES}
    for repeat in range(repeats + 1):
        for side in SIDES:
            measured = _seconds(side, problem, device)
            if repeat > 0:
                times[side].append(measured)
    busy = {side: statistics.median(pair[0] for pair in times[side]) for side in SIDES}
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": "bf16 autocast" if device == "cuda" else "float32",
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        **{key: value for key, value in shape.items() if key != "scales"},
        "length": sum(p * p for p in shape["scales"]),
        "combination": f"{dispersion}-{discrepancy}",
        "repeats": repeats,
    }
    return [
        {
            "side": side,
            "busy_sec": round(busy[side], 4),
            "wall_sec": round(statistics.median(pair[1] for pair in times[side]), 4),
            "peak_mib": None if peaks[side] is None else round(peaks[side], 1),
            "time_to_plain": round(busy[side] / busy["plain_ce"], 3),
            "time_to_autograd": round(busy[side] / busy["autograd"], 3),
            "peak_to_plain": None if peaks[side] is None else round(peaks[side] / peaks["plain_ce"], 3),
            **machine,
        }
        for side in SIDES
    ]
