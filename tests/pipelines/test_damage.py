"""Videos that go bad while they are read from."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.loader import Loader
from pipelines.sampler import ShuffledOrder
from pipelines.views import ViewSpec
from shards import DamagedError, Dataset
from shards.schema import QUARANTINE
from shards.table import quarantine_entries
from tests.pipelines.damage import IN_PLACE, damage
from tests.pipelines.reference import loader as loader_of
from tests.pipelines.reference import write_dataset

SPEC = ViewSpec(offsets=((0, 2, 4), (8, 9, 10)), size=32, box_scope="view")
backends = pytest.mark.parametrize("backend", ["cpu", "gpu"])
Batch = dict[str, Any]


def loader(dataset: Dataset, spec: ViewSpec = SPEC, **options: Any) -> Loader:
    return loader_of(dataset, spec, **options)


def assert_same(one: Batch, other: Batch) -> None:
    assert one["key"] == other["key"] and torch.equal(one["views"], other["views"])


def reasons(dataset: Dataset) -> dict[str, str]:
    noted = quarantine_entries(dataset.path / QUARANTINE)
    assert len(dict(noted)) == len(noted), "a video is noted twice"
    return dict(noted)


def rewritten(
    folder: Path, out: Path, change: Callable[[int, bytes], bytes], per_shard: int | None = None
) -> Dataset:
    """A data set of the same videos, some changed, whose table knows the changed ones' sums."""
    source = Dataset(folder)
    names = ("num_frames", "fps", "width", "height", "source")
    facts = [{name: source.column(name)[row] for name in names} for row in range(len(source))]
    facts = [{k: v.item() if isinstance(v, np.generic) else v for k, v in one.items()} for one in facts]
    videos = [change(row, source.read(row)) for row in range(len(source))]
    return Dataset(write_dataset(out, videos, facts, per_shard=per_shard))


@backends
@pytest.mark.parametrize("kind", IN_PLACE)
def test_damage_while_training(vp9_folder: Path, tmp_path: Path, kind: str, backend: str) -> None:
    """The loader goes on, names what it met, and gives what one gives that begins afterwards."""
    dataset = rewritten(vp9_folder, tmp_path / "d", lambda _, video: video, per_shard=2)
    bad = int(ShuffledOrder(8, 4, seed=1).epoch(1)[0])  # met first when the damage is done
    ahead, count = 2, 10
    with loader(dataset, prefetch=ahead, backend=backend) as made:
        next(made)
        damage(kind, dataset, bad)
        found = [next(made) for _ in range(count)]
    gone = {"truncated", "empty"} & {kind}  # the tar's other videos may suffer too
    key = dataset.keys([bad])[0]
    assert key in reasons(dataset) and (gone or reasons(dataset).keys() == {key})
    assert ("before the end of the video" if kind == "truncated" else "sha256") in reasons(dataset)[key]
    assert all(batch["views"].isfinite().all() and len(set(batch["key"])) == 4 for batch in found)
    assert key not in [key for batch in found[ahead + 1 :] for key in batch["key"]]
    with loader(Dataset(dataset.path, damaged=True), backend=backend) as resumed:
        resumed.load_state_dict({"samples": 4 * (ahead + 2)})
        for expected in found[ahead + 1 :]:
            assert_same(next(resumed), expected)


def test_a_tar_that_is_gone(vp9_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = rewritten(vp9_folder, tmp_path / "d", lambda _, video: video, per_shard=2)
    lost = dataset.shards[1]
    (dataset.path / lost).unlink()
    with loader(dataset) as made:
        found = [next(made) for _ in range(4)]
    keys = {dataset.keys([row])[0] for row in np.flatnonzero(dataset.column("shard") == lost)}
    assert reasons(dataset).keys() == keys and not keys & {key for batch in found for key in batch["key"]}
    assert all("No such file" in reason and lost in reason for reason in reasons(dataset).values())
    assert all(f"{key} cannot be decoded and is replaced" in caplog.text for key in keys)


@backends
def test_what_was_met_before_does_not_count(vp9_folder: Path, tmp_path: Path, backend: str) -> None:
    """Damaged towards their end, videos are used where the clip asks for their beginning, also once they are noted."""

    def cut(row: int, video: bytes) -> bytes:
        # VP9's packets lie in order: from here on the decoder finds nonsense
        return video if row % 2 else video[: len(video) // 2] + bytes(len(video) - len(video) // 2)

    dataset, spec = rewritten(vp9_folder, tmp_path / "d", cut), ViewSpec(offsets=((0, 1),), size=32)
    with loader(dataset, spec, backend=backend) as made:
        whole = [next(made) for _ in range(16)]
    noted = reasons(dataset).keys()
    used = [sum(key in batch["key"] for batch in whole) for key in noted]
    assert noted and max(used) > 0, "no video was good in one epoch and bad in another"
    for consumed in (2, 7, 12):
        with loader(dataset, spec, backend=backend) as resumed:
            resumed.load_state_dict({"samples": 4 * consumed})
            for expected in whole[consumed:]:
                assert_same(next(resumed), expected)
    assert reasons(dataset).keys() == noted


def test_too_many_open_files_are_not_the_tars_fault(vp9_folder: Path, tmp_path: Path) -> None:
    dataset = Dataset(shutil.copytree(vp9_folder, tmp_path / "d"))
    dataset.column("mp4_offset")
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError) as caught:
            dataset.read(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE and not isinstance(caught.value, DamagedError)
    assert dataset.read(0)
