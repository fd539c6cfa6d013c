"""benchmarks/flow_statistics.py: its figures, and the command."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks import flow_statistics
from benchmarks.report import origin
from evaluation.metrics import Labelled
from shards import Dataset, InputError
from shards.demo import render

pytest.importorskip("cv2", reason="needs OpenCV, the extra `flow`")
ROOT = Path(__file__).parents[2]
SPEED = 3  # pixels from one frame that is looked at to the next


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("demo") / "demo", clips_per_class=(8, 2), frames=24)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, ROOT / "benchmarks" / "flow_statistics.py", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(script, capture_output=True, text=True, env=environment)


def predictions(folder: Path, data: Path, folds: int) -> np.ndarray:
    """A result whose predictions are drawn; which of them are right."""
    labelled = Labelled(Dataset(data))
    splits = labelled.splits((), folds)
    rows = np.concatenate([split.test for split in splits])
    chances = np.random.default_rng(0).dirichlet(np.ones(6), len(rows))
    folder.mkdir()
    np.savez(
        folder / "predictions.npz",
        key=np.array(labelled.dataset.keys(rows)),
        label=labelled.labels[rows],
        split=np.concatenate([[split.name] * len(split.test) for split in splits]),
        group=labelled.groups[rows],
        probabilities=chances[None],
    )
    return chances.argmax(1) == labelled.labels[rows]


def test_a_panning_camera_is_all_the_flow_there_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (10, 40), dtype=np.uint8)
    wide = np.kron(noise, np.ones((8, 8), dtype=np.uint8))
    wide = (wide.astype(float) + np.roll(wide, 4, 1) + np.roll(wide, 4, 0)) / 3  # edges in more places
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = flow_statistics.WIDTH, flow_statistics.HEIGHT, "yuv420p"
        for number in range(24):
            left = SPEED * (number // flow_statistics.EVERY)
            picture = wide[4 : 4 + stream.height, left : left + stream.width].astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="gray")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())

    class One:
        def read(self, row: int) -> bytes:
            return written.getvalue()

    (found,) = flow_statistics.statistics(One(), np.array([0])).x  # type: ignore[arg-type]
    camera, rest = found[:17], found[17:34]  # means over time, with and without the median
    assert camera[0] == pytest.approx(-SPEED, abs=0.5) and camera[1] == pytest.approx(0, abs=0.3)
    assert camera[7] == pytest.approx(SPEED, abs=0.2)  # the median of speed
    assert abs(rest[0]) < 0.4 and rest[7] < 0.3


def test_the_command_says_how_much_better_results_are(data: Path, tmp_path: Path) -> None:
    right = predictions(tmp_path / "linear", data, folds=10)  # fold10 comes before fold2
    done = command(data, "--folds", 10, "--against", tmp_path / "linear", "--json", tmp_path / "flow.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "flow.json").read_text())
    theirs = found["against"][str(tmp_path / "linear")]
    assert theirs["top1"]["value"] == pytest.approx(right.mean())  # folds of six: all weigh alike
    assert theirs["delta"]["value"] == pytest.approx(right.mean() - found["top1"]["value"])
    assert theirs["delta"]["low"] < theirs["delta"]["value"] < theirs["delta"]["high"]
    assert f"{100 * found['top1']['value']:.1f}" in done.stdout and found["data"]["videos"] == 60
    assert found["machine"]["cpu"] == origin("", ())["machine"]["cpu"]


def test_what_does_not_fit_is_said_before_any_work(data: Path, tmp_path: Path) -> None:
    predictions(tmp_path / "linear", data, folds=2)
    for folder, said in ((tmp_path / "linear", "other videos or folds"), (tmp_path, "predictions.npz")):
        with pytest.raises(InputError, match=f"{folder}.*{said}"):
            flow_statistics.main([str(data), "--folds", "3", "--against", str(folder)])
