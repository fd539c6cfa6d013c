#!/usr/bin/env python3
"""Turn a folder of videos into WebDataset tars that Slipstream, webdataset, DALI and tar can read.

    tools/make_shards.py ~/ucf101                             # → data/ucf101, with its three splits
    tools/make_shards.py ~/kinetics400 --dry-run              # layout, counts, splits, expected size and time
    tools/make_shards.py ~/kinetics400 --for dpc              # no larger, faster or longer to seek in than DPC needs
    tools/make_shards.py clips --codec vp9 --fps 15           # also decodable by DALI on a CPU
    tools/make_shards.py hmdb51 --flow tvl1                   # optical flow beside every video
    tools/make_shards.py k400 --part 3/16                     # a job array; then tools/merge_shards.py data/k400

Every video is decoded whole, its frames are counted, and it is encoded again: constant rate, short closed
GOPs, BT.601. What cannot be used is listed in rejected.jsonl with the reason. Stop it at any
time: the same command goes on with the first unfinished shard. Layouts, reasons, clusters: docs/guides/shards.md.
"""

import argparse
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from shards import InputError, one_line
from shards.build.finish import UNLISTED, Summary, index_in_place
from shards.build.job import part_of
from shards.build.pool import Limits
from shards.build.process_video import Processing
from shards.build.run import build, build_on_ray, dry_run, prepare
from shards.errors import command_line
from shards.layouts import Layout, find, hold_out
from shards.remote import url_of
from shards.schema import REJECTED, TABLE, safe_name
from shards.table import Table
from shards.video.encode import Encoding
from shards.video.pictures import sides_remark
from shards.video.read import REASONS

if TYPE_CHECKING:
    from objectives.base import ShardSettings

TIMEOUT = 1800.0
TIMEOUT_WITH_FLOW = 18000.0  # TV-L1 takes a tenth of a second a frame


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    src: tyro.conf.Positional[Path]
    """Folder of videos in one of the layouts; a list of videos (CSV, TSV, or `path label` a line); or WebDataset tars: a
    folder of them, one, a range such as 'shards/{000..127}.tar', or s3://… or https://…"""
    out: Path | None = None
    """Folder to write; data/ and the name of SRC when not given."""
    layout: Layout | None = None
    """How SRC is laid out; recognised when not given. --dry-run shows what was recognised."""
    annotations: Path | None = None
    """CSV, split list or folder of them; looked for in SRC and beside it when not given."""
    hold_out: float | None = None
    """Where SRC has no splits: this share of each class becomes split test, the rest train. Chosen by a hash of the
    names; videos with the same value in a list's column `group` stay together."""
    in_place: bool = False
    """Of tars whose videos suit already: write samples.parquet, .idx and dataset.json beside them, and copy nothing."""
    made_for: Annotated[str | None, tyro.conf.arg(name="for", metavar="METHOD")] = None
    """Make --fps, --short-side and --gop what this method's paper needs, where they are not given: --for dpc --help
    shows them. Other methods can be trained on it too, on what it has left. METHOD: a --objective of train.py."""
    processing: tyro.conf.OmitArgPrefixes[Processing] = field(default_factory=Processing)
    per_shard: int = 1000
    """Videos in a tar; about 1 GB is customary. It is also the unit of work that a restart keeps."""
    seed: int = 0
    """Of the order of the videos over the shards."""
    limits: tyro.conf.OmitArgPrefixes[Limits] = field(
        default_factory=lambda: Limits(len(os.sched_getaffinity(0)), timeout=None)
    )
    part: str | None = None
    """I/N: make only every N-th shard, from the I-th; for job arrays, joined by tools/merge_shards.py."""
    ray: str | None = None
    """Address of a Ray cluster (host:port, or auto); each of its tasks takes --workers CPUs and makes a shard."""
    dry_run: bool = False
    """Print the layout, counts, splits and, from a few videos, the expected size and time; write nothing."""


def main() -> None:
    with one_line():
        defaults = _defaults(sys.argv[1:])
        arguments = command_line(Arguments, description=__doc__, default=defaults)
        if arguments.in_place:
            _index_in_place(arguments)
            return
    out = arguments.out or Path("data") / _name(arguments.src)
    with one_line("the same command goes on from there", out):
        _run(arguments, out)


