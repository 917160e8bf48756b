import multiprocessing

from uvar_tune.specs import Assets
from uvar_tune.trial.local_cache import copy_to_local_disk


def test_cache_is_copied_once(tmp_path):
    source = tmp_path / "shared" / "abc123"
    source.mkdir(parents=True)
    (source / "tokens.npy").write_bytes(bytes(range(256)) * 4096)
    assets = Assets("tokenizer", {"train": str(source)}, "cache", 10, [], {}, None, {})
    (tmp_path / "node" / f".abc123.{0:032x}.tmp").mkdir(parents=True)  # of one that was killed
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(copy_to_local_disk, [(assets, str(tmp_path / "node"))] * 4)
    assert {one.tokens["train"] for one in found} == {str(tmp_path / "node" / "abc123")}
    assert all(one.cache == "cache" for one in found)
    assert (tmp_path / "node" / "abc123" / "tokens.npy").read_bytes() == (source / "tokens.npy").read_bytes()
    assert sorted(path.name for path in (tmp_path / "node").iterdir()) == [".abc123.lock", "abc123"]
    assert copy_to_local_disk(assets, None) is assets
