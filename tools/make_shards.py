#!/usr/bin/env python3
"""Turn a folder of videos into WebDataset tars that Slipstream, webdataset, DALI and tar can read.

    tools/make_shards.py ~/ucf101                             # → data/ucf101, labels from its class folders
    tools/make_shards.py clips --codec vp9 --fps 15           # also decodable by DALI on a CPU
    tools/make_shards.py kinetics --short-side 320 --gop 8    # larger pictures, cheaper random access

Every video is decoded whole, its frames are counted, and it is encoded anew: constant rate, short closed
GOPs, no B-frames, BT.601. What cannot be decoded is listed in rejected.jsonl with the reason. Stop it at any
time: the same command goes on with the first unfinished shard.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from shards import InputError
from shards.build import Summary, build
from shards.encode import Codec, Encoding
from shards.table import REJECTED
from shards.transcode import REASONS


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    src: tyro.conf.Positional[Path]
    """Folder of videos (no labels), of class folders (SRC/handshake/1.avi), or of train/ and test/ folders
    with class folders in them."""
    out: Path | None = None
    """Folder to write; data/ and the name of SRC when not given."""
    codec: Codec = Encoding.codec
    """h264 and hevc decode on every NVDEC; vp9 and mjpeg in DALI's CPU decoder too."""
    short_side: int = Encoding.short_side
    """Pixels; larger videos are scaled down to it, smaller ones keep their size."""
    fps: float | None = Encoding.fps
    """Frames per second, resampled by time; every frame at the video's own average rate when not given."""
    gop: int = Encoding.gop
    """Frames from one key frame to the next: random access decodes half of it for nothing, on average."""
    crf: int | None = Encoding.crf
    """Quality, lower is better and larger; when not given h264 23, hevc 25, vp9 32, mjpeg 4 (quantiser)."""
    per_shard: int = 1000
    """Videos in a tar; about 1 GB is customary. It is also the unit of work that a restart keeps."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes, each with one video at a time; as many as there are cores when not given."""
    seed: int = 0
    """Of the order of the videos over the shards."""


def main() -> int:
    """Run the command; the exit status: 0 done, 2 unusable input, 130 stopped by Ctrl-C."""
    arguments = tyro.cli(Arguments, description=__doc__)
    out = arguments.out or Path("data") / arguments.src.resolve().name
    try:
        summary = _build(arguments, out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: {error.filename or out}: {error.strerror or error}; the same command goes on from there",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
        return 130
    _report(out, summary)
    return 0


def _build(arguments: Arguments, out: Path) -> Summary:
    encoding = Encoding(arguments.codec, arguments.short_side, arguments.fps, arguments.gop, arguments.crf)
    bar: tqdm | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            # what an earlier run made says nothing about this one's speed, hence initial
            bar = tqdm(initial=done, total=total, unit="video", desc=out.name, dynamic_ncols=True)
        bar.update(done - bar.n)

    try:
        return build(
            arguments.src,
            out,
            encoding,
            per_shard=arguments.per_shard,
            workers=arguments.workers,
            seed=arguments.seed,
            progress=show,
        )
    finally:
        if bar is not None:
            bar.close()


def _report(out: Path, summary: Summary) -> None:
    state = "is complete already" if summary.already else "is complete"
    print(f"{out} {state}: {summary.rows} videos, {summary.bytes / 1e6:.1f} MB in tars")
    if summary.rejected:
        print(f"rejected: {sum(summary.rejected.values())}, listed in {out / REJECTED}")
        for reason, count in summary.rejected.items():
            print(f"  {count:6d} {reason}: {REASONS.get(reason, '')}")


if __name__ == "__main__":
    sys.exit(main())
