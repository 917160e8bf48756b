"""`loss.lambda_unit: share`: the λ that run move the asked share of the gradient at the baseline's predictions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from uvar_tune.config.loading import validate
from uvar_tune.config.schema import DataConfig, TokenizerConfig
from uvar_tune.data import TokenCache, build_token_cache, load_images
from uvar_tune.data.order import spread_rows
from uvar_tune.errors import ConfigError
from uvar_tune.metrics import metric
from uvar_tune.model import VQVAE
from uvar_tune.model.scales import split
from uvar_tune.objective import composite_loss
from uvar_tune.specs import Assets, TrialSpec
from uvar_tune.tracking.metrics_log import open_metrics_log, read_records
from uvar_tune.training import load_tokenizer, save_checkpoint, save_tokenizer
from uvar_tune.trial.assets import _references
from uvar_tune.trial.factory import new_var
from uvar_tune.trial.loss_constants import loss_constants
from uvar_tune.trial.resume import InfeasibleTrial, resolve_lambdas
from uvar_tune.trial.scoring import SHARE_IMAGES, CheckpointScorer

SETTINGS = {"vocab_size": 32, "code_dim": 8, "channels": 8, "scales": (1, 2, 4), "channel_multipliers": (1, 1, 2)}
TREE = {"tokenizer": SETTINGS, "model": {"depth": 1, "width": 32, "heads": 2}, "evaluation": {"samples": 16}}


def config_of(**objective):
    return validate({**TREE, "loss": {"lambda_unit": "share", **objective}}, "x")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(tokenizer, the spec of a trial) of a study whose baseline is a network of random weights."""
    root = tmp_path_factory.mktemp("shares")
    torch.manual_seed(0)
    save_tokenizer(root / "tokenizer", VQVAE(TokenizerConfig(**SETTINGS)))
    vqvae = load_tokenizer(root / "tokenizer").eval().requires_grad_(False)
    splits = {name: load_images(DataConfig(image_size=16), name) for name in ("train", "validation")}
    for name, images in splits.items():
        build_token_cache(root / "tokens" / name, images, vqvae)
    tokens = {name: str(root / "tokens" / name) for name in splits}
    assets = Assets(str(root / "tokenizer"), tokens, str(root / "cache"), 10, [], {}, None, {})
    baseline = new_var(config_of(), vqvae, 10, seed=1)
    for parameter in baseline.parameters():  # predictions that differ, as those of a trained network do
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(
        root / "trials" / "00000" / "checkpoints" / "000000000640",
        var_state=baseline.state_dict(),
        config=config_of().tree(),
        tokenizer={"path": str(root / "tokenizer")},
        training_state={"images": 640},
    )
    return (
        vqvae,
        baseline.eval(),
        TrialSpec(
            config=config_of(),
            number=1,
            seeds={},
            assets=assets,
            directory=str(root / "own"),
            baseline_directory=str(root / "trials" / "00000"),
            cache=str(root / "cache"),
            started=0.0,
            run_name="run",
            ray_directory="",
        ),
    )


def share_moved(config, vqvae, baseline, spec) -> float:
    """‖∂(total − CE)/∂z‖ / ‖∂CE/∂z‖ under plain λ, by autograd of the loss itself."""
    held_out = TokenCache.open(spec.assets.tokens["validation"])
    rows_B = spread_rows(held_out.labels_N, SHARE_IMAGES).numpy()
    tokens_BL = torch.as_tensor(held_out.tokens_NL[rows_B].astype("int64"))
    labels_B = torch.as_tensor(held_out.labels_N[rows_B].astype("int64"))
    with torch.no_grad():
        logits_BLV = baseline(labels_B, vqvae.teacher_input(split(tokens_BL, vqvae.scales))).double()
    constants = loss_constants(config, spec.assets, vqvae).arguments(vqvae, "cpu")
    found = composite_loss(logits_BLV.requires_grad_(), tokens_BL, config.loss, **constants)
    whole, ce = (torch.autograd.grad(loss, logits_BLV, retain_graph=True)[0] for loss in (found.total, found.ce))
    return float((whole - ce).norm() / ce.norm())


@pytest.mark.parametrize(
    "reference, discrepancy",
    itertools.product(("normal", "uniform", "dataset", "semantic"), ("wasserstein", "squared", "kl")),
)
def test_weights_move_the_configured_share(place, reference, discrepancy):
    vqvae, baseline, spec = place
    config, ran = resolve_lambdas(
        config_of(lambda_1=0.05, reference=reference, discrepancy=discrepancy), spec, vqvae, "cpu"
    )
    assert ran == {"loss.lambda_1": config.loss.lambda_1, "loss.lambda_2": 0.0} and ran["loss.lambda_1"] > 0
    o = config.loss
    assert (o.lambda_unit, o.reference, o.discrepancy) == ("raw", reference, discrepancy)
    assert share_moved(config, vqvae, baseline, spec) == pytest.approx(0.05, rel=1e-3)


def test_equal_shares_have_different_weights(place):
    vqvae, _, spec = place
    ran = [
        resolve_lambdas(config_of(lambda_1=0.05, discrepancy=name), spec, vqvae, "cpu")[1]["loss.lambda_1"]
        for name in ("wasserstein", "squared", "kl")
    ]
    assert max(ran) > 2 * min(ran)


