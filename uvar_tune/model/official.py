"""Exchange with the official VAR release: its files as our modules, our modules as its files.

Sizes are read off the tensors, so nothing but the files need be known. What the files say twice (the mask and the level
of each position) must agree with the scales, and is not kept in our modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from uvar_tune.errors import ConfigError, first_line
from uvar_tune.io.tensor_file import load_tensors
from uvar_tune.model.attention import prefix_mask
from uvar_tune.model.scales import OFFICIAL_SCALES, level_L, positions
from uvar_tune.model.var import VAR
from uvar_tune.model.vqvae import VQVAE

State = Mapping[str, torch.Tensor]
_LEVELS, _MASK, _HITS = "lvl_1L", "attn_bias_for_masking", "quantize.ema_vocab_hit_SV"
OFFICIAL_RATIOS = (0.0, 0.5)  # of φ in the quantizer: without φ, and as the official code has it
_CLASSES = "class_emb.weight"
_INSIDE = {"vae": "vae_local", "var": "var_wo_ddp"}  # names in a trainer checkpoint


def load_official(
    vae: str | Path | State,
    var: str | Path | State | None = None,
    *,
    scales: Sequence[int] | None = None,
    num_heads: int | None = None,
) -> tuple[VQVAE, VAR | None]:
    """The networks of official checkpoints, in evaluation mode on the CPU.

    Args:
        vae, var: a file or a state dict, bare or as the official trainer wraps it.
        scales: where no VAR tells them; without it, the official list of as many scales as the tokenizer has (10: 256 px,
            14: 1024 px).
        num_heads: where the VAR cannot tell it (no l2 norm in its attention, and a width other than 64·depth).

    Returns:
        (VQVAE, VAR), the second None without ``var``.

    Raises:
        ConfigError: a file that cannot be read or is no checkpoint, a key that is missing, not expected or of another
            shape (the first is named), or a setting that is needed or contradicts the file.
    """
    vae_state, vae_where = _read(vae, "vae")
    var_state, var_where = (None, "var") if var is None else _read(var, "var")
    found = _scales(vae_state, vae_where, var_state, var_where, scales)
    vqvae = _load_vqvae(vae_state, vae_where, found)
    return vqvae, None if var_state is None else _load_var(var_state, var_where, found, num_heads)


def save_official(
    vqvae: VQVAE, var: VAR | None = None, *, vae_path: str | Path | None = None, var_path: str | Path | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """(tokenizer's, VAR's) state dicts as the official code loads them, strictly; written where a path is given.

    Raises:
        ConfigError: ``var_path`` without a VAR, or a tokenizer whose share of φ the official layout cannot tell.
    """
    if var is None and var_path is not None:
        raise ConfigError("a path for the VAR, but no VAR", where="var_path")
    if (ratio := vqvae.settings()["quant_resi"]) not in OFFICIAL_RATIOS:
        raise ConfigError(
            f"quant_resi {ratio:g} is not in an official file, whose readers take {OFFICIAL_RATIOS[1]:g}",
            where="tokenizer.quant_resi",
        )
    vae_state = {key: value.detach().cpu() for key, value in vqvae.state_dict().items()}
    var_state = None if var is None else _official_var_state(var)
    for state, path in ((vae_state, vae_path), (var_state, var_path)):
        if path is not None:
            torch.save(state, path)
    return vae_state, var_state


def start_from(var: VAR, source: str | Path | State, *, where: str | None = None) -> None:
    """Give ``var`` the weights of a trained VAR, to go on from. A class table of another number of classes is left fresh.

    Args:
        source: an official file or state dict, bare or as the official trainer wraps it, or a state dict of ours.
        where: what to call it in messages.

    Raises:
        ConfigError: as `load_official`, the first key that differs from ``var``'s being named.
    """
    state, where = _read(source, "var", where)
    wanted = var.state_dict()
    table, given = wanted[_CLASSES], _need(state, _CLASSES, where, dims=2)
    if len(given) != len(table) and given.shape[1] == table.shape[1]:
        state[_CLASSES] = table
    if _LEVELS in state:
        _compare({**wanted, **_derived(var.scales, var.depth, var.width)}, state, "VAR", where)
        _drop_derived(state, where, var.scales, var.depth, var.width)
    _compare(wanted, state, "VAR", where)
    var.load_state_dict(state)


def _read(source: str | Path | State, which: str, name: str | None = None) -> tuple[dict[str, torch.Tensor], str]:
    """(bare state dict, what to call it in messages)."""
    if isinstance(source, Mapping):
        tree, where = dict(source), name or which
    else:
        where = name or str(source)
        try:
            tree = load_tensors(source)
        except FileNotFoundError:
            raise ConfigError("there is no such file", where=where) from None
        except Exception as error:  # whatever a damaged or hostile pickle makes the reader raise
            raise ConfigError(
                f"is not a checkpoint that PyTorch can read as plain tensors, or is cut short ({first_line(error)})",
                where=where,
            ) from None
    for key in ("trainer", _INSIDE[which]):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    if (
        not isinstance(tree, Mapping)
        or not tree
        or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tree.items())
    ):
        raise ConfigError(
            f"holds no state dict of a {which.upper()}: neither bare tensors nor 'trainer' with '{_INSIDE[which]}'",
            where=where,
        )
    if isinstance(source, Mapping):  # the caller's tensors stay the caller's
        tree = {key: value.detach().clone() for key, value in tree.items()}
    return dict(tree), where


def _scales(vae_state, vae_where: str, var_state, var_where: str, given: Sequence[int] | None) -> tuple[int, ...]:
    """The scales of the VAR; else as given; else the official list for the tokenizer's K."""
    told: tuple[int, ...] | None = None
    if var_state is not None:
        told = _scales_of_levels(_need(var_state, _LEVELS, var_where), var_where)
        if _need(var_state, _MASK, var_where).shape != (
            1,
            1,
            positions(told),
            positions(told),
        ):  # before one is made to compare
            raise ConfigError(f"{_MASK} is not what the scales {list(told)} make", where=var_where)
        if given is not None and tuple(given) != told:
            raise ConfigError(f"scales {list(given)} were given, but the VAR has {list(told)}", where=var_where)
    if told or given:
        return told or tuple(given)
    count = len(_need(vae_state, _HITS, vae_where, dims=2))
    if count not in OFFICIAL_SCALES:
        known = " or ".join(str(k) for k in OFFICIAL_SCALES)
        raise ConfigError(
            f"a tokenizer of {count} scales does not tell their sizes (only for {known} scales there is an "
            "official list); give scales",
            where=vae_where,
        )
    return OFFICIAL_SCALES[count]


