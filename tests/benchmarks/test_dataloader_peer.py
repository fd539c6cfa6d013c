"""The DataLoader peer sees what our loader shows: the same samples, and pixels within 2 of 255 levels.

Its colour as users write it: normalised as the spec's, drawn once for what the spec's scope holds together.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

import objectives
from benchmarks.loader.dataloader_peer import (
    DataLoaderPeer,
    best_peer,
    check_torchcodec,
    color_jitter,
    jittered,
    levels,
    mean_difference,
    worker_counts,
)
from benchmarks.loader.rounds import Source
from pipelines import colour
from pipelines.loader import Loader
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, InputError

STILL = Jitter(0.0, 0.0, 0.0, 0.0, probability=1.0, grey=0.0)
STRONG = Jitter(0.9, 0.9, 0.9, 0.4, probability=1.0, grey=0.0)
SPEC = ViewSpec(offsets=((0, 1, 2), (3, 4, 5)), size=8, jitter=STILL)


try:
    check_torchcodec()
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

CPU = torch.device("cpu")
LIMIT = 2  # levels of 255: the issue's
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in objectives.available()),
    ("memdpc", {"modality": "flow"}),
    ("tcp", {"modality": "difference"}),
    ("tcp", {"modality": "flow"}),
    ("vdim", {"colour": "lab", "rotation": 15.0}),
]


def source_of(dataset: Dataset, spec: ViewSpec, batch_size: int = 2) -> Source:
    return Source(dataset, dataset.select(), spec, batch_size, seed=3)


def our_batch(source: Source) -> dict[str, Any]:
    with Loader(source.dataset, source.sampler, prefetch=0) as loader:
        return next(loader)


@pytest.mark.parametrize(
    ("name", "changes"), CASES, ids=lambda case: case if isinstance(case, str) else "-".join(case)
)
def test_it_shows_what_ours_shows(rendered: Dataset, name: str, changes: dict[str, Any]) -> None:
    cls = objectives.get(name)
    source = source_of(rendered, cls.view_spec(cls.Config(**changes)))
    ours, (theirs,) = our_batch(source), DataLoaderPeer(source, 0, 1, CPU).take(0, 1)
    assert theirs["views"].shape == ours["views"].shape and theirs["views"].dtype == torch.float32
    if "pace" in ours:
        torch.testing.assert_close(theirs["pace"], ours["pace"])
    assert mean_difference(ours["views"], theirs["views"], source.spec) < LIMIT
    # by view, frame and channel too: none is wrong by more than rounding
    off = ((ours["views"] - theirs["views"]).abs() * levels(source.spec)).mean((-2, -1))
    assert off.max() < 3 * LIMIT
    if changes.get("modality") not in ("flow", "difference"):  # all have one flow; a difference is near 0
        assert mean_difference(ours["views"].flip(0), theirs["views"], source.spec) > 5 * LIMIT


def test_workers_give_the_same_batches_in_order(rendered: Dataset) -> None:
    cls = objectives.get("pace")
    source = source_of(rendered, replace(cls.view_spec(cls.small()), size=32))
    peer, alone = DataLoaderPeer(source, 2, 2, CPU), DataLoaderPeer(source, 0, 2, CPU)
    try:
        for first in (0, 4):  # the workers stay from one round to the next
            for one, other in zip(peer.take(first, 3), alone.take(first, 3), strict=True):
                assert torch.equal(one["views"], other["views"]) and torch.equal(one["pace"], other["pace"])
        figures = peer(0)
    finally:
        peer.close()
    assert figures["clips_per_s"] > 0 and figures["cpu_ms_per_clip"] >= 0


def test_the_best_number_of_workers_is_kept(rendered: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = objectives.get("pace")
    source = source_of(rendered, replace(cls.view_spec(cls.small()), size=32))
    speeds = {0: 5.0, 1: 9.0, 2: 7.0}
    closed: list[int] = []
    monkeypatch.setattr(DataLoaderPeer, "__call__", lambda peer, _: {"clips_per_s": speeds[peer.workers]})
    monkeypatch.setattr(DataLoaderPeer, "close", lambda peer: closed.append(peer.workers))
    best, tried = best_peer(source, [0, 1, 2], 1, CPU)
    assert best.workers == 1 and tried == {"0": 5.0, "1": 9.0, "2": 7.0} and closed == [0, 1, 2]


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [0, 1]), (2, [0, 1, 2]), (6, [0, 1, 2, 4, 6]), (16, [0, 1, 2, 4, 8, 16])]
)
def test_worker_counts(cores: int, counts: list[int]) -> None:
    assert worker_counts(cores) == counts


def test_without_strength_it_normalises_as_the_spec_does() -> None:
    frames = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = color_jitter(SPEC)
    assert transform is not None
    matrix = torch.tensor(colour.normalise(), dtype=torch.float32)
    expected = torch.einsum("cp,fphw->fchw", matrix[:3, :3], frames.float()) + matrix[:3, 3:, None]
    torch.testing.assert_close(jittered(transform, frames, SPEC), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("scope", "draws"), [("clip", 1), ("view", 2), ("frame", 6)])
def test_a_draw_for_what_the_scope_holds(scope: str, draws: int) -> None:
    spec = replace(SPEC, jitter=STRONG, colour_scope=scope)
    frames = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8).expand(6, -1, -1, -1).contiguous()
    transform = color_jitter(spec)
    assert transform is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = jittered(transform, frames, spec)
    assert len({tuple(frame.flatten().tolist()) for frame in made}) == draws


def test_specs_without_jitter_have_none() -> None:
    assert color_jitter(replace(SPEC, jitter=None)) is None
    assert color_jitter(replace(SPEC, jitter=None, lab_drop=True)) is None
