"""The order of rows: permutations, places and replacements."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.order import Order
from shards import InputError

counts = st.integers(1, 300)
seeds = st.integers(0, 2**63 - 1)


@settings(deadline=None, max_examples=60)
@given(counts, seeds, st.integers(0, 2**20))
def test_an_epoch_is_a_permutation_and_pure(count, seed, epoch) -> None:
    order = Order(count, 1, seed).epoch(epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == Order(count, 1, seed).epoch(epoch).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(Order(50, 4, seed).epoch(epoch).tolist()) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


@settings(deadline=None, max_examples=60)
@given(counts, st.integers(1, 40), st.integers(0, 30))
def test_places_are_those_of_a_plain_walk_that_drops_the_incomplete_batch(count, global_batch, steps) -> None:
    assume(count >= global_batch)
    order = Order(count, global_batch, seed=0)
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
    order = Order(count, global_batch, seed)
    batch = order.epoch(3)[:global_batch]
    chosen = order.replacement(3, slot, attempt, batch)
    assert 0 <= chosen < count
    assert chosen == Order(count, global_batch, seed).replacement(3, slot, attempt, batch[::-1])
    if count > global_batch:
        assert chosen not in batch


def test_replacements_of_a_slot_go_through_all_rows_outside_the_batch() -> None:
    order, batch = Order(12, 4, 7), np.array([1, 5, 7, 9])
    first = [order.replacement(0, 5, attempt, batch) for attempt in range(16)]
    assert sorted(first[:8]) == [0, 2, 3, 4, 6, 8, 10, 11]
    assert first[8:] == first[:8]
    others = {tuple(order.replacement(0, slot, attempt, batch) for attempt in range(8)) for slot in range(10)}
    assert len(others) == 10


def test_too_few_rows_say_what_to_do() -> None:
    assert Order(8, 8, 0).epoch_samples == 8
    with pytest.raises(InputError, match="--batch-size"):
        Order(7, 8, 0)