def _scales_of_levels(levels_1L: torch.Tensor, where: str) -> tuple[int, ...]:
    levels_L = levels_1L.flatten().long()
    sound = (
        len(levels_L) and not levels_1L.is_floating_point() and 0 <= levels_L.min() <= levels_L.max() < len(levels_L)
    )
    counts = levels_L.bincount().tolist() if sound else [0]
    scales = tuple(round(count**0.5) for count in counts)
    if (
        0 in counts
        or positions(scales) != len(levels_L)
        or list(scales) != sorted(set(scales))
        or not torch.equal(levels_L, level_L(scales))
    ):
        raise ConfigError(f"{_LEVELS} does not count square scales, coarse to fine", where=where)
    return scales


def _load_vqvae(state: dict[str, torch.Tensor], where: str, scales: tuple[int, ...]) -> VQVAE:
    vocab_size, code_dim = _need(state, "quantize.embedding.weight", where, dims=2).shape
    channels = _need(state, "encoder.conv_in.weight", where, dims=4).shape[0]
    levels = max(1, _count(state, r"encoder\.down\.(\d+)\."))
    widths = [_need(state, f"encoder.down.{i}.block.0.conv1.weight", where, dims=4).shape[0] for i in range(levels)]
    phi, own_phi = (
        _count(state, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
        _count(state, r"quantize\.quant_resi\.(\d+)\."),
    )
    single = any(key.startswith("quantize.quant_resi.qresi.") for key in state)
    vqvae = _described(
        VQVAE,
        where,
        vocab_size=vocab_size,
        code_dim=code_dim,
        channels=channels,
        scales=scales,
        channel_multipliers=[width // channels for width in widths],
        quant_resi=0.5 if phi or own_phi or single else 0.0,
        share_quant_resi=phi or (0 if own_phi else 1),
        blocks=_count(state, r"encoder\.down\.0\.block\.(\d+)\."),
    )
    if _HITS in state and len(_need(state, _HITS, where, dims=2)) != len(
        scales
    ):  # of other scales: a statistic, not needed
        state[_HITS] = torch.zeros(len(scales), vocab_size)
    return _fill(vqvae, state, where)


def _load_var(state: dict[str, torch.Tensor], where: str, scales: tuple[int, ...], num_heads: int | None) -> VAR:
    width, code_dim = _need(state, "word_embed.weight", where, dims=2).shape
    hidden = _need(state, "blocks.0.ffn.fc1.weight", where, dims=2).shape[0]
    depth, sharpness = _count(state, r"blocks\.(\d+)\."), state.get("blocks.0.attn.scale_mul_1H11")
    var = _described(
        VAR,
        where,
        depth=depth,
        width=width,
        heads=_heads(sharpness, depth, width, num_heads, where),
        scales=scales,
        vocab_size=_need(state, "head.weight", where, dims=2).shape[0],
        code_dim=code_dim,
        num_classes=_need(state, _CLASSES, where, dims=2).shape[0] - 1,
        shared_aln="shared_ada_lin.1.weight" in state,
        attn_l2_norm=sharpness is not None,
        mlp_ratio=hidden / width,
    )
    _drop_derived(state, where, scales, depth, width)
    return _fill(var, state, where)


def _described(kind: type, where: str, **sizes):
    """A network of these sizes on the meta device, so that it takes no memory."""
    try:
        with torch.device("meta"):
            return kind(**sizes)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(
            f"its tensors have sizes of which no {kind.__name__} can be made ({first_line(error)})", where=where
        ) from None


def _heads(sharpness: torch.Tensor | None, depth: int, width: int, given: int | None, where: str) -> int:
    told = None if sharpness is None else sharpness.numel()
    if told and given and told != given:
        raise ConfigError(f"num_heads {given} was given, but the VAR has {told}", where=where)
    found = told or given or (depth if width == 64 * depth else None)
    if found is None:
        raise ConfigError(
            f"without l2 norm, the number of heads of a VAR of depth {depth} and width {width} cannot be "
            "told; give num_heads",
            where=where,
        )
    return found


def _drop_derived(state: dict[str, torch.Tensor], where: str, scales: Sequence[int], depth: int, width: int) -> None:
    """Take what follows from the sizes out of an official VAR's state, where it must be what follows."""
    for key, value in _derived(scales, depth, width).items():
        if key not in state or state[key].shape != value.shape or not torch.equal(state[key].to(value.dtype), value):
            raise ConfigError(
                f"{key} " + ("is missing" if key not in state else f"is not what the scales {list(scales)} make"),
                where=where,
            )
        del state[key]


def _derived(scales: Sequence[int], depth: int, width: int) -> dict[str, torch.Tensor]:
    """What the official VAR has as buffers: levels, mask, and a bias of zeros for the keys of every block."""
    return {
        _LEVELS: level_L(scales)[None],
        _MASK: prefix_mask(scales)[None, None],
        **{f"blocks.{i}.attn.zero_k_bias": torch.zeros(width) for i in range(depth)},
    }


def _official_var_state(var: VAR) -> dict[str, torch.Tensor]:
    return {
        **{key: value.detach().cpu() for key, value in var.state_dict().items()},
        **_derived(var.scales, var.depth, var.width),
    }


def _fill(module: torch.nn.Module, state: dict[str, torch.Tensor], where: str):
    """``module``, built on the meta device, with exactly these tensors, in float32."""
    wanted = module.state_dict()
    _compare(wanted, state, type(module).__name__, where)
    module.load_state_dict({key: state[key].to("cpu", torch.float32) for key in wanted}, assign=True)
    return module.requires_grad_(True).eval()


def _compare(wanted: State, state: State, name: str, where: str) -> None:
    """ConfigError that names the first key in which ``state`` has not the keys and shapes of ``wanted``."""
    for key, value in wanted.items():
        found = _need(state, key, where)
        if found.shape != value.shape:
            raise ConfigError(f"{key} has shape {tuple(found.shape)}, expected {tuple(value.shape)}", where=where)
    for key in state:
        if key not in wanted:
            raise ConfigError(f"{key} is not expected in a {name} of these sizes", where=where)


def _need(state: State, key: str, where: str, dims: int | None = None) -> torch.Tensor:
    if key not in state:
        raise ConfigError(f"{key} is missing", where=where)
    shape = tuple(state[key].shape)
    if dims is not None and (len(shape) != dims or 0 in shape):
        raise ConfigError(f"{key} has shape {shape}, expected {dims} dimensions, none of them 0", where=where)
    return state[key]


def _count(state: State, pattern: str) -> int:
    """How many different numbers stand where ``pattern`` has its group."""
    return len({found[1] for found in (re.match(pattern, key) for key in state) if found})
