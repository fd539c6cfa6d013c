"""The SPDL peer sees what our decode-and-crop sees: the same frames and boxes, and pixels within 3 of 255 levels."""

from typing import Any

import numpy as np
import pytest

import objectives
from benchmarks.loader.decoders import check_spdl, crops, spdl, stretches
from benchmarks.loader.parts import pixels
from benchmarks.loader.rounds import Source, UncheckedReads
from shards import Dataset, InputError

try:
    check_spdl()
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

LIMIT = 3  # levels of 255: its conversion to RGB rounds down
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in objectives.available()),
    ("memdpc", {"modality": "flow"}),
    ("tcp", {"modality": "difference"}),
]


@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "window"])
@pytest.mark.parametrize(
    ("name", "changes"), CASES, ids=lambda case: case if isinstance(case, str) else "-".join(case)
)
def test_it_shows_what_ours_shows(rendered: Dataset, name: str, changes: dict[str, Any], tuned: bool) -> None:
    cls = objectives.get(name)
    source = Source(rendered, rendered.select(), cls.view_spec(cls.Config(**changes)), 2, seed=3)
    # the flow that the tests make has 25 frames/s
    fps = 25.0 if source.spec.modality == "flow" else float(rendered.column("fps")[0])
    read = UncheckedReads(source)
    for one in source.samples(0, 2):
        ours = pixels(source, one).astype(float)
        theirs = crops(read(one.row), one.params, source.spec.size, fps, 16, source.spec.modality, tuned)
        assert theirs.shape == ours.shape
        off = np.abs(ours - theirs).mean((1, 2))  # of each frame and channel: none shows another frame or box
        assert off.max() < LIMIT
        if source.spec.modality == "rgb":
            assert np.abs(ours[::-1] - theirs).mean() > 2 * off.max() or len(set(one.params.frames.flat)) == 1


def test_it_is_timed(rendered: Dataset) -> None:
    cls = objectives.get("dpc")
    source = Source(rendered, rendered.select(), cls.view_spec(cls.small()), 2, seed=0)
    assert spdl(source, 2, 1)(0)["clips_per_s"] > 0


def test_far_frames_are_demuxed_apart() -> None:
    assert stretches(np.array([0, 3, 6, 40, 41, 99]), 16) == [[0, 3, 6], [40, 41], [99]]
    assert stretches(np.array([7]), 16) == [[7]]
