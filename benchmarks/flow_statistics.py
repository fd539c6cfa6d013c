#!/usr/bin/env python3
"""How well statistics of optical flow tell a data set's classes apart, and how much better results of evaluate.py do.

    benchmarks/flow_statistics.py data/demo-1200                                              a linear probe in five folds
    benchmarks/flow_statistics.py data/demo-1200 --against runs/evaluation/demo-1200/linear-*     and paired differences

68 numbers a video: mean and deviation over time of Farnebäck's flow, its speed and directions, with and without the
camera's share (the median of the picture). The probe and its folds are those of evaluate.py linear --folds.
"""

import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from benchmarks.report import origin
from evaluation import metrics
from evaluation.features import Features
from evaluation.metrics import Hits, Labelled
from evaluation.probe import Head, train_and_test
from evaluation.results import Outcome, hits_by_split, hits_of, read_predictions
from shards import Dataset, InputError, one_line
from shards.documents import write_json
from training.speed import cores

cv2: Any = import_module("cv2") if find_spec("cv2") else None  # OpenCV is an extra
EVERY, WIDTH, HEIGHT = 4, 88, 72  # frames that are looked at, and their size
SEEDS = 3  # of evaluate.py linear


@dataclass(frozen=True)
class Arguments:
    """What is looked at."""

    data: tyro.conf.Positional[Path]
    """A labelled data set made by tools/make_shards.py or tools/render_demo.py."""
    folds: int = 5
    """Parts, each of which is the test part once: those of evaluate.py --folds."""
    against: tuple[Path, ...] = ()
    """Folders of results of evaluate.py linear on the same folds."""
    json: Path | None = None
    """Write the result here as well."""


def main(argv: Sequence[str]) -> None:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    if cv2 is None:
        raise InputError("optical flow needs OpenCV: pip install 'slipstream[flow]'")
    dataset = Dataset(arguments.data)
    labelled = Labelled(dataset)
    splits = labelled.splits((), arguments.folds)
    tested = np.concatenate([split.test for split in splits])
    results = {folder: read_predictions(folder) for folder in arguments.against}
    for folder, found in results.items():
        if found["key"].tolist() != dataset.keys(tested):
            raise InputError(
                f"--against {folder}: is of other videos or folds than --folds {arguments.folds}"
            )
    features = statistics(dataset, tested)
    in_order = sorted(splits, key=lambda split: split.name)  # as hits_by_split has them
    flow = [recognised(features, labelled, split) for split in in_order]
    against = {}
    top1 = shown("statistics of optical flow", metrics.score(flow))
    for folder, found in results.items():
        theirs = hits_by_split(found, found["probabilities"])
        against[str(folder)] = {
            "top1": shown(str(folder), metrics.score(theirs)),
            "delta": shown("  minus optical flow", metrics.difference(theirs, flow)),
        }
    if arguments.json:
        data = {"name": dataset.name, "fingerprint": dataset.fingerprint, "videos": len(tested)}
        head = origin("benchmarks/flow_statistics.py", argv)
        write_json(arguments.json, head | {"data": data, "top1": top1, "against": against})


def shown(name: str, score: metrics.Score) -> dict[str, Any]:
    print(f"{name}: {score} %")
    return score.as_dict()


def statistics(dataset: Dataset, rows: NDArray[np.int64]) -> Features:
    """(rows, 68), a row a video. Raises InputError for one that cannot be decoded."""

    def of(row: int) -> NDArray[np.float64]:
        try:
            return _of_video(dataset.read(row))
        except av.FFmpegError as error:
            (key,) = dataset.keys(np.array([row]))
            raise InputError(
                f"{dataset.path}: {key} cannot be decoded ({error}); see tools/check_shards.py"
            ) from error

    with ThreadPoolExecutor(cores()) as pool:
        found = list(tqdm(pool.map(of, rows), total=len(rows), unit="video", desc="optical flow"))
    return Features(np.stack(found), rows, np.zeros_like(rows), {})


def recognised(features: Features, labelled: Labelled, split: metrics.Split) -> Hits:
    """Which test videos the probe of the training videos recognises."""
    train, test = features.of(split.train), features.of(split.test)
    runs = [train_and_test(train, test, labelled, Head(), seed=seed) for seed in range(SEEDS)]
    (found,) = hits_of([Outcome.of(split, runs)], labelled.labels, labelled.groups)
    return found


def _of_video(video: bytes) -> NDArray[np.float64]:
    scaler = VideoReformatter()
    with av.open(io.BytesIO(video)) as container:
        small = [
            scaler.reformat(frame, WIDTH, HEIGHT, "gray", interpolation="AREA", threads=1).to_ndarray()
            for frame in list(container.decode(video=0))[::EVERY]
        ]
    found = []
    for one, two in pairwise(small):
        flow = cv2.calcOpticalFlowFarneback(one, two, None, 0.5, 2, 11, 2, 5, 1.1, 0)
        both: list[float] = []
        for moved in (flow, flow - np.median(flow, axis=(0, 1))):
            speed, angle = np.hypot(*np.moveaxis(moved, -1, 0)), np.arctan2(moved[..., 1], moved[..., 0])
            both += [*moved.mean((0, 1)), *moved.std((0, 1)), speed.mean(), speed.std()]
            both += [*np.percentile(speed, (50, 90, 99))]
            both += [*np.histogram(angle, 8, (-np.pi, np.pi), weights=speed)[0] / speed.size]
        found.append(both)
    return np.concatenate([np.mean(found, 0), np.std(found, 0)])


if __name__ == "__main__":
    with one_line():
        main(sys.argv[1:])
