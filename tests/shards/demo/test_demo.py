"""The demo set: what it holds, and that motion tells its classes apart where appearance does not."""

import io
import itertools
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from independent import ENVIRONMENT, ROOT, decode, files
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shards import Dataset
from shards.demo import ensure, render
from shards.demo.motion import CLASSES, EASY_CLASSES, Blob, _pose, draw_clip

TRAIN, TEST = 16, 8
# Python runs a sitecustomize module in every process: this one makes the demo set smaller, which takes half the time.
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
    assert [process.communicate()[0] for process in racing] == [f"{folder / 'demo-v2'}\n"] * 2
    return folder


@pytest.fixture(scope="module")
def demo(cache: Path) -> Dataset:
    return Dataset(cache / "demo-v2")


def test_ensure_leaves_one_data_set_and_finds_it_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(path.name for path in cache.iterdir()) == [".demo-v2.lock", "demo-v2"]
    written = (cache / "demo-v2" / "dataset.json").stat().st_mtime_ns
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(cache))
    assert ensure() == ensure(cache) == cache / "demo-v2"
    assert (cache / "demo-v2" / "dataset.json").stat().st_mtime_ns == written


def test_counts_splits_and_frames(demo: Dataset) -> None:
    assert demo.classes == list(CLASSES) and demo.name == "demo"
    assert (render.__kwdefaults__ or {})["clips_per_class"] == (32, 8)
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


def test_optical_flow_statistics_do_not_tell_the_classes_apart(demo: Dataset) -> None:
    """Mean and deviation over time of flow, its speed and directions, with and without the camera's share: 68 numbers.

    Chance is 17 %; of two classes with the same motions the statistics can only guess one.
    """
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV, the extra `flow`")
    features = []
    for row in range(len(demo)):
        with av.open(io.BytesIO(demo.read(row))) as container:
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)][::4]
        small = [cv2.resize(frame, (88, 72), interpolation=cv2.INTER_AREA) for frame in frames]
        found = []
        for one, two in itertools.pairwise(small):
            flow = cv2.calcOpticalFlowFarneback(one, two, None, 0.5, 2, 11, 2, 5, 1.1, 0)
            both: list[float] = []
            for moved in (flow, flow - np.median(flow, axis=(0, 1))):
                speed, angle = np.hypot(*np.moveaxis(moved, -1, 0)), np.arctan2(moved[..., 1], moved[..., 0])
                both += [*moved.mean((0, 1)), *moved.std((0, 1)), speed.mean(), speed.std()]
                both += [*np.percentile(speed, (50, 90, 99))]
                both += [*np.histogram(angle, 8, (-np.pi, np.pi), weights=speed)[0] / speed.size]
            found.append(both)
        features.append(np.concatenate([np.mean(found, 0), np.std(found, 0)]))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    accuracy = cross_val_score(classifier, np.array(features), demo.column("label"), cv=folds).mean()
    assert accuracy < 0.6


def test_classes_are_pairs_of_the_same_motions_in_opposite_order() -> None:
    cycles = [tuple(name.split("-")) for name in CLASSES]
    assert all(len(set(cycle)) == 3 for cycle in cycles)
    turned = [{cycle[n:] + cycle[:n] for n in range(3)} for cycle in cycles]
    for cycle, rotations in zip(cycles, turned, strict=True):
        partners = [other for other in cycles if set(other) == set(cycle) and other not in rotations]
        assert len(partners) == 1 and partners[0] in {one[::-1] for one in rotations}


def test_motions_come_in_the_order_of_their_class_and_join_without_a_jump() -> None:
    blob = Blob(np.zeros((8, 8, 4), np.float32), 20.0, (80.0, 70.0), 16.0, 0.0, 1.0, 0.3)
    for motion in CLASSES:
        poses = np.array([_pose(motion, blob, t / 300) for t in range(901)])
        assert (np.abs(np.diff(poses, axis=0)).max(0) < (0.8, 0.8, 0.05, 0.02)).all()
        order = []
        for third in range(3):
            moved = np.ptp(poses[third * 100 : third * 100 + 100], axis=0) > 1e-6
            order.append(("slide", "hop", "spin", "pulse")[np.flatnonzero(moved).item()])
        assert "-".join(order) == motion


def test_the_easy_set_is_the_one_of_before(tmp_path: Path) -> None:
    """In demo-v1 each class was one motion; the sum of its first eight pictures was noted before it was replaced."""
    render(tmp_path / "easy", clips_per_class=(1, 0), frames=4, easy=True, workers=1)
    easy = Dataset(tmp_path / "easy")
    assert easy.classes == list(EASY_CLASSES) and easy.column("source")[0] == "demo-v1/train-bounce-000"
    clip = draw_clip("bounce", 8, np.random.Generator(np.random.Philox(key=0, counter=[0, 0, 0, 0])))
    assert int(clip.astype(np.int64).sum()) == 51332718


def test_easy_frames_move_smoothly_and_a_period_is_about_36_frames() -> None:
    for number, motion in enumerate(EASY_CLASSES):
        clip = draw_clip(motion, 90, np.random.default_rng(number)).astype(np.float32)
        assert clip.shape == (90, 144, 176, 3)
        step = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3))
        assert step.max() < 12 and step.mean() > 0.05
        back = [np.abs(clip[:40] - clip[lag : lag + 40]).mean() for lag in range(50)]
        assert 28 <= 15 + int(np.argmin(back[15:])) <= 43