def test_share_of_semantic_entropy(place):
    vqvae, baseline, spec = place
    config, ran = resolve_lambdas(config_of(lambda_2=0.01), spec, vqvae, "cpu")
    assert ran["loss.lambda_1"] == 0.0 and 0 < ran["loss.lambda_2"] < 1
    assert share_moved(config, vqvae, baseline, spec) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(InfeasibleTrial, match="but lambda_2 < 1"):
        resolve_lambdas(config_of(lambda_2=0.01 / ran["loss.lambda_2"] * 1.01), spec, vqvae, "cpu")


def test_raw_weights_and_baseline_are_not_converted(place):
    vqvae, _, spec = place
    raw = config_of(lambda_1=3.0, lambda_unit="raw")
    assert resolve_lambdas(raw, spec, vqvae, "cpu") == (raw, {})
    config, ran = resolve_lambdas(config_of(), replace(spec, baseline_directory="nowhere"), vqvae, "cpu")
    assert ran == {"loss.lambda_1": 0.0, "loss.lambda_2": 0.0} and config.loss.lambda_unit == "raw"


def test_searched_architecture_keeps_the_share(place, tmp_path):
    """A deeper trial measures on the baseline as it was trained, not on a network of its own depth."""
    vqvae, _, spec = place
    config = config_of(lambda_1=0.05)
    deeper = config.with_values({"model.depth": 3, "model.width": 48, "model.heads": 3})
    with open_metrics_log(tmp_path, rank=0, attempt=1) as log:
        _, lambdas = resolve_lambdas(deeper, spec, vqvae, "cpu", log)
    assert lambdas == resolve_lambdas(config, spec, vqvae, "cpu")[1]
    (record,) = read_records(tmp_path / "metrics.jsonl")[0]
    assert record["kind"] == "gradient_shares" and record["baseline_model"]["depth"] == 1


def test_held_out_metrics_of_a_trial(place):
    """Entropy, dispersion, calibration and shares of the held-out images, each a known metric, whole and by scale."""
    vqvae, baseline, spec = place
    config, _ = resolve_lambdas(config_of(lambda_1=0.05, discrepancy="squared"), spec, vqvae, "cpu")
    found = CheckpointScorer(config, spec.assets, baseline, vqvae, seeds={}).held_out_scores()
    for name in ("entropy", "dispersion", "dispersion_ratio", "second_order", "semantic_entropy", "nll_token"):
        assert {name, *(f"{name}/scale_{k}" for k in (1, 2, 3))} <= set(found)
    assert {"ece_token", "grad_share/second_order", "grad_share/second_order_cosine"} <= set(found)
    assert all(metric(name).title for name in found)
    assert found["grad_share/second_order"] == pytest.approx(0.05, rel=1e-3)  # it was measured on this very network
    assert found["entropy"] == pytest.approx(
        (found["entropy/scale_1"] + 4 * found["entropy/scale_2"] + 16 * found["entropy/scale_3"]) / 21
    )
    assert 0 < found["entropy"] < torch.tensor(32.0).log()


ARM = {"role": "scientific", "type": "categorical"}
PERPLEXITY = {
    "role": "nuisance",
    "type": "float",
    "low": 1.001,
    "high": 8,
    "log": True,
    "when": {"loss.reference": "normal"},
}
NEIGHBOURS = {"role": "nuisance", "type": "float", "low": 2, "high": 32, "when": {"loss.reference": "semantic"}}
KL = {"loss.discrepancy": {**ARM, "choices": ["wasserstein", "kl"]}}


@pytest.mark.parametrize(
    "space, said",
    [
        (
            {"loss.reference": {**ARM, "choices": ["uniform", "semantic"]}, "loss.neighbours": NEIGHBOURS},
            "1 < neighbours < 32",
        ),
        (
            {"loss.reference": {**ARM, "choices": ["uniform", "normal"]}, "loss.perplexity": PERPLEXITY, **KL},
            "'kl' with loss.dispersion embedding, loss.reference normal, loss.perplexity 1.001: .* is below 0.001 of the",
        ),
    ],
)
def test_impossible_space_is_refused(place, space, said):
    """Both ends of a range are tried, which the schema cannot check: they depend on the codes and the tokens."""
    vqvae, _, spec = place
    config = validate({**TREE, "loss": {"lambda_1": 0.5}, "space": space}, "x")
    with pytest.raises(ConfigError, match=said):
        _references(config, spec.assets, vqvae)


def test_condition_separates_choices(place):
    vqvae, _, spec = place
    apart = {"loss.discrepancy": {**ARM, "choices": ["wasserstein", "kl"], "when": {"loss.reference": "uniform"}}}
    space = {"loss.reference": {**ARM, "choices": ["uniform", "normal"]}, "loss.perplexity": PERPLEXITY, **apart}
    found = _references(validate({**TREE, "loss": {"lambda_1": 0.5}, "space": space}, "x"), spec.assets, vqvae)
    assert found["uniform"] == pytest.approx([1.0, 1.0, 1.0]) and max(found["normal"]) < 1
