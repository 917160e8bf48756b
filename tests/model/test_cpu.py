"""Fused CPU functions against PyTorch's autograd in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from uvar_tune.config.schema import ModelConfig
from uvar_tune.model import VAR
from uvar_tune.model.cpu import addcmul, use_fused_cpu_kernels
from uvar_tune.model.transformer import MLP


def gradients(network: torch.nn.Module, output: torch.Tensor, upstream: torch.Tensor, *inputs: torch.Tensor):
    wanted = [*inputs, *(parameter for parameter in network.parameters() if parameter.requires_grad)]
    return torch.autograd.grad(output, wanted, upstream)


def assert_close(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert (one.double() - other).norm() <= 1e-6 * other.norm() + 1e-9


@pytest.mark.parametrize(
    "frozen", [(), ("fc1.weight", "fc2.bias"), ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]
)
@pytest.mark.parametrize(
    "shape", [(3, 7, 12), (2, 1, 12), (0, 5, 12), (1, 1500, 12)]
)  # the last is more than one piece
def test_mlp_equals_autograd(shape, frozen):
    torch.manual_seed(0)
    mlp = MLP(12, 96)
    for name, parameter in mlp.named_parameters():
        parameter.requires_grad_(name not in frozen)
    exact = MLP(12, 96).double()
    exact.load_state_dict(mlp.state_dict())
    for name, parameter in exact.named_parameters():
        parameter.requires_grad_(name not in frozen)
    x, upstream = (4 * torch.randn(shape)).requires_grad_(), torch.randn(shape)
    x64 = x.detach().double().requires_grad_()
    assert use_fused_cpu_kernels(x) and not use_fused_cpu_kernels(x64)
    out, out64 = mlp(x), exact(x64)
    assert "FeedForward" in type(out.grad_fn).__name__
    assert_close([out], [out64])
    assert_close(gradients(mlp, out, upstream, x), gradients(exact, out64, upstream.double(), x64))


@pytest.mark.parametrize("base", [(3, 7, 5), (3, 1, 5)])
def test_addcmul_equals_autograd(base):
    torch.manual_seed(0)
    tensors = [torch.randn(shape, requires_grad=True) for shape in (base, (3, 7, 5), (3, 1, 5))]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    upstream = torch.randn(3, 7, 5)
    out, out64 = addcmul(*tensors), exact[0] + exact[1] * exact[2]
    assert_close([out], [out64])
    assert_close(torch.autograd.grad(out, tensors, upstream), torch.autograd.grad(out64, exact, upstream.double()))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shared_aln", [False, True])
def test_network_gradients_equal_autograd(shared_aln, checkpointing, monkeypatch):
    """With drop path and label dropout."""
    torch.manual_seed(0)
    var = VAR(
        ModelConfig(depth=3, width=32, heads=2, shared_aln=shared_aln, drop_path=0.4),
        scales=(1, 2, 3),
        vocab_size=48,
        code_dim=8,
        num_classes=4,
    ).train()
    var.activation_checkpointing = checkpointing
    noise = var.draw_noise([torch.Generator().manual_seed(i) for i in range(6)])
    assert not noise["path_keep"].all() and noise["path_keep"].any()
    labels, inputs, targets = torch.arange(6) % 4, torch.randn(6, 13, 8), torch.randint(48, (6, 14))

    def actual():
        loss = F.cross_entropy(var(labels, inputs, **noise).flatten(0, 1), targets.flatten())
        return [loss, *torch.autograd.grad(loss, list(var.parameters()))]

    fused = actual()
    for module in ("cpu", "transformer"):
        monkeypatch.setattr(f"uvar_tune.model.{module}.use_fused_cpu_kernels", lambda x: False)
    plain = actual()
    assert any(not torch.equal(*pair) for pair in zip(fused, plain, strict=True))
    for one, other in zip(fused, plain, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-8


def test_fused_functions_only_for_float32_training():
    x = torch.randn(2, 3, 4)
    assert use_fused_cpu_kernels(x)
    with torch.no_grad():
        assert not use_fused_cpu_kernels(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not use_fused_cpu_kernels(x)
    assert not use_fused_cpu_kernels(x.double()) and not use_fused_cpu_kernels(x.to("meta"))
