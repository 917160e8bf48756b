"""Files of the official release: sizes read from the tensors, round trips, errors."""

from __future__ import annotations

import pytest
import torch

from uvar_tune.config.schema import ModelConfig, TokenizerConfig
from uvar_tune.errors import ConfigError
from uvar_tune.model import VAR, VQVAE, load_official, save_official, start_from

SCALES = (1, 2, 4)


def networks(*, scales=SCALES, share=4, shared_aln=False, l2=True, heads=2, width=32, blocks=2, multipliers=(1, 2)):
    torch.manual_seed(0)
    vqvae = VQVAE(
        TokenizerConfig(
            vocab_size=24,
            code_dim=8,
            channels=16,
            channel_multipliers=multipliers,
            scales=scales,
            share_quant_resi=share,
        ),
        blocks=blocks,
    )
    var = VAR(
        ModelConfig(depth=3, width=width, heads=heads, shared_aln=shared_aln, attn_l2_norm=l2),
        scales=scales,
        vocab_size=24,
        code_dim=8,
        num_classes=4,
    )
    return vqvae.eval(), var.eval()


def sizes(var: VAR) -> dict:
    return {name: getattr(var, name) for name in ("vocab_size", "code_dim", "scales", "num_classes", "mlp_ratio")}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share": 0},
        {"share": 1},
        {"shared_aln": True},
        {"l2": False},
        {"heads": 8},
        {"blocks": 1, "multipliers": (1, 1, 4)},
        {"scales": (1, 3, 4, 6)},
    ],
)
def test_round_trip_recovers_every_size(options, tmp_path):
    vqvae, var = networks(**options)
    save_official(vqvae, var, vae_path=tmp_path / "vae.pth", var_path=tmp_path / "var.pth")
    heads = 2 if options.get("l2") is False else None
    again_vqvae, again_var = load_official(tmp_path / "vae.pth", tmp_path / "var.pth", num_heads=heads)
    assert again_vqvae.settings() == vqvae.settings()
    kept = {"label_dropout", "drop_path"}  # of training, not in the file
    assert sizes(again_var) == sizes(var) and again_var.config.model_dump(exclude=kept) == var.config.model_dump(
        exclude=kept
    )
    assert same(again_vqvae, vqvae) and same(again_var, var) and not again_var.training


def test_trainer_checkpoints_are_unwrapped(tmp_path):
    vqvae, var = networks()
    vae_state, var_state = save_official(vqvae, var)
    path = tmp_path / "ar-ckpt-last.pth"
    torch.save(
        {"epoch": 3, "iter": 0, "trainer": {"config": {}, "var_wo_ddp": var_state, "vae_local": vae_state}, "args": {}},
        path,
    )
    again_vqvae, again_var = load_official(path, path)
    assert same(again_vqvae, vqvae) and same(again_var, var)


def test_official_layout_holds_the_buffers(tmp_path):
    _, state = save_official(*networks())
    assert state["lvl_1L"].tolist() == [[0] + [1] * 4 + [2] * 16]
    mask = state["attn_bias_for_masking"][0, 0]
    assert (
        mask.shape == (21, 21)
        and not mask[5:].any()
        and torch.isneginf(mask[1:5, 5:]).all()
        and not mask[1:5, :5].any()
    )
    assert not state["blocks.2.attn.zero_k_bias"].any()


def test_scales_come_from_var_or_official_list():
    vqvae, _ = networks()
    state, _ = save_official(vqvae)
    assert load_official(state, scales=SCALES)[0].scales == SCALES
    with pytest.raises(ConfigError, match="a tokenizer of 3 scales .* give scales"):
        load_official(state)
    long = networks(scales=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32), share=1)
    assert load_official(save_official(long[0])[0])[0].scales == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    assert load_official(*save_official(*long))[0].scales == long[0].scales
    with pytest.raises(ConfigError, match="scales .1, 2, 3. were given, but the VAR has .1, 2, 4."):
        load_official(*save_official(*networks()), scales=(1, 2, 3))


def test_statistics_of_other_scales_are_left_out():
    vqvae, var = networks()
    vae_state, var_state = save_official(vqvae, var)
    vae_state["quantize.ema_vocab_hit_SV"] = torch.ones(10, 24)
    assert not load_official(vae_state, var_state)[0].quantize.ema_vocab_hit_SV.any()


