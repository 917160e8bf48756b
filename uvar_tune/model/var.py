"""The VAR transformer: p(tokens of scale k | tokens of coarser scales, class). Parameter names are the official ones.

Legend: B batch, L = Σ p_k² positions, C width, V codes, K scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from uvar_tune.errors import ConfigError
from uvar_tune.model.attention import PrefixAttention
from uvar_tune.model.scales import positions
from uvar_tune.model.transformer import Block, HeadNorm, SharedAdaLinear


class VAR(nn.Module):
    """Args:
        depth, width, heads: of the transformer; the official models have width 64·depth and heads = depth.
        scales, vocab_size, code_dim: those of the tokenizer.
        num_classes: labels are 0 … num_classes-1; num_classes itself is the unconditional label.
        shared_aln: one AdaLN projection for all blocks.
        attn_l2_norm: queries and keys of length 1 with a learned sharpness per head; else a softmax scale of 0.25/√d.
        label_dropout: share of the labels made unconditional, in training mode only.
        drop_path: of the last block, growing linearly from 0 at the first; None is the official 0.1·depth/24.

    Attributes:
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        heads: int,
        scales: Sequence[int],
        vocab_size: int,
        code_dim: int,
        num_classes: int,
        shared_aln: bool = False,
        attn_l2_norm: bool = True,
        label_dropout: float = 0.1,
        drop_path: float | None = None,
        mlp_ratio: float = 4,
    ):
        super().__init__()
        if width % heads:
            raise ConfigError(f"width {width} is not a multiple of heads {heads}", where="model.width")
        drop_path = 0.1 * depth / 24 if drop_path is None else drop_path
        self._settings = {
            "depth": int(depth),
            "width": int(width),
            "heads": int(heads),
            "scales": list(scales),
            "vocab_size": int(vocab_size),
            "code_dim": int(code_dim),
            "num_classes": int(num_classes),
            "shared_aln": bool(shared_aln),
            "attn_l2_norm": bool(attn_l2_norm),
            "label_dropout": float(label_dropout),
            "drop_path": float(drop_path),
            "mlp_ratio": mlp_ratio,
        }
        self.depth, self.width, self.scales = depth, width, tuple(scales)
        self.vocab_size, self.num_classes, self.label_dropout = vocab_size, num_classes, label_dropout
        self.path_drop = [drop_path * i / max(1, depth - 1) for i in range(depth) for _ in range(2)]
        self.activation_checkpointing = False
        self.first = self.scales[0] ** 2
        self.pos_start = nn.Parameter(torch.empty(1, self.first, width))
        self.pos_1LC = nn.Parameter(torch.empty(1, positions(self.scales), width))
        self.word_embed = nn.Linear(code_dim, width)
        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.lvl_embed = nn.Embedding(len(self.scales), width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), SharedAdaLinear(width)) if shared_aln else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, shared_aln, attn_l2_norm) for _ in range(depth))
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, vocab_size)
        self.attend = PrefixAttention(self.scales)
        self.init_weights()

    def settings(self) -> dict[str, Any]:
        """The arguments that make this VAR again, as JSON holds them."""
        return dict(self._settings)

    @torch.no_grad()
    def init_weights(self, gate: float = 1e-3) -> None:
        """Draw all parameters anew from the global random state; biases become 0.

        Args:
            gate: ratio of the standard deviation of what makes the gates; small, every block starts near the identity.
        """
        std = math.sqrt(1 / (3 * self.width))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        nn.init.trunc_normal_(self.pos_start, std=std)
        nn.init.trunc_normal_(self.pos_1LC, std=std)
        self.head.weight.mul_(0.02)
        self.head_nm.ada_lin[-1].weight.mul_(0.5)
        for block in self.blocks:
            block.attn.proj.weight.div_(math.sqrt(2 * self.depth))
            block.ffn.fc2.weight.div_(math.sqrt(2 * self.depth))
            if hasattr(block, "ada_gss"):
                block.ada_gss.normal_(std=self.width**-0.5)
                block.ada_gss[:, :, :2].mul_(gate)
                block.ada_gss[:, :, 2:].mul_(0.5)
            else:
                block.ada_lin[-1].weight[: 2 * self.width].mul_(gate)
                block.ada_lin[-1].weight[2 * self.width :].mul_(0.5)

    def draw_noise(self, generators: Sequence[torch.Generator]) -> dict[str, torch.Tensor]:
        """The random decisions of a training step, each image's from its own generator (CPU).

        Returns:
            ``label_drop_B`` (B,) bool, true where the label is dropped; ``path_keep`` (2·depth, B) bool, false where a
            branch is dropped, the two of a block one after the other. Keyword arguments of `forward`.
        """
        draws = torch.stack([torch.rand(1 + 2 * self.depth, generator=generator) for generator in generators], dim=1)
        return {
            "label_drop_B": draws[0] < self.label_dropout,
            "path_keep": draws[1:] >= torch.tensor(self.path_drop)[:, None],
        }

    def forward(
        self,
        labels_B: torch.Tensor,
        teacher_input: torch.Tensor,
        *,
        label_drop_B: torch.Tensor | None = None,
        path_keep: torch.Tensor | None = None,
        hidden: bool = False,
    ) -> torch.Tensor:
        """Logits of every token given all coarser scales.

        Args:
            labels_B: (B,) int64, 0 … num_classes.
            teacher_input: (B, L - p_1², code_dim), from `VQVAE.teacher_input`.
            label_drop_B, path_keep: from `draw_noise`, for training mode; drawn from the global random state where not
                given. In evaluation mode nothing is dropped, whatever is given.
            hidden: return (B, L, C), to which ``head`` is still to be applied (losses that never hold all logits).

        Returns:
            logits_BLV, float32.

        Raises:
            ConfigError: a label out of range (not looked for on a GPU), or a teacher input of another shape.
        """
        self._check(labels_B, teacher_input)
        gates: torch.Tensor | None = None
        if self.training:
            labels_B, gates = self._drop(labels_B, label_drop_B, path_keep)
        with torch.autocast(labels_B.device.type, enabled=False):
            class_BC = self.class_emb(labels_B)
            x_BLC = torch.cat((self.start(class_BC), self.word_embed(teacher_input.float())), dim=1)
            x_BLC = x_BLC + self.places()
        condition = self.shared_ada_lin(class_BC)
        for i, block in enumerate(self.blocks):
            gate_2B = None if gates is None else gates[2 * i : 2 * i + 2]
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BLC = checkpoint(block, x_BLC, condition, self.attend, gate_2B, use_reentrant=False)
            else:
                x_BLC = block(x_BLC, condition, self.attend, gate_2B)
        states_BLC = self.head_nm(x_BLC.float(), class_BC).float()
        return states_BLC if hidden else self.head(states_BLC).float()

    def start(self, class_BC: torch.Tensor) -> torch.Tensor:
        """The first p_1² inputs, before their places are added: (B, p_1², C)."""
        return class_BC[:, None] + self.pos_start

    def places(self) -> torch.Tensor:
        """Position and level embedding of every position, (1, L, C)."""
        levels = [self.lvl_embed.weight[k].expand(p * p, -1) for k, p in enumerate(self.scales)]
        return self.pos_1LC + torch.cat(levels)

    def _drop(self, labels_B, label_drop_B, path_keep) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(labels after dropout, factor of each branch (2·depth, B), or None where no path is ever dropped)."""
        device = labels_B.device
        if label_drop_B is None:
            label_drop_B = torch.rand(len(labels_B), device=device) < self.label_dropout
        labels_B = torch.where(label_drop_B.to(device), self.num_classes, labels_B)
        if not any(self.path_drop):
            return labels_B, None
        drop = torch.tensor(self.path_drop, device=device)[:, None]
        if path_keep is None:
            path_keep = torch.rand(2 * self.depth, len(labels_B), device=device) >= drop
        return labels_B, path_keep.to(device) / (1 - drop)

    def _check(self, labels_B: torch.Tensor, teacher_input: torch.Tensor) -> None:
        wanted = (len(labels_B), positions(self.scales) - self.first, self.word_embed.in_features)
        if tuple(teacher_input.shape) != wanted:
            raise ConfigError(
                f"teacher input of shape {tuple(teacher_input.shape)}, expected {wanted}", where="teacher_input"
            )
        if not labels_B.is_cuda:
            self.check_labels(labels_B)

    def check_labels(self, labels_B: torch.Tensor) -> None:
        """ConfigError unless every label is one of 0 … num_classes."""
        wrong = labels_B[(labels_B < 0) | (labels_B > self.num_classes)]
        if len(wrong):
            raise ConfigError(
                f"label {int(wrong[0])} is not one of 0 … {self.num_classes - 1} "
                f"(or {self.num_classes}, unconditional)",
                where="labels",
            )
