"""What the tests use to look at results from outside: a decoder, a renderer, the command as a user runs it."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from tqdm import tqdm

from shards import Dataset

ROOT = Path(__file__).parents[2]
SHARED = Path(__file__).parents[3] / "shared" / "data"
TOOL = ROOT / "tools" / "make_shards.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Decoded:
    """An mp4 as PyAV's own decoder sees it; times are exact seconds, levels the mean luma a frame."""

    frames: int
    width: int
    height: int
    rate: Fraction
    times: list[Fraction]
    keys: list[int]
    tags: set[tuple[str, int, int, int, int]]
    levels: list[float]
    streams: list[str]
    rotation: int
    b_frames: bool


def decode(data: bytes) -> Decoded:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return Decoded(
            frames=len(frames),
            width=frames[0].width,
            height=frames[0].height,
            rate=stream.average_rate,
            times=[frame.pts * frame.time_base for frame in frames],
            keys=[n for n, frame in enumerate(frames) if frame.key_frame],
            tags={
                (
                    f.format.name,
                    int(f.colorspace),
                    int(f.color_range),
                    int(f.color_primaries),
                    int(f.color_trc),
                )
                for f in frames
            },
            levels=[float(frame.to_ndarray()[: frame.height].mean()) for frame in frames],
            streams=[stream.type for stream in container.streams],
            rotation=frames[0].rotation,
            b_frames=any(frame.pict_type == PictureType.B for frame in frames),
        )


def render(
    path: Path,
    frames: int = 40,
    size: tuple[int, int] = (96, 64),
    rate: Fraction | int = 25,
    codec: str = "mpeg4",
    times: list[int] | None = None,
    seed: int = 0,
    **options: str,
) -> Path:
    """A video whose frame n is a moving texture of mean luma about 30 + 2 n; `times` in ms makes it variable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    texture = np.random.default_rng(seed).integers(0, 20, (height, width), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for n in range(frames):
            frame = av.VideoFrame(width, height, "yuv420p")
            luma = np.roll(texture, n, 1) + np.uint8(min(30 + 2 * n, 215))
            for plane, values in zip(frame.planes, (luma, None, None), strict=True):
                canvas = np.full((plane.height, plane.line_size), 128, np.uint8)
                if values is not None:
                    canvas[:, :width] = values
                plane.update(canvas)
            frame.pts = n if times is None else times[n]
            if times is not None:
                frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_shards(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    return run_tool(TOOL, *arguments)


def run_tool(tool: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | environment)


def said(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on standard error that are not the progress bar."""
    return [line for line in result.stderr.splitlines() if line and not re.search(r"\d+/\d+ \[", line)]


def on_progress(patch: pytest.MonkeyPatch, call: Callable[[int, int], object]) -> None:
    """Have a job call this with (videos done, videos in all), at its beginning and after each video."""

    class Bar(tqdm):
        def __iter__(self) -> Iterator:
            call(self.n, self.total)
            for done, result in enumerate(super().__iter__(), self.n + 1):
                call(done, self.total)
                yield result

    patch.setattr("shards.build.run.tqdm", Bar)


def files(folder: Path) -> dict[str, bytes]:
    """Name → content of everything in a data set's folder, however deep."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_webdataset_reads(dataset: Dataset) -> None:
    """The tars give webdataset the rows of the table."""
    webdataset = pytest.importorskip("webdataset")
    tars = [str(tar) for tar in sorted(dataset.path.glob("*.tar"))]
    seen = {sample["__key__"]: sample for sample in webdataset.WebDataset(tars, shardshuffle=False)}
    assert sorted(seen) == sorted(dataset.column("key"))
    for row, key in enumerate(dataset.column("key")):
        assert seen[key]["mp4"] == dataset.read(row)
        assert json.loads(seen[key]["json"])["sha256"] == dataset.column("sha256")[row]


def check_dali_reads(dataset: Dataset) -> None:
    """The tars and their indexes give fn.readers.webdataset the rows of the table, each once."""
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    tars = [str(tar) for tar in sorted(dataset.path.glob("*.tar"))]

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def reader():
        index = [tar.replace(".tar", ".idx") for tar in tars]
        mp4, label = dali.fn.readers.webdataset(
            paths=tars, index_paths=index, ext=["mp4", "cls"], name="reader"
        )
        return mp4, label

    pipeline = reader()
    pipeline.build()
    assert pipeline.reader_meta("reader")["epoch_size"] == len(dataset)
    seen = set()
    for _ in range(len(dataset)):
        mp4, label = pipeline.run()
        seen.add((np.asarray(mp4.at(0)).tobytes(), np.asarray(label.at(0)).tobytes()))
    assert seen == {(dataset.read(row), dataset.read(row, "cls")) for row in range(len(dataset))}
