"""Import from and export to the file format of the official VAR release.

Sizes are read from the shapes of the tensors. Buffers that follow from the sizes (mask, level of each position) are
verified on import, not stored in the modules, and written on export.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from uvar_tune.config.schema import ModelConfig, TokenizerConfig
from uvar_tune.errors import ConfigError, first_line
from uvar_tune.io.atomic import atomic_path
from uvar_tune.io.tensor_file import load_tensors
from uvar_tune.model.attention import prefix_mask
from uvar_tune.model.scales import OFFICIAL_SCALES, level_L, positions
from uvar_tune.model.var import VAR
from uvar_tune.model.vqvae import VQVAE

State = Mapping[str, torch.Tensor]
Network = TypeVar("Network", VQVAE, VAR)
_LEVELS, _MASK, _HITS = "lvl_1L", "attn_bias_for_masking", "quantize.ema_vocab_hit_SV"
OFFICIAL_RATIOS = (0.0, 0.5)  # weight of φ in the quantizer: without φ, and the official default
_CLASSES = "class_emb.weight"
_TRAINER_KEYS = {"vae": "vae_local", "var": "var_wo_ddp"}  # in a trainer checkpoint


def load_official(
    vae: str | Path | State,
    var: str | Path | State | None = None,
    *,
    scales: Sequence[int] | None = None,
    num_heads: int | None = None,
) -> tuple[VQVAE, VAR | None]:
    """The networks of official checkpoints, in evaluation mode on the CPU.

    Args:
        vae: a file or a state dict, bare or as the official trainer wraps it.
        var: likewise; None loads the tokenizer alone.
        scales: needed without a VAR, unless the official list for the tokenizer's number of scales applies (10: 256 px,
            14: 1024 px).
        num_heads: needed if the VAR has no l2 norm in its attention and a width other than 64·depth.

    Returns:
        The tokenizer and the VAR, or None without ``var``.

    Raises:
        ConfigError: a file that cannot be read or is no checkpoint; the first key that is missing, unexpected or of
            another shape; an argument that is needed or contradicts the file.
    """
    vae_state, vae_where = _read(vae, "vae")
    var_state, var_where = (None, "var") if var is None else _read(var, "var")
    scales = _scales(vae_state, vae_where, var_state, var_where, scales)
    vqvae = _load_vqvae(vae_state, vae_where, scales)
    return vqvae, None if var_state is None else _load_var(var_state, var_where, scales, num_heads)


def save_official(
    vqvae: VQVAE, var: VAR | None = None, *, vae_path: str | Path | None = None, var_path: str | Path | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """State dicts that the official code loads strictly.

    Args:
        vqvae: the tokenizer.
        var: the transformer, optional.
        vae_path: file to write the first to.
        var_path: file to write the second to.

    Returns:
        The state dicts of the tokenizer and of the VAR, or None without ``var``.

    Raises:
        ConfigError: ``var_path`` without a VAR, or a tokenizer whose weight of φ the official format cannot express.
    """
    if var is None and var_path is not None:
        raise ConfigError("a path for the VAR, but no VAR", where="var_path")
    if (ratio := vqvae.config.quant_resi) not in OFFICIAL_RATIOS:
        raise ConfigError(
            f"quant_resi {ratio:g} is not stored in an official file, whose readers assume {OFFICIAL_RATIOS[1]:g}",
            where="tokenizer.quant_resi",
        )
    vae_state = {key: value.detach().cpu() for key, value in vqvae.state_dict().items()}
    var_state = None if var is None else _official_var_state(var)
    for state, path in ((vae_state, vae_path), (var_state, var_path)):
        if path is not None:
            with atomic_path(path) as staged:
                torch.save(state, staged)
    return vae_state, var_state


def start_from(var: VAR, source: str | Path | State, *, where: str | None = None) -> None:
    """Load the weights of a trained VAR into ``var``.

    A class embedding for another number of classes is not loaded: that of ``var`` stays as initialized.

    Args:
        var: the network to be trained further.
        source: an official file or state dict, bare or as the official trainer wraps it, or a state dict of `VAR`.
        where: its name in messages.

    Raises:
        ConfigError: as `load_official`; the first key that differs from that of ``var`` is named.
    """
    state, where = _read(source, "var", where)
    own = var.state_dict()
    table, stored = own[_CLASSES], _need(state, _CLASSES, where, dims=2)
    if len(stored) != len(table) and stored.shape[1] == table.shape[1]:
        state[_CLASSES] = table
    if _LEVELS in state:
        _compare({**own, **_derived(var.scales, var.depth, var.width)}, state, "VAR", where)
        _drop_derived(state, where, var.scales, var.depth, var.width)
    _compare(own, state, "VAR", where)
    var.load_state_dict(state)


def _read(source: str | Path | State, which: str, name: str | None = None) -> tuple[dict[str, torch.Tensor], str]:
    """The bare state dict, and its name in messages."""
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
    for key in ("trainer", _TRAINER_KEYS[which]):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    if (
        not isinstance(tree, Mapping)
        or not tree
        or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tree.items())
    ):
        raise ConfigError(
            f"holds no state dict of a {which.upper()}: neither tensors nor 'trainer' with '{_TRAINER_KEYS[which]}'",
            where=where,
        )
    if isinstance(source, Mapping):  # the caller's tensors stay the caller's
        tree = {key: value.detach().clone() for key, value in tree.items()}
    return dict(tree), where


def _scales(vae_state, vae_where: str, var_state, var_where: str, argument: Sequence[int] | None) -> tuple[int, ...]:
    """The scales of the VAR, else the argument, else the official list for the tokenizer's K."""
    if var_state is not None:
        stored = _scales_of_levels(_need(var_state, _LEVELS, var_where), var_where)
        length = positions(stored)
        if _need(var_state, _MASK, var_where).shape != (1, 1, length, length):  # before one is built to compare
            raise ConfigError(f"{_MASK} is not what the scales {list(stored)} make", where=var_where)
        if argument is not None and tuple(argument) != stored:
            raise ConfigError(f"scales {list(argument)} were given, but the VAR has {list(stored)}", where=var_where)
        return stored
    if argument:
        return tuple(argument)
    count = len(_need(vae_state, _HITS, vae_where, dims=2))
    if count not in OFFICIAL_SCALES:
        listed = " or ".join(str(k) for k in OFFICIAL_SCALES)
        raise ConfigError(
            f"a tokenizer of {count} scales does not store their sizes (official lists exist for {listed} scales); "
            "give scales",
            where=vae_where,
        )
    return OFFICIAL_SCALES[count]


