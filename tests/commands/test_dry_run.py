"""`--dry-run`: what it foretells, against what a training really writes and what finished trials took."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.log_lines import captured_log
from tests.helpers.search_cases import scored
from uvar_tune.commands.dry_run import preview_study
from uvar_tune.config.loading import validate
from uvar_tune.config.schema import LossConfig
from uvar_tune.data import TokenCache
from uvar_tune.errors import ConfigError
from uvar_tune.model.scales import split
from uvar_tune.objective import composite_loss
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.training import CheckpointEvent, RunContext, save_checkpoint, save_tokenizer, train
from uvar_tune.trial.factory import new_var, new_vqvae
from uvar_tune.trial.trial import checkpoint_images

LAMBDA_1 = {"role": "scientific", "type": "float", "low": 0.01, "high": 6, "log": True, "baseline": 0}
MIB, GIB = 2**20, 2**30


def study(root, **sections):
    return validate(
        {
            "study": {"name": "planned", "trials": 5},
            "space": {"loss.lambda_1": LAMBDA_1},
            "tokenizer": {"vocab_size": 64, "channels": 16},
            "evaluation": {"extractor": "digits"},
            "run": {"root": str(root), "max_concurrent": 1, "cpus_per_worker": 0.5},
            **sections,
        },
        "test",
    )


def said(config) -> str:
    with captured_log() as lines:
        preview_study(config)
    return "\n".join(lines)


def written(config, directory) -> list[int]:
    """The bytes of each checkpoint of a real training with the configuration's length, interval, rungs and network."""
    t, vqvae = config.training, new_vqvae(config).eval().requires_grad_(False)
    save_tokenizer(directory / "tokenizer", vqvae)
    var = new_var(config, vqvae, num_classes=10, seed=0)
    tokens = (
        np.random.default_rng(0)
        .integers(vqvae.vocab_size, size=(64, sum(p * p for p in vqvae.scales)))
        .astype(np.uint16)
    )
    cache = TokenCache(
        tokens,
        np.arange(64) % 10,
        1,
        tuple(vqvae.scales),
        vqvae.vocab_size,
        64,
        {"images": "random", "tokenizer": "untrained"},
    )
    terms = dict(
        scales=vqvae.scales,
        codebook=vqvae.codebook_VC.detach(),
        classes=torch.arange(vqvae.vocab_size) % 4,
        reference_variance=torch.full((len(vqvae.scales),), 0.05),
    )

    def loss(model, tokenizer, tokens_BL, labels_B, noise):
        return composite_loss(
            model(labels_B, tokenizer.teacher_input(split(tokens_BL, vqvae.scales)), **noise),
            tokens_BL,
            LossConfig(),
            **terms,
        )

    events = train(
        var,
        vqvae,
        cache,
        loss,
        t.model_copy(update={"warmup_images": 0}),
        RunContext(
            seed=0,
            log_images=t.batch_size,
            checkpoint_images=checkpoint_images(config),
            also_at=config.study.rungs,
        ),
    )
    sizes = []
    for event in events:
        if isinstance(event, CheckpointEvent):
            place = directory / "checkpoints" / f"{event.images:012d}"
            save_checkpoint(
                place,
                var_state=var.state_dict(),
                config=config.tree(),
                training_state=event.state(),
                tokenizer={"path": str(directory / "tokenizer")},
            )
            sizes.append(sum(path.stat().st_size for path in place.iterdir()))
    return sizes


@pytest.mark.parametrize("ema, rungs", [(None, {}), (64, {"rungs": [48], "pruner": "median"})])
def test_forecast_bytes_equal_those_of_a_training(tmp_path, ema, rungs):
    config = study(
        tmp_path,
        study={"name": "planned", "trials": 5, **rungs},
        model={"depth": 2, "width": 128, "heads": 2},
        training={"images": 160, "batch_size": 16, "warmup_images": 0, "ema": ema},
    )
    sizes = written(config, tmp_path)
    text = said(config)
    expected = float(text.split(" MiB a trial")[0].split()[-1])
    assert f"expected: {len(sizes)} checkpoints of" in text and len(sizes) == 5 + bool(rungs)
    assert expected == pytest.approx(sum(sizes) / len(sizes) / MIB, rel=0.05)
    assert "hours: unknown until a trial of this study has finished" in text
    bounded = said(config.with_values({"run.checkpoint_bytes": 2 * max(sizes) + 1000}))
    assert "expected: 2 checkpoints of" in bounded


def begun(config, tmp_path, *, finished: int, seconds=(3000.0, 4200.0)) -> StudyDirectory:
    """The study's directory, with so many finished trials of 30 MiB."""
    files = StudyDirectory(tmp_path, "planned")
    files.create()
    files.create_or_verify(config)
    search = Search(config, files.storage_url(config))
    for index in range(finished):
        number = search.ask().number
        search.complete(
            number,
            scored(
                5.0 - index,
                {
                    "scores": {"fid": 5.0 - index},
                    "seconds": seconds[index % 2],
                    "inference_parameters": {"inference.cfg_scale": 2.0},
                },
            ),
        )
        files.trial(number).mkdir(parents=True)
        (files.trial(number) / "weights").write_bytes(bytes(30 * MIB))
    return files