def test_heads_without_l2_norm():
    states = save_official(*networks(l2=False, width=40, heads=5))
    with pytest.raises(ConfigError, match="depth 3 and width 40 .* give num_heads"):
        load_official(*states)
    assert load_official(*states, num_heads=5)[1].config.heads == 5
    with pytest.raises(ConfigError, match="num_heads 4 was given, but the VAR has 2"):
        load_official(*save_official(*networks()), num_heads=4)
    official = save_official(*networks(l2=False, width=192, heads=3))
    assert load_official(*official)[1].config.heads == 3


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("vae", lambda s: s.pop("decoder.mid.attn_1.norm.bias"), "decoder.mid.attn_1.norm.bias is missing"),
        ("vae", lambda s: s.update({"extra.weight": torch.zeros(1)}), "extra.weight is not expected"),
        (
            "vae",
            lambda s: s.update({"quant_conv.bias": torch.zeros(3)}),
            r"quant_conv.bias has shape \(3,\), expected \(8,",
        ),
        ("vae", lambda s: s.pop("quantize.embedding.weight"), "quantize.embedding.weight is missing"),
        ("var", lambda s: s.pop("blocks.1.ffn.fc2.bias"), "blocks.1.ffn.fc2.bias is missing"),
        ("var", lambda s: s.pop("attn_bias_for_masking"), "attn_bias_for_masking is missing"),
        ("var", lambda s: s.pop("lvl_1L"), "lvl_1L is missing"),
        ("var", lambda s: s["lvl_1L"].add_(1), "lvl_1L does not count square scales"),
        ("var", lambda s: s["attn_bias_for_masking"].zero_(), "attn_bias_for_masking is not what the scales"),
        ("var", lambda s: s.update({"head.bias": torch.zeros(5)}), r"head.bias has shape \(5,\)"),
        ("var", lambda s: s.update({"cls_token": torch.zeros(5)}), "cls_token is not expected in a VAR"),
    ],
)
def test_wrong_file_names_the_first_key(which, change, message):
    states = dict(zip(("vae", "var"), save_official(*networks()), strict=True))
    states = {name: {key: value.clone() for key, value in state.items()} for name, state in states.items()}
    change(states[which])
    with pytest.raises(ConfigError, match=message):
        load_official(states["vae"], states["var"])


def other_var(var, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        own = {name: value for name, value in changes.items() if name in ModelConfig.model_fields}
        rest = {name: value for name, value in changes.items() if name not in own}
        return VAR(var.config.model_copy(update=own), **{**sizes(var), **rest})


@pytest.mark.parametrize("options", [{}, {"shared_aln": True}, {"l2": False}])
def test_weights_to_start_from(options, tmp_path):
    vqvae, var = networks(**options)
    official = save_official(vqvae, var, var_path=tmp_path / "var.pth")[1]
    wrapped = {"trainer": {"var_wo_ddp": official}}
    for source in (tmp_path / "var.pth", official, wrapped, var.state_dict()):
        started = other_var(var, label_dropout=0.3)
        assert not same(started, var)
        start_from(started, source)
        assert same(started, var) and started.label_dropout == 0.3 and started.head.weight.requires_grad


def test_other_class_count_keeps_fresh_table():
    vqvae, var = networks()
    fresh, started = other_var(var, num_classes=9).state_dict(), other_var(var, num_classes=9)
    start_from(started, save_official(vqvae, var)[1])
    for key, value in started.state_dict().items():
        assert torch.equal(value, fresh[key] if key == "class_emb.weight" else var.state_dict()[key]), key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, "place: blocks.3.attn.scale_mul_1H11 is missing"),
        ({"vocab_size": 30}, r"head.weight has shape \(24, 32\)"),
        ({"width": 64, "heads": 4}, "pos_start has shape"),
        ({"scales": (1, 2, 3)}, "pos_1LC has shape"),
        ({"scales": (1, 4, 2)}, "lvl_1L is not what the scales .1, 4, 2. make"),
        ({"shared_aln": True}, "shared_ada_lin.1.weight is missing"),
        ({"depth": 2}, "blocks.2.*is not expected in a VAR"),
    ],
)
def test_wrong_start_names_the_first_key(changes, message):
    vqvae, var = networks()
    target = other_var(var, **changes)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        start_from(target, save_official(vqvae, var)[1], where="place")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_files_that_are_no_checkpoints(tmp_path):
    vqvae, var = networks()
    good, bad = tmp_path / "vae.pth", tmp_path / "bad.pth"
    save_official(vqvae, vae_path=good)
    whole = good.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"no checkpoint at all\n" * 50):
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match="bad.pth.* cut short"):
            load_official(bad)
    with pytest.raises(ConfigError, match="there is no such file"):
        load_official(tmp_path / "missing.pth")
    torch.save({"a": 1, "b": [2]}, bad)
    with pytest.raises(ConfigError, match="holds no state dict of a VAE"):
        load_official(bad)
    torch.save(vqvae, bad)  # a pickled module would run code when it is read
    with pytest.raises(ConfigError, match="plain tensors"):
        load_official(bad)
    with pytest.raises(ConfigError, match="quantize.embedding.weight is missing"):
        load_official(save_official(vqvae, var)[1], scales=SCALES)


def test_caller_state_dict_is_not_shared():
    vqvae, var = networks()
    vae_state, var_state = save_official(vqvae, var)
    loaded = load_official(vae_state, var_state)[1]
    with torch.no_grad():
        loaded.head.weight.zero_()
    assert var_state["head.weight"].any()