def _scales_of_levels(levels_1L: torch.Tensor, where: str) -> tuple[int, ...]:
    levels_L = levels_1L.flatten().long()
    valid = (
        len(levels_L) and not levels_1L.is_floating_point() and 0 <= levels_L.min() <= levels_L.max() < len(levels_L)
    )
    counts = levels_L.bincount().tolist() if valid else [0]
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
    blocks = _count(state, r"encoder\.down\.0\.block\.(\d+)\.")

    def build() -> VQVAE:
        config = TokenizerConfig(
            vocab_size=vocab_size,
            code_dim=code_dim,
            channels=channels,
            scales=scales,
            channel_multipliers=tuple(width // channels for width in widths),
            quant_resi=0.5 if phi or own_phi or single else 0.0,
            share_quant_resi=phi or (0 if own_phi else 1),
        )
        return VQVAE(config, blocks=blocks)

    vqvae = _build_on_meta(build, where)
    if _HITS in state and len(_need(state, _HITS, where, dims=2)) != len(scales):  # an unused statistic of other scales
        state[_HITS] = torch.zeros(len(scales), vocab_size)
    return _fill(vqvae, state, where)


def _load_var(state: dict[str, torch.Tensor], where: str, scales: tuple[int, ...], num_heads: int | None) -> VAR:
    width, code_dim = _need(state, "word_embed.weight", where, dims=2).shape
    hidden = _need(state, "blocks.0.ffn.fc1.weight", where, dims=2).shape[0]
    depth, sharpness = _count(state, r"blocks\.(\d+)\."), state.get("blocks.0.attn.scale_mul_1H11")
    heads = _heads(sharpness, depth, width, num_heads, where)
    vocab_size = _need(state, "head.weight", where, dims=2).shape[0]
    num_classes = _need(state, _CLASSES, where, dims=2).shape[0] - 1

    def build() -> VAR:
        config = ModelConfig(
            depth=depth,
            width=width,
            heads=heads,
            shared_aln="shared_ada_lin.1.weight" in state,
            attn_l2_norm=sharpness is not None,
        )
        return VAR(
            config,
            vocab_size=vocab_size,
            code_dim=code_dim,
            scales=scales,
            num_classes=num_classes,
            mlp_ratio=hidden / width,
        )

    var = _build_on_meta(build, where)
    _drop_derived(state, where, scales, depth, width)
    return _fill(var, state, where)


def _build_on_meta(build: Callable[[], Network], where: str) -> Network:
    """The network on the meta device, where it takes no memory."""
    try:
        with torch.device("meta"):
            return build()
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(f"no network has the sizes of its tensors ({first_line(error)})", where=where) from None


def _heads(sharpness: torch.Tensor | None, depth: int, width: int, argument: int | None, where: str) -> int:
    stored = None if sharpness is None else sharpness.numel()
    if stored and argument and stored != argument:
        raise ConfigError(f"num_heads {argument} was given, but the VAR has {stored}", where=where)
    heads = stored or argument or (depth if width == 64 * depth else None)
    if heads is None:
        raise ConfigError(
            f"without l2 norm, a VAR of depth {depth} and width {width} does not store its number of heads; "
            "give num_heads",
            where=where,
        )
    return heads


def _drop_derived(state: dict[str, torch.Tensor], where: str, scales: Sequence[int], depth: int, width: int) -> None:
    """Verify the buffers of an official VAR that follow from its sizes, and remove them from ``state``."""
    for key, value in _derived(scales, depth, width).items():
        if key not in state or state[key].shape != value.shape or not torch.equal(state[key].to(value.dtype), value):
            raise ConfigError(
                f"{key} " + ("is missing" if key not in state else f"is not what the scales {list(scales)} make"),
                where=where,
            )
        del state[key]


def _derived(scales: Sequence[int], depth: int, width: int) -> dict[str, torch.Tensor]:
    """Buffers of the official VAR: levels, mask, and a key bias of zeros in every block."""
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
    own = module.state_dict()
    _compare(own, state, type(module).__name__, where)
    module.load_state_dict({key: state[key].to("cpu", torch.float32) for key in own}, assign=True)
    return module.requires_grad_(True).eval()


def _compare(expected: State, state: State, name: str, where: str) -> None:
    """Raise ConfigError for the first key that is missing from ``state``, unexpected or of another shape."""
    for key, value in expected.items():
        shape = _need(state, key, where).shape
        if shape != value.shape:
            raise ConfigError(f"{key} has shape {tuple(shape)}, expected {tuple(value.shape)}", where=where)
    for key in state:
        if key not in expected:
            raise ConfigError(f"{key} is not expected in a {name} of these sizes", where=where)


def _need(state: State, key: str, where: str, dims: int | None = None) -> torch.Tensor:
    if key not in state:
        raise ConfigError(f"{key} is missing", where=where)
    shape = tuple(state[key].shape)
    if dims is not None and (len(shape) != dims or 0 in shape):
        raise ConfigError(f"{key} has shape {shape}, expected {dims} dimensions, none of them 0", where=where)
    return state[key]


def _count(state: State, pattern: str) -> int:
    """Number of distinct values of the group of ``pattern`` among the keys."""
    return len({match[1] for match in (re.match(pattern, key) for key in state) if match})
