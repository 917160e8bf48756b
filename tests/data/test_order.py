"""The data order: every image once per epoch, independent of the batches, resumable anywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uvar_tune.data import Order, epoch_order
from uvar_tune.data.order import check_positions, spread_rows
from uvar_tune.errors import ConfigError


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40), st.integers(0, 2**40), st.lists(st.integers(1, 17), min_size=1, max_size=12), st.integers(1, 4)
)
def test_any_batch_sizes_give_one_sequence(count, seed, sizes, crops):
    order, start, seen = Order(count, seed=seed, crops=crops), 0, []
    for size in sizes:
        index_B, crop_B = order.at(range(start, start + size))
        assert len(index_B) == len(crop_B) == size and crop_B.min() >= 0 and crop_B.max() < crops
        seen += index_B.tolist()
        start += size
    expected = torch.cat([epoch_order(count, seed=seed, epoch=epoch) for epoch in range(start // count + 1)])[:start]
    assert seen == expected.tolist()
    assert sorted(epoch_order(count, seed=seed, epoch=3).tolist()) == list(range(count))


def test_resuming_anywhere_gives_the_same_order():
    """A new object read from the middle of the third epoch, and one read backwards."""
    whole = Order(10, seed=4, crops=3).at(range(60))
    for start in (27, 3, 45):
        part = Order(10, seed=4, crops=3).at(range(start, start + 12))
        assert torch.equal(part[0], whole[0][start : start + 12]) and torch.equal(part[1], whole[1][start : start + 12])
    backwards = Order(10, seed=4, crops=3)
    assert torch.equal(
        torch.cat([backwards.at(range(i, i + 10))[1] for i in (50, 0)]), torch.cat([whole[1][50:], whole[1][:10]])
    )


def test_ranks_share_a_batch_without_overlap():
    whole = Order(10, seed=4).at(range(32))[0]
    shares = [Order(10, seed=4).at(range(start, start + 8))[0] for start in (0, 8, 16, 24)]
    assert torch.equal(torch.cat(shares), whole)


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(30, seed=seed, epoch=epoch).tolist()) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": 100}, "100 is not a whole multiple of the batch 64; the nearest: 64 or 128"),
        ({"images": 10}, "the nearest: 64"),
        ({"shares": 3}, "batch size 64 is not a whole multiple of ranks x accumulate 3; the nearest: 63 or 66"),
        ({"count": 63}, "63 images are fewer than a batch of 64"),
    ],
)
def test_indivisible_sizes_name_the_nearest(changes, message):
    sound = {"images": 640, "batch_size": 64, "shares": 4, "count": 64}
    check_positions(**sound)
    with pytest.raises(ConfigError, match=message):
        check_positions(**{**sound, **changes})


@pytest.mark.parametrize("layout", ["by class", "cyclic"])
def test_spread_rows_keep_the_class_shares(layout):
    """A folder is sorted by class; scikit-learn's digits cycle through the classes."""
    labels = torch.arange(5).repeat_interleave(200) if layout == "by class" else torch.arange(1000) % 5
    rows = spread_rows(labels, 125)
    assert torch.bincount(labels[rows]).tolist() == [25] * 5 and rows.unique().tolist() == rows.tolist()
    assert spread_rows(labels[:3], 125).tolist() == [0, 1, 2]
