"""Golden numbers of the official implementation on seeded weights and images.

``python tests/helpers/golden_cases.py CHECKOUT`` runs the official code of a checkout of FoundationVision/VAR and writes
golden/official.json; the tests need only that file. Weights are drawn per key, so both sides get the same ones.

Legend: B batch, L = 680 positions of the official 256 px scales, V codes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden" / "official.json"
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
VOCABULARY, CODE_DIM, CHANNELS, CLASSES, DEPTH, WIDTH, HEADS = 256, 16, 32, 12, 2, 128, 2
VAR_CASES = {
    f"{'shared' if shared else 'own'}-{'l2' if l2 else 'dot'}": {"shared_aln": shared, "attn_l2_norm": l2}
    for shared in (False, True)
    for l2 in (True, False)
}
SHARES = (4, 1, 0)
CFG_SCALES = (0.0, 1.5, 4.0)
LABELS = (3, 12, 0)


def normal(seed: str, shape) -> np.ndarray:
    """Standard normal numbers that depend on ``seed`` only."""
    digest = hashlib.sha256(seed.encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "big")).standard_normal(tuple(shape)).astype(np.float32)


def weights(shapes: dict[str, tuple[int, ...]], seed: str) -> dict[str, torch.Tensor]:
    """Weights scaled so that activations stay of order 1 and every part of the network matters."""
    result = {}
    for key, shape in shapes.items():
        draw = normal(f"{seed}/{key}", shape)
        if "norm" in key and key.endswith("weight"):
            value = 1 + 0.2 * draw
        elif key.endswith("scale_mul_1H11"):
            value = np.log(4) + 1.5 * draw
        elif key.endswith("bias"):
            value = 0.2 * draw
        elif any(name in key for name in ("embed.weight", "embedding.weight", "class_emb", "pos_", "ada_gss")):
            value = 0.5 * draw
        else:
            value = draw / np.sqrt(np.prod(shape[1:]))
        result[key] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return result


def images(count: int, size: int = 256) -> torch.Tensor:
    """Smooth images (B, 3, S, S) in [-1, 1]."""
    coarse = torch.from_numpy(normal("images", (count, 3, 8, 8)))
    fine = torch.from_numpy(normal("grain", (count, 3, size, size)))
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (0.5 * smooth + 0.05 * fine).clamp(-1, 1)


def tokens_of(seed: str, batch: int) -> list[torch.Tensor]:
    """Random tokens, for teacher forcing."""
    draw = np.random.RandomState(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big"))
    return [torch.from_numpy(draw.randint(VOCABULARY, size=(batch, p * p))) for p in SCALES]


def import_official(checkout: str):
    """(VQVAE, VAR, helpers module) of the official code."""
    if (
        "huggingface_hub" not in sys.modules and importlib.util.find_spec("huggingface_hub") is None
    ):  # used only for uploads
        sys.modules["huggingface_hub"] = types.SimpleNamespace(PyTorchModelHubMixin=object)
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    from models import helpers
    from models.var import VAR
    from models.vqvae import VQVAE

    return VQVAE, VAR, helpers


def official_vqvae(checkout: str, share: int, seed: str = "vae"):
    """An official tokenizer with seeded weights."""
    vqvae_class, _, _ = import_official(checkout)
    vqvae = vqvae_class(
        vocab_size=VOCABULARY, z_channels=CODE_DIM, ch=CHANNELS, share_quant_resi=share, v_patch_nums=SCALES
    )
    state = vqvae.state_dict()
    fresh = weights({key: value.shape for key, value in state.items() if "ema_vocab" not in key}, seed)
    vqvae.load_state_dict({**state, **fresh}, strict=True)
    return vqvae.eval()


def official_var(checkout: str, vqvae, seed: str = "var", **options):
    """An official VAR with seeded weights."""
    _, var_class, _ = import_official(checkout)
    with contextlib.redirect_stdout(io.StringIO()):
        var = var_class(
            vae_local=vqvae,
            num_classes=CLASSES,
            depth=DEPTH,
            embed_dim=WIDTH,
            num_heads=HEADS,
            cond_drop_rate=0.0,
            patch_nums=SCALES,
            drop_path_rate=0.0,
            **options,
        )
    buffers = {name for name, _ in var.named_buffers()}
    state = var.state_dict()
    fresh = weights({key: value.shape for key, value in state.items() if key not in buffers}, seed)
    var.load_state_dict({**state, **fresh}, strict=True)
    return var.eval()


def official_greedy(var, vqvae, labels, cfg_scale: float, top_k: int = 1) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(images, tokens) of greedy sampling; a hook on the codebook records the tokens."""
    seen: list[torch.Tensor] = []
    hook = vqvae.quantize.embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        pictures = var.autoregressive_infer_cfg(len(labels), torch.tensor(labels), g_seed=0, cfg=cfg_scale, top_k=top_k)
    finally:
        hook.remove()
    return pictures, seen


def sampled(values: torch.Tensor, count: int = 64) -> list[float]:
    """``count`` evenly spread entries, as JSON holds them."""
    flat = values.detach().flatten()
    return [round(float(flat[i]), 7) for i in np.linspace(0, len(flat) - 1, count).astype(int)]


@torch.no_grad()
def measure(checkout: str) -> dict:
    """All golden numbers from the official code."""
    result: dict = {"tokenizer": {}, "var": {}}
    for share in SHARES:
        vqvae = official_vqvae(checkout, share)
        tokens = vqvae.img_to_idxBl(images(2))
        pixels = vqvae.idxBl_to_img(tokens, same_shape=True, last_one=True)
        result["tokenizer"][str(share)] = {
            "tokens": torch.cat(tokens, 1).tolist(),
            "pixels": sampled(pixels),
            "teacher_input": sampled(vqvae.quantize.idxBl_to_var_input(tokens)),
            "vq_loss": _vq_loss(vqvae),
        }
    vqvae = official_vqvae(checkout, 4)
    for name, options in VAR_CASES.items():
        var = official_var(checkout, vqvae, **options)
        logits = var(torch.tensor(LABELS), vqvae.quantize.idxBl_to_var_input(tokens_of("teacher", len(LABELS))))
        result["var"][name] = {"logits": sampled(logits, 256), "greedy": {}}
        for cfg_scale in CFG_SCALES:
            pictures, tokens = official_greedy(var, vqvae, LABELS, cfg_scale)
            result["var"][name]["greedy"][str(cfg_scale)] = {
                "tokens": torch.cat(tokens, 1).tolist(),
                "pixels": sampled(pictures),
            }
    return result


def _vq_loss(vqvae) -> float:
    """vq_loss of the training forward, which needs a process group."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return float(vqvae(images(2))[2])


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(measure(sys.argv[1]), separators=(",", ":")) + "\n")
    print(f"{GOLDEN}: {GOLDEN.stat().st_size:,} bytes")
