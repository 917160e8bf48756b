"""The token cache: content, killed builds that continue, concurrent builders, damage."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from uvar_tune.config.schema import DataConfig
from uvar_tune.data import ImageSet, TokenCache, build_token_cache, load_images, token_cache
from uvar_tune.data.image_set import to_unit
from uvar_tune.errors import ConfigError
from uvar_tune.model.scales import concat

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torch._dynamo", "uvar_tune.training", "uvar_tune.objective"])  # imported once


@pytest.fixture
def images():
    """13 random images of 8x8 in 4 classes."""
    pixels = torch.randint(256, (13, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(13) % 4, list("abcd"), "0" * 64, 8)


def test_rows_are_the_tokens_of_the_images(tmp_path, images, vqvae):
    calls = []
    cache = build_token_cache(
        tmp_path / "c", images, vqvae, batch=4, crops=2, progress=lambda *done: calls.append(done)
    )
    expected = concat(vqvae.encode(to_unit(images.images))).repeat_interleave(2, dim=0)
    assert np.array_equal(cache.tokens_NL, expected.numpy()) and cache.tokens_NL.dtype == np.uint16
    assert cache.labels_N.tolist() == images.labels_N.repeat_interleave(2).tolist()
    assert (cache.crops, cache.images, cache.scales, cache.vocab_size) == (2, 13, (1, 2, 4), 24)
    assert isinstance(cache.tokens_NL, np.memmap) and not cache.tokens_NL.flags.writeable
    assert calls[-1] == (26, 26) and [done for done, _ in calls] == sorted(done for done, _ in calls)
    opened = TokenCache.open(tmp_path / "c", hashes=True)
    assert np.array_equal(opened.tokens_NL, cache.tokens_NL) and opened.source == cache.source
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["c"]


def test_crops_of_a_folder_are_its_random_crops(tmp_path, folder, vqvae):
    pictures = load_images(DataConfig(name="folder", path=str(folder), image_size=8), "train")
    cache = build_token_cache(tmp_path / "c", pictures, vqvae, crops=3)
    expected = concat(vqvae.encode(to_unit(pictures.crops([2, 2], [0, 2]))))
    assert np.array_equal(cache.tokens_NL[[6, 8]], expected.numpy())
    assert cache.labels_N[6:9].tolist() == [0, 0, 0]


def test_finished_cache_is_reused(tmp_path, images, vqvae):
    build_token_cache(tmp_path / "c", images, vqvae)
    before = (tmp_path / "c" / "tokens.npy").stat().st_mtime_ns
    calls = []
    build_token_cache(tmp_path / "c", images, vqvae, progress=lambda *done: calls.append(done))
    assert calls == [] and (tmp_path / "c" / "tokens.npy").stat().st_mtime_ns == before


def _die(directory, images, vqvae):
    """Build in shards of 4 rows; killed in the third."""
    torch.set_num_threads(1)
    token_cache._SHARD_ROWS = 4

    def progress(done: int, rows: int) -> None:
        if done >= 9:
            os.kill(os.getpid(), signal.SIGKILL)

    build_token_cache(directory, images, vqvae, batch=2, progress=progress)


def _build_slowly(directory, images, vqvae, encoded):
    torch.set_num_threads(1)

    def progress(done: int, rows: int) -> None:
        encoded.put(os.getpid())
        time.sleep(0.2)

    build_token_cache(directory, images, vqvae, batch=4, progress=progress)


def child(target, *arguments):
    process = FORKS.Process(target=target, args=arguments)
    process.start()
    return process


def test_killed_build_continues_with_its_shards(tmp_path, images, vqvae, monkeypatch):
    process = child(_die, tmp_path / "c", images, vqvae)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "c").exists()
    (tmp_path / f".c.{'0' * 32}.tmp").mkdir()  # of a builder that was killed while it joined the shards
    with pytest.raises(ConfigError, match="no readable manifest"):
        TokenCache.open(tmp_path / "c")
    monkeypatch.setattr(token_cache, "_SHARD_ROWS", 4)
    calls = []
    cache = build_token_cache(tmp_path / "c", images, vqvae, batch=2, progress=lambda done, rows: calls.append(done))
    assert calls == [4, 8, 10, 12, 12, 13, 13]  # two shards existed
    assert np.array_equal(cache.tokens_NL, concat(vqvae.encode(to_unit(images.images))).numpy())
    assert {path.name for path in tmp_path.iterdir()} == {"c", ".c.lock"}


def test_shards_of_other_images_are_not_used(tmp_path, images, vqvae):
    process = child(_die, tmp_path / "c", images, vqvae)
    process.join(60)
    other = ImageSet(255 - images.images, images.labels_N, images.class_names, "1" * 64, 8)
    cache = build_token_cache(tmp_path / "c", other, vqvae, batch=2)
    assert np.array_equal(cache.tokens_NL, concat(vqvae.encode(to_unit(other.images))).numpy())


def test_concurrent_builders_build_once(tmp_path, images, vqvae):
    encoded = FORKS.Queue()
    processes = [child(_build_slowly, tmp_path / "c", images, vqvae, encoded) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    calls = [encoded.get(timeout=10) for _ in range(5)]  # four batches and the end of the only shard
    assert encoded.empty() and len(set(calls)) == 1
    assert len(TokenCache.open(tmp_path / "c", hashes=True).tokens_NL) == 13


def cut(path):
    os.truncate(path, path.stat().st_size - 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, name", [(cut, "tokens.npy"), (flip, "tokens.npy"), (cut, "labels.npy"), (cut, "manifest.json")]
)
def test_damaged_cache_is_rebuilt(tmp_path, images, vqvae, damage, name):
    directory = tmp_path / "c"
    whole = np.array(build_token_cache(directory, images, vqvae).tokens_NL)
    damage(directory / name)
    with pytest.raises(ConfigError, match=name):
        TokenCache.open(directory, hashes=True)
    assert np.array_equal(build_token_cache(directory, images, vqvae).tokens_NL, whole)
    TokenCache.open(directory, hashes=True)


def vouch(directory, **facts):
    """A manifest of the same files with other metadata."""
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (directory / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest | facts))


def header(shape, dtype="<i8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"images": None}, "None as a size"),
        ({"images": "x", "crops": 1 << 30}, "x as a size"),
        ({"scales": [1, "a"]}, "a as a size"),
        ({"scales": None}, "no token cache"),
        ({"images": 12}, "are not 12 rows"),
        ({"scales": [1.0, 2.0, 4.0]}, "1.0 as a size"),
        ({"source": None}, "no token cache"),
    ],
)
def test_wrong_manifest_is_named_and_rebuilt(tmp_path, images, vqvae, facts, message):
    whole = build_token_cache(tmp_path / "c", images, vqvae)
    vouch(tmp_path / "c", **facts)
    with pytest.raises(ConfigError, match=message):
        TokenCache.open(tmp_path / "c", hashes=True)
    assert build_token_cache(tmp_path / "c", images, vqvae).source == whole.source


@pytest.mark.parametrize("name", ["tokens.npy", "labels.npy"])
@pytest.mark.parametrize(
    "content",
    [header((10**13,)), header((10**30,)), b"", b"PK\5\6" + bytes(18), b"(" * 4000],
    ids=["10^13 rows", "10^30 rows", "empty", "archive", "text"],
)
def test_wrong_arrays_are_named_and_rebuilt(tmp_path, images, vqvae, name, content):
    whole = build_token_cache(tmp_path / "c", images, vqvae)
    (tmp_path / "c" / name).unlink()  # mapped: its content stays
    (tmp_path / "c" / name).write_bytes(content)
    vouch(tmp_path / "c")
    with pytest.raises(ConfigError, match=f"is no token cache .*{name}"):
        TokenCache.open(tmp_path / "c", hashes=True)
    again = build_token_cache(tmp_path / "c", images, vqvae)
    assert np.array_equal(again.tokens_NL, whole.tokens_NL) and np.array_equal(again.labels_N, whole.labels_N)


def test_arrays_of_other_types_are_refused(tmp_path, images, vqvae):
    build_token_cache(tmp_path / "c", images, vqvae)
    (tmp_path / "c" / "labels.npy").unlink()
    np.save(tmp_path / "c" / "labels.npy", np.zeros(13))
    vouch(tmp_path / "c")
    with pytest.raises(ConfigError, match="labels float64 are not of the types"):
        TokenCache.open(tmp_path / "c", hashes=True)


def test_labels_are_mapped_copy_on_write(tmp_path, images, vqvae):
    cache = build_token_cache(tmp_path / "c", images, vqvae)
    assert isinstance(cache.labels_N, np.memmap)
    cache.labels_N[:] = 3  # in this process only
    assert TokenCache.open(tmp_path / "c", hashes=True).labels_N.tolist() == images.labels_N.tolist()


def test_mismatched_sources_are_refused(tmp_path, images, vqvae):
    build_token_cache(tmp_path / "c", images, vqvae)
    other = ImageSet(images.images, images.labels_N, images.class_names, "1" * 64, 8)
    with pytest.raises(ConfigError, match="tokens of other images"):
        build_token_cache(tmp_path / "c", other, vqvae)
    with pytest.raises(ConfigError, match="images of 16 px, the tokenizer takes 8"):
        build_token_cache(tmp_path / "d", load_images(DataConfig(), "validation"), vqvae)
    with pytest.raises(ConfigError, match="crops 0"):
        build_token_cache(tmp_path / "d", images, vqvae, crops=0)
