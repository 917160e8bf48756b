"""The transformer: attention, dropout, initialization, sizes, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from uvar_tune import seeds
from uvar_tune.config.schema import ModelConfig
from uvar_tune.errors import ConfigError
from uvar_tune.model import PRESETS, VAR, preset
from uvar_tune.model.attention import MASKED_POSITIONS, PrefixAttention, Prefixes, UnitHeads, prefix_mask
from uvar_tune.model.scales import OFFICIAL_SCALES, SCALES_512, boundaries, positions

PARAMETERS = {
    "d16": 310_283_520,
    "d20": 600_917_136,
    "d24": 1_033_399_360,
    "d30": 2_010_020_356,
    "d36-s": 2_353_893_904,
}


def like(var: VAR, **changes) -> VAR:
    config = var.config.model_copy(update=changes)
    return VAR(config, vocab_size=var.vocab_size, code_dim=var.code_dim, scales=var.scales, num_classes=var.num_classes)


def given(var, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.arange(batch), torch.randn(batch, positions(var.scales) - 1, 16, generator=generator)


@pytest.mark.parametrize("scales", [(1,), (1, 2, 3, 4), OFFICIAL_SCALES[10], (13, 14)])
def test_attention_equals_masked_attention(scales):
    length = positions(scales)
    q, k, v = torch.randn(3, 2, 2, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q.requires_grad_()
    actual = PrefixAttention(scales)(q, k, v, 0.7)
    scores = 0.7 * q @ k.transpose(-1, -2) + prefix_mask(scales).double()
    expected = scores.softmax(-1) @ v
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), q)[0] for out in (actual, expected)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-11)
    assert (len(PrefixAttention(scales).bounds) > 1) == (length > MASKED_POSITIONS)


def test_prefixes_equal_slices_in_less_memory():
    """The same bits as slices; the backward pass allocates one tensor of full size, not one for each slice and sum."""
    ends, full = (14, 50, 183), 2 * 2 * 183 * 8
    x = torch.randn(2, 2, 183, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = [torch.randn(2, 2, end, 8, generator=torch.Generator().manual_seed(end)) for end in ends]
    allocated: dict[str, int] = {}

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            fresh = torch.is_tensor(result) and not any(a.is_set_to(result) for a in arguments if torch.is_tensor(a))
            if fresh and not function.is_view and result.numel() == full:
                allocated[side] += 1
            return result

    gradients = {}
    for side, views in (("slices", [x[:, :, :end] for end in ends]), ("prefixes", Prefixes.apply(x, ends))):
        allocated[side] = 0
        with Allocations():
            gradients[side] = torch.autograd.grad(views, x, weights)[0]
    assert torch.equal(gradients["slices"], gradients["prefixes"])
    assert allocated["prefixes"] == 1 < allocated["slices"]


def test_unit_heads_equal_autograd():
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    sharpness = torch.tensor([4.0, 0.5], dtype=torch.float64, requires_grad=True)
    q, k, v = UnitHeads.apply(qkv, sharpness)
    assert torch.allclose(q.norm(dim=-1), sharpness[:, None].expand(2, 2, 5))
    assert torch.allclose(k.norm(dim=-1), torch.ones(2, 2, 5, dtype=torch.float64))
    *expected, values = qkv.permute(2, 0, 3, 1, 4)
    expected = [torch.nn.functional.normalize(part, dim=-1) for part in expected]
    weights = torch.randn(3, *q.shape, dtype=torch.float64, generator=generator)
    plain = weights[0] * expected[0] * sharpness[:, None, None] + weights[1] * expected[1] + weights[2] * values
    actual = torch.autograd.grad((weights[0] * q + weights[1] * k + weights[2] * v).sum(), (qkv, sharpness))
    for ours, theirs in zip(actual, torch.autograd.grad(plain.sum(), (qkv, sharpness)), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_position_sees_own_and_coarser_scales(var):
    labels_B, teacher_input = given(var)
    before = var(labels_B, teacher_input)
    for start, end in boundaries(var.scales)[1:]:
        changed = teacher_input.clone()
        changed[:, end - 2] += 1.0  # the last position of this scale; the first input belongs to position 1
        moved = (var(labels_B, changed) - before).abs().amax((0, 2)) > 1e-7
        assert not moved[:start].any() and moved[start:].all()


def test_dropout_follows_masks_in_training_only(var):
    labels_B, teacher_input = given(var)
    var.train()
    try:
        noise = {"label_drop_B": torch.tensor([True, False, False]), "path_keep": torch.ones(4, 3, dtype=torch.bool)}
        dropped = like(var, drop_path=0.0)
        dropped.load_state_dict(var.state_dict())
        unconditional = labels_B.clone()
        unconditional[0] = var.num_classes
        assert torch.equal(dropped(labels_B, teacher_input, **noise), dropped.eval()(unconditional, teacher_input))
        noise["path_keep"][2, 1] = False  # attention of the second block, second image
        kept = var(labels_B, teacher_input, **{**noise, "path_keep": torch.ones(4, 3, dtype=torch.bool)})
        changed = (var(labels_B, teacher_input, **noise) - kept).abs().amax((1, 2)) > 0
        assert changed.tolist() == [False, True, False]
    finally:
        var.eval()
    assert torch.equal(var(labels_B, teacher_input, **noise), var(labels_B, teacher_input))
    assert not torch.equal(var(unconditional, teacher_input), var(labels_B, teacher_input))


def test_noise_is_per_image_at_the_right_rates():
    var = VAR(
        ModelConfig(depth=4, width=8, heads=2, drop_path=0.3), scales=(1, 2), vocab_size=4, code_dim=2, num_classes=3
    )
    together = var.draw_noise([torch.Generator().manual_seed(i) for i in range(4000)])
    alone = var.draw_noise([torch.Generator().manual_seed(17)])
    assert together["label_drop_B"][17] == alone["label_drop_B"][0]
    assert torch.equal(together["path_keep"][:, 17], alone["path_keep"][:, 0])
    assert together["label_drop_B"].float().mean() == pytest.approx(0.1, abs=0.02)
    kept = together["path_keep"].float().mean(1)
    assert torch.allclose(kept, torch.tensor([1.0, 1.0, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7]), atol=0.03)


def test_drop_path_keeps_the_mean():
    """A kept branch is scaled by 1/(1-p), so that the mean over the masks is the output without drop path."""
    var = VAR(
        ModelConfig(depth=2, width=8, heads=2, drop_path=0.25), scales=(1,), vocab_size=4, code_dim=2, num_classes=1
    )
    _, gates = var._drop(
        torch.zeros(4, dtype=torch.long),
        torch.zeros(4, dtype=torch.bool),
        torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]]).bool(),
    )
    assert torch.allclose(gates.mean(1), torch.ones(4))


def test_checkpointing_gives_the_same_gradients(var):
    labels_B, teacher_input = given(var)
    plain = var(labels_B, teacher_input)
    assert torch.equal(var.head(var(labels_B, teacher_input, hidden=True)), plain)
    gradients = []
    for recompute in (False, True):
        var.activation_checkpointing = recompute
        gradients.append(torch.autograd.grad(var(labels_B, teacher_input).square().sum(), list(var.parameters())))
    var.activation_checkpointing = False
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_autocast_stays_near_float32(var):
    labels_B, teacher_input = given(var)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = var(labels_B, teacher_input)
    plain = var(labels_B, teacher_input)
    assert logits.dtype == torch.float32
    assert (logits - plain).abs().max() < 0.1 * plain.std()


@pytest.mark.parametrize("shared", [False, True])
def test_initialisation(shared):
    """Standard deviations in units of sqrt(1/(3·width)); gates near zero, but not the shared projection."""
    torch.manual_seed(0)
    var = VAR(
        ModelConfig(depth=6, width=256, heads=4, shared_aln=shared),
        scales=(1, 2, 3, 4, 5),
        vocab_size=512,
        code_dim=32,
        num_classes=200,
    )
    unit, width = math.sqrt(1 / (3 * 256)), 256
    branch = 1 / math.sqrt(2 * 6)
    expected = {
        "pos_start": 1,
        "pos_1LC": 1,
        "word_embed.weight": 1,
        "class_emb.weight": 1,
        "lvl_embed.weight": 1,
        "blocks.3.attn.mat_qkv.weight": 1,
        "blocks.3.attn.proj.weight": branch,
        "blocks.3.ffn.fc1.weight": 1,
        "blocks.3.ffn.fc2.weight": branch,
        "head_nm.ada_lin.1.weight": 0.5,
        "head.weight": 0.02,
    }
    state = var.state_dict()
    actual = {key: state[key] for key in expected}
    if shared:
        expected |= {"shared_ada_lin.1.weight": 1, "gates": 1e-3 * math.sqrt(3), "rest": 0.5 * math.sqrt(3)}
        actual["shared_ada_lin.1.weight"] = state["shared_ada_lin.1.weight"]
        actual["gates"], actual["rest"] = state["blocks.3.ada_gss"][:, :, :2], state["blocks.3.ada_gss"][:, :, 2:]
    else:
        expected |= {"gates": 1e-3, "rest": 0.5}
        actual["gates"], actual["rest"] = state["blocks.3.ada_lin.1.weight"].split([2 * width, 4 * width])
    for key, ratio in expected.items():
        spread = 4 / math.sqrt(2 * actual[key].numel())  # four standard errors of a standard deviation
        assert float(actual[key].std()) / unit == pytest.approx(ratio, rel=spread), key
    assert all(not value.any() for key, value in state.items() if key.endswith("bias"))
    assert float(state["blocks.3.attn.scale_mul_1H11"].unique()) == pytest.approx(math.log(4))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_official_sizes(name):
    with torch.device("meta"):
        tokenizer, transformer = preset(name).build_vqvae(), preset(name).build_var()
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (tokenizer, transformer)]
    if name in PARAMETERS:
        assert counts == [108_948_355, PARAMETERS[name]]
        assert tokenizer.image_size == (512 if name == "d36-s" else 256)
        assert transformer.scales == (SCALES_512 if name == "d36-s" else OFFICIAL_SCALES[10])
        assert transformer.path_drop[-1] == pytest.approx(0.1 * transformer.depth / 24)
    with torch.device("meta"):
        small = preset(name, vocab_size=2048, num_classes=7).build_var()
    assert small.head.weight.shape[0] == 2048 and small.class_emb.weight.shape[0] == 8


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="'d36'.*did you mean 'd36-s'"):
        preset("d36")


def test_config_rebuilds_the_same_transformer(var):
    again = like(var).eval()
    again.load_state_dict(var.state_dict())
    assert torch.equal(again(*given(var)), var(*given(var)))


def test_bad_labels_and_inputs_are_refused(var):
    labels_B, teacher_input = given(var)
    for wrong in (-1, 11):
        with pytest.raises(ConfigError, match=f"label {wrong} is not one of 0 … 9"):
            var(torch.tensor([0, wrong, 2]), teacher_input)
    with pytest.raises(ConfigError, match="teacher input of shape"):
        var(labels_B, teacher_input[:, 1:])


def test_training_forward_copies_nothing_to_device(var):
    """`torch.tensor` of a list would, on a GPU, wait for all work that is queued."""
    labels_B, teacher_input = given(var)
    noise, copies = var.draw_noise([seeds.generator(1, position) for position in range(3)]), []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            name = function.name()
            if name == "aten::_local_scalar_dense" or (name == "aten::lift_fresh" and arguments[0].ndim):
                copies.append(name)
            return function(*arguments, **(keywords or {}))

    var.check_labels = lambda labels_B: None  # which a GPU skips
    with Copies():
        var.train()(labels_B, teacher_input, **noise)
    assert not copies


def test_compiled_blocks_are_one_graph():
    """`fullgraph` refuses breaks; both blocks share a graph, evaluation has none, values and gradients agree."""
    config = ModelConfig(depth=2, width=16, heads=2, drop_path=0.5)
    results, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    for compiled in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            var = VAR(config, vocab_size=8, code_dim=16, scales=(1, 2, 3, 13), num_classes=4).train()
        if compiled:
            var.compile_blocks(backend=backend)
        labels_B, teacher_input = given(var)
        noise = var.draw_noise([seeds.generator(1, position) for position in range(3)])
        logits_BLV = var(labels_B, teacher_input, **noise)
        results.append((logits_BLV, *torch.autograd.grad(logits_BLV.square().sum(), list(var.parameters()))))
        var.eval()(labels_B, teacher_input)
    assert len(graphs) == 1
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
