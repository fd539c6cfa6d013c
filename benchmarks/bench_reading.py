#!/usr/bin/env python3
"""What it saves to read the part of a file that a clip needs, and not the whole: bytes and milliseconds a clip.

    benchmarks/bench_reading.py --json benchmarks/results/DATE-MACHINE-reading.json

Videos of 300 frames, 320×240, in several sizes of file, and DPC's clips. Reading and checking are timed, and finding the
packets, which a decoder needs in any case; no decoding. Files lie in the page cache, or behind HTTP on loopback. Times are
milliseconds of this process's cores: what is waited for a server is not in them.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
import objectives
import shards.video.excerpt
from benchmarks.machine import describe
from pipelines.backends.base import Video
from pipelines.sampling import sample_params
from shards import Dataset, at_least, one_line
from shards.table import publish
from shards.tar import Sample, write_shard
from shards.video.encode import Encoding, write_mp4
from shards.video.excerpt import indexed

FRAMES, WIDTH, HEIGHT = 300, 320, 240


@dataclass(frozen=True)
class Settings:
    """What is timed."""

    crf: tuple[int, ...] = (45, 31, 29, 27, 25, 22)
    """x264's qualities of the videos: the lower, the larger the file."""
    rows: int = 24
    """Videos of each size."""
    rounds: int = 5
    """Rounds, each of which reads a clip of every video."""
    json: Path | None = None
    """Write the result here as well."""

    def __post_init__(self) -> None:
        at_least(self, 1, "rows", "rounds")


def main(argv: list[str]) -> None:
    settings = tyro.cli(Settings, args=argv, description=__doc__)
    shards.video.excerpt.WHOLE = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["SLIPSTREAM_CACHE"] = str(folder / "cache")
        url = stack.enter_context(served(folder))
        found = [measured(folder, url, crf, settings) for crf in settings.crf]
    print(
        "KiB a file  KiB read   core's ms a clip, page cache: whole, part, index known    HTTP: whole, part, index known"
    )
    for one in found:
        times = (f"{one[f'{where}_{how}_ms']:8.2f}" for where, how in product(("local", "http"), HOW))
        print(f"{one['kib']:10.0f}  {one['kib_read']:8.0f}  ", *times)
    if settings.json:
        result = {
            "command": "benchmarks/bench_reading.py " + " ".join(argv),
            "machine": describe("av", "numpy", "fsspec", "aiohttp"),
            "sizes": found,
        }
        settings.json.write_text(json.dumps(result, indent=1) + "\n")


HOW = ("whole", "part", "known")


def measured(folder: Path, url: str, crf: int, settings: Settings) -> dict[str, float]:
    """One size of file. Medians over the rounds of the means over the rows, in milliseconds."""
    name = f"crf{crf}"
    video = encoded(folder, crf)
    write(folder / name, video, settings.rows)
    spec = objectives.get("dpc").view_spec(objectives.get("dpc").Config())
    rows = np.arange(settings.rows)
    facts = (np.full(settings.rows, value) for value in (FRAMES, WIDTH, HEIGHT))
    params = sample_params(spec, rows, *facts, seed=0, epoch=0)
    clips = [params.sample(row).frames for row in rows]
    places = {"local": str(folder / name), "http": f"{url}/{name}"}
    found: dict[str, float] = {"kib": len(video) / 1024}
    for where, place in places.items():
        timed: dict[str, list[float]] = {how: [] for how in HOW}
        for _ in range(settings.rounds):
            dataset = Dataset(place, cache_gb=0)
            dataset.read(0)
            dataset.packet_index(0)
            dataset._known.clear()
            work: dict[str, Callable[[int], Any]] = {
                "whole": lambda row, dataset=dataset: indexed(dataset.read(row)),
                "part": lambda row, dataset=dataset: Video(dataset, row, "mp4").read_frames(clips[row]),
            }
            work["known"] = work["part"]
            for how, read in work.items():
                began = time.process_time()
                read_all = [len(read(row).data) for row in rows.tolist()]
                timed[how].append(1000 * (time.process_time() - began) / settings.rows)
            found["kib_read"] = statistics.fmean(read_all) / 1024
            dataset.close()
        found |= {f"{where}_{how}_ms": statistics.median(times) for how, times in timed.items()}
    return found


def encoded(folder: Path, crf: int) -> bytes:
    """A texture that moves, with noise."""
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(40, 200, (100, 100)), np.ones((8, 8)))
    noise = rng.integers(0, 24, (8, HEIGHT, WIDTH))

    def frames() -> Any:
        for n in range(FRAMES):
            luma = texture[n : n + HEIGHT, n : n + WIDTH] + noise[n % 8]
            planes = np.concatenate([luma.ravel(), np.full(WIDTH * HEIGHT // 2, 120)]).astype(np.uint8)
            yield av.VideoFrame.from_ndarray(planes.reshape(HEIGHT * 3 // 2, WIDTH), "yuv420p")

    path = folder / "video.mp4"
    write_mp4(frames(), path, Fraction(30), Encoding(crf=crf, preset="veryfast", short_side=HEIGHT))
    return path.read_bytes()


def write(out: Path, video: bytes, rows: int) -> None:
    out.mkdir()
    facts = {"num_frames": FRAMES, "fps": 30.0, "width": WIDTH, "height": HEIGHT, "source": "rendered"}
    shard = write_shard(out, out.name, [Sample(f"v{row}", video, facts, 0) for row in range(rows)])
    assert shard is not None
    publish(out, ["only"], [asdict(shard)], {}, name=out.name)


class Ranges(SimpleHTTPRequestHandler):
    """Serves a folder, and ranges of its files."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_GET(self) -> None:
        if "Range" not in self.headers:
            return super().do_GET()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        with open(self.translate_path(self.path), "rb") as file:
            file.seek(first)
            content = file.read(last + 1 - first)
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: Path, port: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
    port.send(server.server_port)
    server.serve_forever()


class served:
    """A folder's address, while a process serves it."""

    def __init__(self, folder: Path) -> None:
        context = get_context("spawn")
        self._port, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(folder, theirs), daemon=True)

    def __enter__(self) -> str:
        self._process.start()
        return f"http://127.0.0.1:{self._port.recv()}"

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


if __name__ == "__main__":
    with one_line():
        main(sys.argv[1:])
