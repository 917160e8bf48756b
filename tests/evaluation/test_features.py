import json

import pytest
import torch

from uvar_tune.errors import ConfigError, Diverged
from uvar_tune.evaluation.features import (
    ClassifierTraining,
    classify,
    conditional_accuracy,
    load_classifier,
    save_classifier,
    to_uint8,
    train_classifier,
)
from uvar_tune.io.hashing import state_sha256


def test_held_out_accuracy(classifier, digits):
    guess_N = classify(classifier, digits["validation"].images).argmax(1)
    assert classifier.accuracy == (guess_N == torch.as_tensor(digits["validation"].labels_N)).double().mean()
    assert classifier.accuracy >= 0.985


def test_same_seed_same_bits(digits):
    settings = ClassifierTraining(epochs=1)
    hashes = [
        state_sha256(train_classifier(digits["train"], held_out=digits["validation"], seed=seed, settings=settings))
        for seed in (3, 3, 4)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_training_keeps_the_global_generator(digits):
    before = torch.get_rng_state()
    train_classifier(digits["validation"], held_out=digits["validation"], settings=ClassifierTraining(epochs=1))
    assert torch.equal(before, torch.get_rng_state())


def test_save_and_load_round_trip(classifier, classifier_directory, digits):
    loaded = load_classifier(classifier_directory)
    assert (loaded.accuracy, loaded.class_names) == (classifier.accuracy, classifier.class_names)
    images = digits["validation"].images[:9]
    assert torch.equal(loaded(images)[0], classifier(images)[0]) and loaded(images)[0].shape == (9, 64)


def test_features_have_full_rank(classifier, digits):
    features_NF = classifier(digits["train"].images[:1000])[0].double()
    assert torch.linalg.matrix_rank(torch.cov(features_NF.T)) == 64


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "no meta"])
def test_damaged_directories_are_refused(classifier, tmp_path, damage):
    directory = save_classifier(classifier, tmp_path / "c")
    weights, meta = directory / "classifier.safetensors", directory / "meta.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "altered":
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0?")
    elif damage == "missing":
        weights.unlink()
    else:
        meta.write_text(json.dumps({"image_size": 16}))
    with pytest.raises(ConfigError, match=str(directory)):
        load_classifier(directory)


def test_images_of_other_shape_are_refused(classifier):
    with pytest.raises(ConfigError, match="8x8, expected 16x16"):
        classifier(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="uint8"):
        classifier(torch.zeros(2, 3, 16, 16))


def test_uint8_round_trip_refuses_nan():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, -1, -1)
    assert torch.equal(to_uint8(levels.float() / 255), levels)
    assert to_uint8(torch.tensor([[[[-0.2, 1.3]]]])).flatten().tolist() == [0, 255]
    images = torch.zeros(4, 3, 2, 2)
    images[2, 0, 1, 1] = float("nan")
    with pytest.raises(Diverged, match=r"1 of 4 .* image 2"):
        to_uint8(images)


def test_conditional_accuracy_by_hand():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
    assert conditional_accuracy(logits, torch.tensor([0, 0, 0, 1])) == 0.75
