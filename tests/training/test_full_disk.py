"""Saving a checkpoint on a full disk, whichever file the space ends in."""

from __future__ import annotations

import errno

import pytest
import torch

from tests.helpers.small_disk import fill, mounted
from uvar_tune.io.disk import disk_full_reason
from uvar_tune.training import latest_valid, save_checkpoint


@pytest.fixture
def disk(tmp_path):
    with mounted(tmp_path / "disk", "size=8m") as place:
        yield place


def save(directory, images: int) -> None:
    state = {"images": images, "moments": torch.zeros(300_000)}  # 1.2 MB each
    save_checkpoint(
        directory / f"{images:012d}",
        var_state={"weight": torch.zeros(300_000)},
        config={},
        training_state=state,
        tokenizer={"path": "nowhere", "sha256": "0" * 64},
    )


@pytest.mark.parametrize("leave", [0, 600_000, 1_204_224, 1_500_000, 2_400_000])
def test_full_disk_leaves_earlier_checkpoints(disk, leave):
    save(disk / "checkpoints", 64)
    fill(disk, leave)
    with pytest.raises(OSError) as caught:
        save(disk / "checkpoints", 128)
    assert caught.value.errno == errno.ENOSPC and disk_full_reason(caught.value) == "No space left on device"
    assert [path.name for path in (disk / "checkpoints").iterdir()] == ["000000000064"]
    assert latest_valid(disk / "checkpoints", on_skip=lambda path, why: pytest.fail(why)).name == "000000000064"


def test_other_errors_do_not_speak_of_room():
    wrapped = ValueError("of a library")
    wrapped.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert disk_full_reason(wrapped) == "Disk quota exceeded"
    assert disk_full_reason("crashed: OSError: [Errno 28] No space left on device") == "No space left on device"
    assert disk_full_reason(PermissionError(errno.EACCES, "Permission denied")) is None