@pytest.mark.parametrize("at_once, hours", [(1, 3.0), (2, 2.0), (8, 1.0)])
def test_hours_and_bytes_follow_from_finished_trials(tmp_path, at_once, hours):
    """Two trials of an hour and of 30 MiB have finished; three are left."""
    config = study(tmp_path, run={"root": str(tmp_path), "cpus_per_worker": 0.01, "max_concurrent": at_once})
    begun(config, tmp_path, finished=2)
    text = said(config)
    assert f"trials at once: {at_once}; a trial requests 1 worker with 0.01 CPUs" in text
    assert (
        f"expected, from 2 finished trials: 60.0 minutes and 30.0 MiB a trial, {hours:.2f} hours and {90 * MIB / GIB:.2f} GiB "
        "for the 3 that are left"
    ) in text


def test_another_configuration_is_refused(tmp_path):
    config = study(tmp_path)
    files = begun(config, tmp_path, finished=0)
    with pytest.raises(ConfigError, match="exists with another configuration: training.images was 32000, is 64000"):
        preview_study(config.with_values({"training.images": 64000}))
    assert "exists, would resume" in said(config.with_values({"study.trials": 9}))
    files.config.write_text("")
    with pytest.raises(ConfigError, match="a configuration is a mapping"):
        preview_study(config)


@pytest.mark.parametrize(
    "section, values, where",
    [
        ("run", {"root": "/etc/passwd"}, "run.root"),
        ("run", {"root": "/proc/nope"}, "run.root"),
        ("run", {"storage": "nonsense"}, "run.storage"),
        ("run", {"storage": "journal:/nowhere/journal"}, "run.storage"),
        ("run", {"storage": "journal:/tmp"}, "run.storage"),
        ("run", {"storage": "sqlite:////nowhere/study.db"}, "run.storage"),
        ("run", {"storage": "sqlite:////etc/passwd"}, "run.storage"),
        ("run", {"storage": "postgresql://user:secret@127.0.0.1:1/x"}, "run.storage"),
        ("run", {"storage": "martian://x"}, "run.storage"),
        ("data", {"name": "folder", "path": "."}, "data.path"),
    ],
)
def test_where_nothing_can_lie_is_refused(tmp_path, section, values, where, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "UVAR_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as caught:
        preview_study(study(tmp_path).with_values({f"{section}.{key}": value for key, value in values.items()}))
    assert caught.value.where == where and "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written(tmp_path):
    config = study(tmp_path / "runs").with_values({"run.storage": f"sqlite:///{tmp_path / 'study.db'}"})
    assert "hours: unknown" in said(config)
    assert not list(tmp_path.iterdir())


def test_classes_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for part, count in (("train", 64), ("val", 1)):
        (tmp_path / part / "cat").mkdir(parents=True)
        for i in range(count):
            Image.new("L", (16, 16), i).save(tmp_path / part / "cat" / f"{i}.png")
    data = {"name": "folder", "path": str(tmp_path), "classes": ["cta"]}
    config = study(tmp_path / "runs", data=data, training={"batch_size": 64, "images": 6400})
    with pytest.raises(ConfigError, match="data.classes: class 'cta' is not in .*did you mean 'cat'"):
        preview_study(config)
    assert said(config.with_values({"data.classes": ["cat"]}))
    with pytest.raises(ConfigError, match="64 training images are fewer than a batch of 128"):
        preview_study(config.with_values({"data.classes": ["cat"], "training.batch_size": 128}))


def test_phases_other_than_the_search(tmp_path):
    config = study(tmp_path)
    begun(config, tmp_path, finished=1)
    for phase in ("confirm", "inference"):
        with pytest.raises(ConfigError, match=f"no finished trial to {phase} yet"):
            preview_study(config, phase=phase)
    with pytest.raises(ConfigError, match="did you mean 'explore'"):
        preview_study(config, phase="explor")
    with pytest.raises(ConfigError, match="a verdict needs at least"):
        preview_study(config.with_values({"study.confirm_replicates": 2}), phase="confirm")
    with captured_log() as lines:
        preview_study(config, phase="noise")
    assert any("4 trainings are left, 3.33 hours one after the other" in line for line in lines)
    assert not any("that are left" in line for line in lines)  # it says nothing of the search


def test_what_a_confirmation_would_train(tmp_path):
    config = study(tmp_path)
    begun(config, tmp_path, finished=3)
    with captured_log() as lines:
        preview_study(config, phase="confirm")
    [line] = [line for line in lines if line.startswith("phase confirm")]
    assert (
        "4 arms (baseline, label smoothing, trial 2, trial 1) of at most 12 replicates" in line
        and "48 trainings are left" in line
    )
    with captured_log() as explored:
        preview_study(config, phase="explore")
    assert any("for the 2 that are left" in line for line in explored)


def test_networks_of_any_size_are_counted_at_once(tmp_path):
    config = study(
        tmp_path,
        model={"depth": 256, "width": 65536, "heads": 64},
        training={"images": 64 * 10**9, "batch_size": 64},
        run={"root": str(tmp_path), "checkpoint_images": 64, "cpus_per_worker": 0.5},
    )
    assert "expected: 1 checkpoints of" in said(config)
