"""A few rendered videos, long enough for every paper's clip."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.render import Arguments, render
from shards import Dataset
from tests.pipelines.reference import flow_video, write_dataset

FRAMES = 130


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four of the ten-second videos, cut to 130 frames, with a flow each: u rises to the right, v falls with time."""
    made = Dataset(render(Arguments(tmp_path_factory.mktemp("rendered") / "plain", videos=4, frames=FRAMES)))
    height, width = int(made.column("height")[0]), int(made.column("width")[0])
    t, _, x = np.mgrid[:FRAMES, :height, :width]
    field = np.stack([20 + 200 * x / width, 220 - t], axis=1).round().astype(np.uint8)
    flow = flow_video(tmp_path_factory.mktemp("flow") / "flow.mp4", field)
    names = ("num_frames", "fps", "width", "height")
    facts = [
        {name: made.column(name)[row].item() for name in names} | {"source": "rendered"} for row in range(4)
    ]
    videos = [made.read(row) for row in range(4)]
    folder: Path = tmp_path_factory.mktemp("with-flow") / "flow"
    return Dataset(write_dataset(folder, videos, facts, flows=[flow] * 4))
