"""The order of rows: permutations, places and replacements."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.sampler import ShuffledOrder
from shards import InputError

counts = st.integers(1, 300)
seeds = st.integers(0, 2**63 - 1)


@settings(deadline=None, max_examples=60)
@given(counts, seeds, st.integers(0, 2**20))
def test_an_epoch_is_a_permutation_and_pure(count, seed, epoch) -> None:
    order = ShuffledOrder(count, 1, seed).epoch(epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == ShuffledOrder(count, 1, seed).epoch(epoch).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = [
        tuple(ShuffledOrder(50, 4, seed).epoch(epoch).tolist()) for seed in range(4) for epoch in range(4)
    ]
    assert len(set(orders)) == 16


@settings(deadline=None, max_examples=60)
@given(counts, st.integers(1, 40), st.integers(0, 30))
def test_places_are_those_of_a_plain_walk_that_drops_the_incomplete_batch(count, global_batch, steps) -> None:
    assume(count >= global_batch)
    order = ShuffledOrder(count, global_batch, seed=0)
    epoch = slot = 0
    for step in range(steps):
        assert order.place(step * global_batch) == (epoch, slot)
        slot += global_batch
        if slot + global_batch > count:
            epoch, slot = epoch + 1, 0
    assert order.epoch_samples % global_batch == 0
    assert count - global_batch < order.epoch_samples <= count


@settings(deadline=None, max_examples=60)
@given(counts, st.integers(1, 40), seeds, st.integers(0, 50), st.integers(0, 5000))
def test_a_replacement_avoids_its_batch_and_is_pure(count, global_batch, seed, attempt, slot) -> None:
    assume(count >= global_batch)
    order = ShuffledOrder(count, global_batch, seed)
    batch = order.epoch(3)[:global_batch]
    chosen = order.replacement(3, slot, attempt, batch)
    assert 0 <= chosen < count
    assert chosen == ShuffledOrder(count, global_batch, seed).replacement(3, slot, attempt, batch[::-1])
    if count > global_batch:
        assert chosen not in batch


def test_replacements_of_a_slot_go_through_all_rows_outside_the_batch() -> None:
    order, batch = ShuffledOrder(12, 4, 7), np.array([1, 5, 7, 9])
    lists = []
    for slot in range(8):
        first = [order.replacement(0, slot, attempt, batch) for attempt in range(16)]
        assert sorted(first[:8]) == [0, 2, 3, 4, 6, 8, 10, 11]
        assert first[8:] == first[:8]
        lists.append(tuple(first[:8]))
    assert len(set(lists)) == 8


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 4), seeds, st.integers(0, 40))
def test_the_slots_of_a_batch_have_no_replacement_in_common(global_batch, attempts, seed, epoch) -> None:
    """As long as the rows outside the batch last."""
    order = ShuffledOrder(global_batch * (1 + attempts), global_batch, seed)
    batch = order.epoch(epoch)[:global_batch]
    slots = range(3 * global_batch, 4 * global_batch)
    chosen = [order.replacement(epoch, slot, a, batch) for slot in slots for a in range(attempts)]
    assert sorted(chosen) == sorted(set(range(order.count)) - set(batch.tolist()))


@st.composite
def sharded(make) -> tuple[np.ndarray, np.ndarray]:
    """Shards of rows, mixed up as a selection has them, and the shards' sizes."""
    count = make(st.integers(1, 8))
    rows = make(st.lists(st.integers(0, count - 1), min_size=1, max_size=80))
    sizes = make(st.lists(st.integers(1, 100), min_size=count, max_size=count))
    return np.array(rows), np.array(sizes)


@settings(deadline=None, max_examples=100)
@given(sharded(), st.integers(1, 400), seeds, st.integers(0, 1000))
def test_windows_are_whole_shards_of_the_size_given(rows_and_sizes, window, seed, epoch) -> None:
    shards, sizes = rows_and_sizes
    order = ShuffledOrder(len(shards), 1, seed, window, shards, sizes)
    found = order.epoch(epoch)
    assert sorted(found.tolist()) == list(range(len(shards)))
    assert found.tolist() == ShuffledOrder(len(shards), 1, seed, window, shards, sizes).epoch(epoch).tolist()
    last = {shard: place for place, shard in enumerate(shards[found].tolist())}
    first = {shard: place for place, shard in reversed(list(enumerate(shards[found].tolist())))}
    for place in range(len(found)):
        live = [shard for shard in first if first[shard] <= place <= last[shard]]
        assert len(live) == 1 or sizes[live].sum() <= window


@settings(deadline=None, max_examples=30)
@given(sharded(), seeds, st.integers(0, 1000))
def test_one_window_is_the_order_without_windows(rows_and_sizes, seed, epoch) -> None:
    shards, sizes = rows_and_sizes
    whole = ShuffledOrder(len(shards), 1, seed).epoch(epoch)
    np.testing.assert_array_equal(
        ShuffledOrder(len(shards), 1, seed, int(sizes.sum()), shards, sizes).epoch(epoch), whole
    )
    np.testing.assert_array_equal(
        ShuffledOrder(len(shards), 1, seed, len(shards), shards).epoch(epoch), whole
    )


def test_windows_are_full_and_shuffled_anew_each_epoch() -> None:
    shards = np.repeat(np.arange(10), 20)
    order = ShuffledOrder(200, 1, 3, 40, shards)
    epochs = [order.epoch(epoch) for epoch in range(6)]
    pairs = [frozenset(frozenset(shards[e[k : k + 40]].tolist()) for k in range(0, 200, 40)) for e in epochs]
    assert all(len(two) == 2 for windows in pairs for two in windows)
    assert len(set(pairs)) == 6
    for e in epochs:  # the rows of a window's shards are mixed with each other
        assert 1 < np.abs(np.diff(shards[e[:40]])).astype(bool).sum() < 39


def test_a_window_needs_shards() -> None:
    with pytest.raises(ValueError, match="shards"):
        ShuffledOrder(10, 2, 0, window=5)


def test_too_few_rows_say_what_to_do() -> None:
    assert ShuffledOrder(8, 8, 0).epoch_samples == 8
    with pytest.raises(InputError, match="--batch-size"):
        ShuffledOrder(7, 8, 0)
