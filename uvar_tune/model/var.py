"""The VAR transformer: p(tokens of scale k | tokens of coarser scales, class). Its state dict has the official names.

Legend: B batch, L = Σ p_k² positions, C width, V codes, K scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from uvar_tune.config.schema import ModelConfig
from uvar_tune.errors import ConfigError
from uvar_tune.model.attention import PrefixAttention
from uvar_tune.model.scales import positions
from uvar_tune.model.transformer import Block, HeadNorm, SharedAdaLinear

OFFICIAL_MLP_RATIO = 4


class VAR(nn.Module):
    """Transformer of visual autoregressive modelling.

    Args:
        config: size, AdaLN, attention and dropout; unset fields take their official values.
        vocab_size: V, of the tokenizer.
        code_dim: of the tokenizer.
        scales: (p_1, …, p_K), of the tokenizer.
        num_classes: labels are 0 … num_classes-1; num_classes itself is the unconditional label.
        mlp_ratio: hidden units of the MLP per unit of width.

    Attributes:
        config: with every field set.
        class_names: in the order of the labels; empty if unknown. Not part of the state dict.
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        vocab_size: int,
        code_dim: int,
        scales: Sequence[int],
        num_classes: int,
        mlp_ratio: float = OFFICIAL_MLP_RATIO,
    ):
        super().__init__()
        self.config = config = config.resolved()
        depth, width = config.depth, config.width
        self.depth, self.width, self.scales, self.code_dim = depth, width, tuple(scales), code_dim
        self.vocab_size, self.num_classes, self.label_dropout = vocab_size, num_classes, config.label_dropout
        self.mlp_ratio = mlp_ratio
        self.path_drop = [config.drop_path * i / max(1, depth - 1) for i in range(depth) for _ in range(2)]
        self.class_names: tuple[str, ...] = ()
        self.activation_checkpointing = False
        self.first = self.scales[0] ** 2
        self.pos_start = nn.Parameter(torch.empty(1, self.first, width))
        self.pos_1LC = nn.Parameter(torch.empty(1, positions(self.scales), width))
        self.word_embed = nn.Linear(code_dim, width)
        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.lvl_embed = nn.Embedding(len(self.scales), width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), SharedAdaLinear(width)) if config.shared_aln else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, config.heads, mlp_ratio, config.shared_aln, config.attn_l2_norm) for _ in range(depth)
        )
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, vocab_size)
        self.attend = PrefixAttention(self.scales)
        with torch.device("cpu"):  # the values are needed, also of a network on the meta device
            column = torch.tensor(self.path_drop)[:, None]
        # A buffer, on the device of the parameters: a copy in each step would wait for the GPU.
        self.register_buffer("_path_drop_column", column, persistent=False)
        self._train_block: Callable[..., torch.Tensor] = _call_block
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, gate: float = 1e-3) -> None:
        """Draw all parameters from the global random state; biases become 0.

        Args:
            gate: factor on the standard deviation of the gates; if it is small, every block starts near the identity.
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
        """Label dropout and drop path of a training step, as keyword arguments of `forward`.

        Args:
            generators: one per image, on the CPU.

        Returns:
            ``label_drop_B`` (B,) bool, true where the label is dropped; ``path_keep`` (2·depth, B) bool, false where a
            branch is dropped, the two branches of a block in consecutive rows.
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
            label_drop_B: from `draw_noise`; None draws from the global random state. Unused in evaluation mode.
            path_keep: from `draw_noise`; None draws from the global random state. Unused in evaluation mode.
            hidden: return the input (B, L, C) of ``head``, for losses that never hold all logits.

        Returns:
            logits_BLV, float32.

        Raises:
            ConfigError: a label out of range (not checked on a GPU), or a teacher input of another shape.
        """
        self._check(labels_B, teacher_input)
        gates: torch.Tensor | None = None
        if self.training:
            labels_B, gates = self._drop(labels_B, label_drop_B, path_keep)
        with torch.autocast(labels_B.device.type, enabled=False):
            class_BC = self.class_emb(labels_B)
            x_BLC = torch.cat((self.start_tokens(class_BC), self.word_embed(teacher_input.float())), dim=1)
            x_BLC = x_BLC + self.position_embedding()
        condition = self.shared_ada_lin(class_BC)
        for i, block in enumerate(self.blocks):
            gate_2B = None if gates is None else gates[2 * i : 2 * i + 2]
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BLC = checkpoint(
                    self._train_block, block, x_BLC, condition, self.attend, gate_2B, use_reentrant=False
                )
            elif self.training:
                x_BLC = self._train_block(block, x_BLC, condition, self.attend, gate_2B)
            else:
                x_BLC = block(x_BLC, condition, self.attend, gate_2B)
        states_BLC = self.head_nm(x_BLC.float(), class_BC).float()
        return states_BLC if hidden else self.head(states_BLC).float()

    def compile_blocks(self, **options) -> None:
        """Compile the blocks for training, each as one graph that all of them share.

        Gradients then appear block by block, so that data parallelism can reduce them during the backward pass.
        Evaluation and sampling, whose shapes vary, are not compiled.

        Args:
            options: of `torch.compile`.
        """
        self._train_block = torch.compile(_call_block, fullgraph=True, dynamic=False, **options)

    def start_tokens(self, class_BC: torch.Tensor) -> torch.Tensor:
        """The first p_1² inputs without position embedding, (B, p_1², C)."""
        return class_BC[:, None] + self.pos_start

    def position_embedding(self) -> torch.Tensor:
        """Position plus level embedding of every position, (1, L, C)."""
        levels = [self.lvl_embed.weight[k].expand(p * p, -1) for k, p in enumerate(self.scales)]
        return self.pos_1LC + torch.cat(levels)

    def _drop(self, labels_B, label_drop_B, path_keep) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Labels after dropout, and the factor of each branch (2·depth, B), None without drop path."""
        device = labels_B.device
        if label_drop_B is None:
            label_drop_B = torch.rand(len(labels_B), device=device) < self.label_dropout
        labels_B = torch.where(label_drop_B.to(device), self.num_classes, labels_B)
        if not any(self.path_drop):
            return labels_B, None
        drop = self._path_drop_column
        if path_keep is None:
            path_keep = torch.rand(2 * self.depth, len(labels_B), device=device) >= drop
        return labels_B, path_keep.to(device) / (1 - drop)

    def _check(self, labels_B: torch.Tensor, teacher_input: torch.Tensor) -> None:
        shape = (len(labels_B), positions(self.scales) - self.first, self.code_dim)
        if tuple(teacher_input.shape) != shape:
            raise ConfigError(
                f"teacher input of shape {tuple(teacher_input.shape)}, expected {shape}", where="teacher_input"
            )
        if not labels_B.is_cuda and not torch.compiler.is_compiling():
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


def _call_block(block: Block, *arguments) -> torch.Tensor:
    return block(*arguments)
