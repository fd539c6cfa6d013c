"""The demo set: what it holds, and that motion tells its classes apart where appearance does not."""

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from independent import ENVIRONMENT, decode, files

from shards import Dataset
from shards.demo import ensure, render
from shards.demo.motion import CLASSES, draw_clip

TRAIN, TEST = 32, 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that two processes asked for the demo set at once."""
    folder = tmp_path_factory.mktemp("cache")
    code = "import sys; from pathlib import Path; from shards.demo import ensure; print(ensure(Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(folder)]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in racing] == [f"{folder / 'demo-v1'}\n"] * 2
    return folder


@pytest.fixture(scope="module")
def demo(cache: Path) -> Dataset:
    return Dataset(cache / "demo-v1")


def test_ensure_leaves_one_data_set_and_finds_it_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(path.name for path in cache.iterdir()) == [".demo-v1.lock", "demo-v1"]
    written = (cache / "demo-v1" / "dataset.json").stat().st_mtime_ns
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(cache))
    assert ensure() == ensure(cache) == cache / "demo-v1"
    assert (cache / "demo-v1" / "dataset.json").stat().st_mtime_ns == written


def test_counts_splits_and_frames(demo: Dataset) -> None:
    assert demo.classes == list(CLASSES) and demo.name == "demo"
    for split, count in (("train", TRAIN), ("test", TEST)):
        rows = demo.select(split=split)
        assert np.bincount(demo.column("label")[rows]).tolist() == [count] * len(CLASSES)
    assert set(demo.column("num_frames")) == {144} and set(demo.column("fps")) == {30.0}
    seen = decode(demo.read(0))
    assert (seen.frames, seen.width, seen.height, seen.rate) == (144, 176, 144, Fraction(30))
    assert seen.keys == list(range(0, 144, 16)) and seen.tags == {("yuv420p", 6, 1, 6, 6)}
    assert seen.times == [Fraction(n, 30) for n in range(144)] and not seen.b_frames


def test_a_clip_depends_on_its_seed_only(tmp_path: Path) -> None:
    for name, counts, seed, workers in (("a", (2, 1), 5, 1), ("b", (2, 1), 5, 2), ("c", (2, 1), 6, 2)):
        render(tmp_path / name, clips_per_class=counts, frames=4, seed=seed, workers=workers)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert not set(Dataset(tmp_path / "a").column("sha256")) & set(Dataset(tmp_path / "c").column("sha256"))


@pytest.fixture(scope="module")
def rows(demo: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Half of each class's train clips, and the test clips."""
    return demo.select(split="train", label_fraction=0.5), demo.select(split="test")


@pytest.fixture(scope="module")
def pixels(demo: Dataset, rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Every other frame of those clips at a quarter of their size, (clips, 72, 36, 44, 3), RGB 0–255."""
    clips = []
    for row in np.concatenate(rows):
        with av.open(io.BytesIO(demo.read(row))) as container:
            frames = list(container.decode(video=0))[::2]
        reformatter = VideoReformatter()
        small = [reformatter.reformat(f, 44, 36, "rgb24", interpolation="AREA", threads=1) for f in frames]
        clips.append(np.stack([frame.to_ndarray() for frame in small]))
    return np.stack(clips).astype(np.float32)


def _accuracy(demo: Dataset, rows: tuple, features: np.ndarray, neighbours: int = 1) -> float:
    """Nearest neighbours from train to test on standardised features (clips, D)."""
    labels = [demo.column("label")[some] for some in rows]
    train, test = np.split(features, [len(rows[0])])
    train, test = ((some - train.mean(0)) / (train.std(0) + 1e-6) for some in (train, test))
    distance = np.stack([((one - train) ** 2).sum(1) for one in test])
    nearest = labels[0][np.argsort(distance, 1)[:, :neighbours]]
    votes = np.array([np.bincount(row, minlength=len(CLASSES)).argmax() for row in nearest])
    return float((votes == labels[1]).mean())


def test_appearance_does_not_tell_the_classes_apart(demo: Dataset, rows: tuple, pixels: np.ndarray) -> None:
    count = TEST * len(CLASSES)
    chance = 1 / len(CLASSES)
    bound = chance + 3 * (chance * (1 - chance) / count) ** 0.5  # three standard errors
    single = pixels[:, 35].reshape(len(pixels), -1)
    assert _accuracy(demo, rows, pixels.mean((1, 2, 3))) < bound
    assert _accuracy(demo, rows, single) < bound
    assert _accuracy(demo, rows, pixels.mean(1).reshape(len(pixels), -1)) < bound


def test_motion_tells_the_classes_apart(demo: Dataset, rows: tuple, pixels: np.ndarray) -> None:
    """Spread over time of what moves: its centre, along x and y, and its area; and the change a frame."""
    background = np.median(pixels, axis=1, keepdims=True)
    moving = np.abs(pixels - background).max(-1) > 25
    area = moving.sum((2, 3)) + 1e-3
    x = (moving * np.arange(44)).sum((2, 3)) / area
    y = (moving * np.arange(36)[:, None]).sum((2, 3)) / area
    change = np.abs(np.diff(pixels, axis=1)).mean((2, 3, 4))
    spread = [values.std(1) for values in (x, y, area / area.mean(1, keepdims=True))]
    skew = ((y - y.mean(1, keepdims=True)) ** 3).mean(1) / (y.std(1) ** 3 + 1e-3)
    rate = [np.abs(np.fft.rfft(v - v.mean(1, keepdims=True)))[:, 1:12] for v in (x, y, area, change)]
    rate = [values / (values.sum(1, keepdims=True) + 1e-6) for values in rate]
    features = np.concatenate([np.stack([*spread, skew], 1), *rate], 1)
    assert _accuracy(demo, rows, features, neighbours=5) > 0.45  # chance is 0.17


def test_frames_move_smoothly_and_a_period_is_about_36_frames() -> None:
    for number, motion in enumerate(CLASSES):
        clip = draw_clip(motion, 90, np.random.default_rng(number)).astype(np.float32)
        assert clip.shape == (90, 144, 176, 3)
        step = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3))
        assert step.max() < 12 and step.mean() > 0.05
        back = [np.abs(clip[:40] - clip[lag : lag + 40]).mean() for lag in range(50)]
        assert 28 <= 15 + int(np.argmin(back[15:])) <= 43