def _defaults(argv: list[str]) -> Arguments:
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--for", dest="made_for")
    plain = Arguments(src=tyro.MISSING)
    made_for = early.parse_known_args(argv)[0].made_for
    if made_for is None:
        return plain
    suits = _suits(made_for)
    encoding = Encoding(fps=suits.fps, short_side=suits.short_side, gop=suits.gop)
    return replace(plain, processing=Processing(encoding))


def _suits(method: str) -> "ShardSettings":
    """The shards that suit a method; raises InputError where there is no such method."""
    from objectives import get  # here, since it loads torch, which nothing else of this tool needs

    return get(method, "--for").shards


def _name(src: Path) -> str:
    if src.is_file():
        return src.stem
    return (
        src.resolve().name
        if src.exists()
        else safe_name(src.name if "{" not in src.name else src.parent.name)
    )


def _index_in_place(arguments: Arguments) -> None:
    kept = ("out", "frames_fps", "part", "ray", "flow", "copy", "dry_run")
    if given := [name for name in kept if (vars(arguments) | vars(arguments.processing))[name]]:
        raise InputError(f"--in-place: nothing is encoded, so leave out --{given[0].replace('_', '-')}")
    if url_of(arguments.src):
        raise InputError("--in-place: SRC is a URL, where nothing can be written; fetch the tars first")
    found = find(arguments.src, arguments.layout, arguments.annotations)
    if arguments.hold_out is not None:
        found = hold_out(found, arguments.hold_out)
    summary = index_in_place(found, arguments.processing.encoding, _limits(arguments))
    _report(found.sources[0].path.parent, summary)


def _run(arguments: Arguments, out: Path) -> None:
    part = None if arguments.part is None else part_of(arguments.part)
    if part is not None and arguments.ray is not None:
        raise InputError("--part and --ray: each divides the work; give one of them")
    limits = _limits(arguments)
    encoding, made_for = arguments.processing.encoding, arguments.made_for
    stride = _suits(made_for).stride_at(encoding.fps) if made_for else None
    job = prepare(
        arguments.src,
        out,
        arguments.processing,
        layout=arguments.layout,
        annotations=arguments.annotations,
        per_shard=arguments.per_shard,
        seed=arguments.seed,
        held_out=arguments.hold_out,
        made_for=made_for,
        stride=stride,
    )
    if made_for:
        print(_suiting(made_for, encoding, stride))
    if arguments.dry_run:
        print(*dry_run(job, limits, part), sep="\n")
        return
    if arguments.ray is not None:
        summary: Summary | None = build_on_ray(job, arguments.ray, limits)
    else:
        summary = build(job, limits, part=part)
    if summary is None:
        print(f"{out}: part {arguments.part} is done; when all are, tools/merge_shards.py {out}")
    else:
        _report(out, summary)


def _limits(arguments: Arguments) -> Limits:
    """What the command line says, and the usual timeout where it names none."""
    usual = TIMEOUT_WITH_FLOW if arguments.processing.flow else TIMEOUT
    return replace(arguments.limits, timeout=arguments.limits.timeout or usual)


def _suiting(method: str, encoding: Encoding, stride: int | None) -> str:
    rate = "the videos' own rate" if encoding.fps is None else f"{encoding.fps:g} frames/s"
    line = f"for {method}: short side {encoding.short_side}, a key frame every {encoding.gop}, {rate}"
    if stride is None:
        return line
    flag = f"--{(_suits(method).stride or '').replace('_', '-')}"
    return f"{line}; train.py then takes {flag} {stride} where none is given"


def _report(out: Path, summary: Summary) -> None:
    state = "is complete already" if summary.already else "is complete"
    print(f"{out} {state}: {summary.rows} videos, {summary.bytes / 1e6:.1f} MB in tars")
    if summary.unlisted:
        print(f"not in the annotations: {summary.unlisted}, named in {out / UNLISTED}")
    if summary.rejected:
        print(f"rejected: {sum(summary.rejected.values())}, listed in {out / REJECTED}")
        for reason, count in summary.rejected.items():
            print(f"  {count:6d} {reason}: {REASONS.get(reason, '')}")
    columns = Table(out / TABLE)
    if remark := sides_remark(columns.values("width"), columns.values("height")):
        print(remark)


if __name__ == "__main__":
    main()
