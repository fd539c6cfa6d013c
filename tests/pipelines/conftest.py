"""Data sets made once: the demo set in small, as H.264 and as VP9, and a video that numbers its frames."""

from pathlib import Path

import pytest

from shards import Dataset, demo
from shards.video.encode import Encoding
from shards.video.transcode import transcode
from tests.pipelines.reference import numbered_video, write_dataset

FRAMES = 40
NUMBERED = 230


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 clips of 40 frames, 176×144, H.264."""
    folder = tmp_path_factory.mktemp("demo")
    return demo.render(folder, clips_per_class=(2, 1), frames=FRAMES, workers=2)


@pytest.fixture
def dataset(demo_folder: Path) -> Dataset:
    return Dataset(demo_folder)


@pytest.fixture(scope="session")
def vp9_folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of the same as VP9."""
    source, encoding = Dataset(demo_folder), Encoding(codec="vp9", short_side=144)
    clips = [transcode(source.read(row), encoding) for row in range(8)]
    facts = [
        {"num_frames": c.num_frames, "fps": c.fps, "width": c.width, "height": c.height, "source": "demo"}
        for c in clips
    ]
    return write_dataset(tmp_path_factory.mktemp("vp9") / "vp9", [c.data for c in clips], facts)


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """230 frames that show their numbers, a key frame every 16."""
    return numbered_video(tmp_path_factory.mktemp("numbered") / "numbered.mp4", NUMBERED)
