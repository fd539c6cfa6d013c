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
from independent import ENVIRONMENT, ROOT, decode, files

from benchmarks import flow_statistics
from evaluation.metrics import Labelled, score
from shards import Dataset
from shards.demo import ensure, render
from shards.demo.motion import CLASSES, Blob, draw_clip, pose

TRAIN, TEST = 8, 4
# Python runs a sitecustomize module in every process: this one makes the demo set smaller, which takes a fifth of the time.
FEWER = f"import shards.demo; shards.demo.render.__kwdefaults__['clips_per_class'] = {TRAIN, TEST}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that two processes asked for the demo set at once."""
    folder, site = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(FEWER)
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{site}:{ROOT}"}
    code = "import sys; from pathlib import Path; from shards.demo import ensure; print(ensure(Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(folder)]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in racing] == [f"{folder / 'demo-v3'}\n"] * 2
    return folder


@pytest.fixture(scope="module")
def demo(cache: Path) -> Dataset:
    return Dataset(cache / "demo-v3")


def test_ensure_leaves_one_data_set_and_finds_it_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(path.name for path in cache.iterdir()) == [".demo-v3.lock", "demo-v3"]
    written = (cache / "demo-v3" / "dataset.json").stat().st_mtime_ns
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(cache))
    assert ensure() == ensure(cache) == cache / "demo-v3"
    assert (cache / "demo-v3" / "dataset.json").stat().st_mtime_ns == written


def test_counts_splits_and_frames(demo: Dataset) -> None:
    assert demo.classes == list(CLASSES) and demo.name == "demo"
    assert (render.__kwdefaults__ or {})["clips_per_class"] == (64, 16)
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
    """The train clips, and the test clips."""
    return demo.select(split="train"), demo.select(split="test")


@pytest.fixture(scope="module")
def pixels(demo: Dataset, rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Every other frame of those clips at a quarter of their size, (clips, 72, 36, 44, 3), RGB 0–255."""
    clips = []
    for row in np.concatenate(rows):
        with av.open(io.BytesIO(demo.read(row))) as container:
            frames = list(container.decode(video=0))[::2]
        clips.append(np.stack(_scaled(frames, 44, 36, "rgb24")))
    return np.stack(clips).astype(np.float32)


def _scaled(frames: list[av.VideoFrame], width: int, height: int, pixels: str) -> list[np.ndarray]:
    """In one thread, which for small frames is faster than several."""
    scaler = VideoReformatter()
    scaled = [scaler.reformat(f, width, height, pixels, interpolation="AREA", threads=1) for f in frames]
    return [frame.to_ndarray() for frame in scaled]


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


def test_optical_flow_statistics_do_not_tell_the_classes_apart(demo: Dataset) -> None:
    """Chance is 17 %; of two classes, one the other backwards, the statistics can only guess one."""
    pytest.importorskip("cv2", reason="needs OpenCV, the extra `flow`")
    features, labelled = flow_statistics.statistics(demo, np.arange(len(demo))), Labelled(demo)
    hits = [flow_statistics.recognised(features, labelled, split) for split in labelled.splits((), 5)]
    assert 1 / 4 < score(hits).value < 0.6


def test_classes_are_pairs_of_a_motion_and_the_same_backwards() -> None:
    assert [name.split("-")[0] for name in CLASSES[::2]] == [name.split("-")[0] for name in CLASSES[1::2]]
    for backward, forward in zip(CLASSES[::2], CLASSES[1::2], strict=True):
        there, back = poses(forward), poses(backward)
        assert np.allclose(there, back[::-1])
        # and neither is the other from another moment on, upside down or in a mirror
        for turned in (back, np.concatenate([2 * back[0, :2] - back[:, :2], back[:, 2:]], axis=1)):
            shifted = [np.roll(turned[:-1], lag, axis=0) for lag in range(0, 300, 5)]
            assert (
                min(np.abs(there[:-1] - other).max() for other in shifted) > 0.1 * np.ptp(there, axis=0).max()
            )


def test_a_motion_changes_one_thing_and_ends_where_it_began_without_a_jump() -> None:
    moves = {"slide": 0, "hop": 1, "pulse": 3}
    for motion in CLASSES:
        seen = poses(motion)
        moved = np.flatnonzero(np.ptp(seen, axis=0) > 1e-6)
        assert moved.tolist() == [moves[motion.split("-")[0]]]
        assert np.allclose(seen[0], seen[-1])
        assert np.abs(np.diff(seen, axis=0)).max() < 0.05 * np.ptp(seen, axis=0).max()


def test_a_forward_hop_starts_fast_and_a_forward_pulse_grows_slowly() -> None:
    height = poses("hop-forward")[:, 1]
    speed = np.abs(np.diff(height[:150]))  # one stroke of two
    assert speed[:30].mean() > 5 * speed[-30:].mean()
    growing = np.diff(poses("pulse-forward")[:, 3]) > 0
    assert growing.mean() == pytest.approx(0.75, abs=0.02)


def poses(motion: str) -> np.ndarray:
    """A cycle of a blob in 300 steps, (301, 4)."""
    blob = Blob(np.zeros((8, 8, 4), np.float32), 20.0, (80.0, 70.0), 16.0, 0.0, 1.0, 0.3)
    return np.array([pose(motion, blob, t / 300) for t in range(301)])


def test_frames_move_and_do_not_jump() -> None:
    for number, motion in enumerate(CLASSES):
        clip = draw_clip(motion, 130, np.random.default_rng(number)).astype(np.float32)
        assert clip.shape == (130, 144, 176, 3)
        step = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3))
        assert step.max() < 25 and step.mean() > 0.2
