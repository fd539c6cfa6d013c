"""The doctor: what in a data set's folder is not as it should be. Nothing is written, nothing need be whole."""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from shards.build.pool import Reject, in_order
from shards.errors import InputError
from shards.schema import DESCRIPTION, TABLE, read_description
from shards.storage import stamp
from shards.table import Table, quarantined
from shards.tar import Contents, Extent, index_text, read_extent, tars_of, walk
from shards.video.read import quiet

PROBLEMS = {
    "description": "dataset.json is missing, or does not say what that of a data set says",
    "table": "samples.parquet is missing, cannot be read, says what cannot be, or is not the one of dataset.json",
    "missing_tar": "the table or dataset.json names a tar that is not there",
    "no_tar": "it is called a tar, but is a pipe or a device, or its name is no plain file name",
    "unlisted_tar": "a tar that dataset.json does not know",
    "truncated_tar": "the tar ends early, or cannot be read to its end",
    "tar_checksum": "length or sha256 of the tar are not those of dataset.json",
    "missing_index": "there is no .idx beside the tar: stock DALI readers scan it at each start",
    "wrong_index": "the .idx says something else than the tar",
    "missing_row": "the tar holds a sample that the table lacks",
    "past_end": "the row points past the end of its tar, or to a tar that is not there",
    "misplaced": "the row does not point at its own video in the tar",
    "checksum": "the video's bytes are not those that were written (sha256)",
    "undecodable": "the video does not decode to its end",
    "frame_count": "the video decodes to another number or size of frames than the table says",
    "flow": "the flow's bytes are not those that were written, or do not decode to its video's frames",
    "duplicate": "another row has the same bytes, or the same key",
}
# what quarantine marks
UNUSABLE = ("past_end", "misplaced", "checksum", "undecodable", "frame_count", "flow")
REPAIRABLE = (
    *("description", "table", "unlisted_tar", "tar_checksum", "missing_index", "wrong_index"),
    *("missing_row", "misplaced", "past_end"),
)
CHANGED = "the bytes are not those that were written"


@dataclass(frozen=True)
class Problem:
    """`kind` is a key of PROBLEMS; `where` names the file or the row's key; `row`, its number, or None."""

    kind: str
    where: str
    detail: str = ""
    row: int | None = None


@dataclass
class Report:
    """What was found. `columns`: the table, where it can be read; `skipped`: rows quarantined before."""

    problems: list[Problem] = field(default_factory=list)
    tars: int = 0
    columns: Table | None = None
    skipped: int = 0

    def add(self, kind: str, where: str, detail: str = "", row: int | None = None) -> None:
        self.problems.append(Problem(kind, where, detail, row))

    def unusable(self) -> Iterator[Problem]:
        """The problems whose rows a training must step over, one a row."""
        rows = set()
        for problem in self.problems:
            if problem.kind in UNUSABLE and problem.row not in rows:
                rows.add(problem.row)
                yield problem


@dataclass(frozen=True)
class TarFound:
    """A tar as it lies there; `index` is "", or what is wrong with the file beside it."""

    name: str
    bytes: int
    sha256: str
    contents: Contents
    index: str


def examine_tar(tar: Path) -> TarFound:
    """Read a tar whole: length, checksum, members, and whether its index says the same."""
    contents, index = walk(tar), tar.with_suffix(".idx")
    wrong = ""
    if not index.is_file():
        wrong = "missing"
    elif index.read_text(errors="replace") != index_text(contents.samples.items()):
        wrong = "wrong"
    return TarFound(tar.name, contents=contents, index=wrong, **stamp(tar))


def check(folder: Path, *, fast: bool = False, workers: int = 1, timeout: float = 600.0) -> Report:
    """Compare a data set's description, table, tars, indexes and videos with each other. Draws a progress bar.

    fast: do not decode. timeout: seconds for one video. Rows in quarantine.jsonl are not looked at again.
    Raises InputError when `folder` holds neither a table, nor a description, nor a tar.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that tools/make_shards.py made")
    paths, others = tars_of(folder)
    if not paths and not any((folder / name).is_file() for name in (TABLE, DESCRIPTION)):
        raise InputError(f"{folder}: no tars and no {TABLE}; give a folder that tools/make_shards.py made")
    report = Report(tars=len(paths))
    for name in others:
        report.add("no_tar", name)
    info = _description(folder, report)
    report.columns = columns = _table(folder, info, report)
    total = len(paths) + (len(columns) if columns else 0)
    bar = tqdm(total=total, unit="item", desc=folder.name, dynamic_ncols=True)
    with bar, ThreadPoolExecutor(workers) as pool:
        tars: dict[str, TarFound] = {}
        for tar in pool.map(examine_tar, paths):
            tars[tar.name] = tar
            bar.update()
        _check_tars(tars, info, columns, report)
        if columns is None:
            return report
        rows = _check_places(folder, columns, tars, report)
        tasks = ((folder, _row(columns, row), not fast) for row in rows)
        same: defaultdict[str, list[int]] = defaultdict(list)
        keys = columns.values("key")
        # only what decodes can hang or die, and needs processes of its own
        results: Any = (
            pool.map(_examine, tasks) if fast else in_order(_examine, tasks, workers, timeout=timeout)
        )
        with closing(results):
            bar.update(total - len(paths) - len(rows))
            for row, result in zip(rows, results, strict=True):
                bar.update()
                if isinstance(result, Reject):
                    report.add("undecodable", keys[row], result.detail, row)
                    continue
                digest, *problem = result
                same[digest].append(row)
                if problem:
                    report.add(problem[0], keys[row], problem[1], row)
    for first, *others_of_it in same.values():
        for row in others_of_it:
            report.add("duplicate", keys[row], f"the same bytes as {keys[first]}", row)
    return report


def _description(folder: Path, report: Report) -> dict[str, Any]:
    try:
        return read_description(folder)
    except InputError as error:
        report.add("description", DESCRIPTION, str(error))
        return {}


def _table(folder: Path, info: dict[str, Any], report: Report) -> Table | None:
    path = folder / TABLE
    if path.is_file() and info.get("table") and stamp(path) != info["table"]:
        report.add("table", TABLE, f"not the one that {DESCRIPTION} describes")
    try:
        columns = Table(path, len(info["classes"]) if info else None)
        for name in columns.names:
            columns.values(name)
    except InputError as error:
        report.add("table", TABLE, str(error))
        return None
    return columns


def _check_tars(
    tars: dict[str, TarFound], info: dict[str, Any], columns: Table | None, report: Report
) -> None:
    listed: dict[str, Any] = info.get("tars", {})
    named = set(listed) | set(columns.codes("shard").texts if columns else ())
    for name in sorted(named - tars.keys()):
        report.add("missing_tar", name)
    for name, tar in tars.items():
        if tar.contents.problem:
            report.add("truncated_tar", name, tar.contents.problem)
        if listed and name not in listed:
            report.add("unlisted_tar", name)
        elif listed and listed[name] != {"bytes": tar.bytes, "sha256": tar.sha256}:
            report.add("tar_checksum", name, f"{tar.bytes} bytes, {listed[name]['bytes']} were written")
        if tar.index:
            report.add(f"{tar.index}_index", Path(name).with_suffix(".idx").name)


def _check_places(folder: Path, columns: Table, tars: dict[str, TarFound], report: Report) -> list[int]:
    """The rows that point at their videos; what is wrong with the others is in the report."""
    keys, shards = columns.values("key"), columns.values("shard")
    for key, times in Counter(keys.tolist()).items():
        if times > 1:
            report.add("duplicate", key, f"the key of {times} rows")
    there = set(zip(shards.tolist(), keys.tolist(), strict=True))
    for name, tar in tars.items():
        for key, parts in tar.contents.samples.items():
            if "mp4" in parts and (name, key) not in there:
                report.add("missing_row", f"{name}: {key}")
    set_aside = quarantined(folder)
    sound: list[int] = []
    for row, key in enumerate(keys):
        if key in set_aside:
            report.skipped += 1
        elif problem := _misplaced(_row(columns, row), tars.get(shards[row])):
            report.add(problem[0], key, problem[1], row)
        else:
            sound.append(row)
    return sound


def _misplaced(row: dict[str, Any], tar: TarFound | None) -> tuple[str, str] | None:
    """What is wrong with where a row points, before anything is read there."""
    if tar is None:
        return "past_end", f"{row['shard']} is not there"
    parts = tar.contents.samples.get(row["key"], {})
    for component in [name.removesuffix("_offset") for name in row if name.endswith("_offset")]:
        extent = _extent(row, component)
        if component == "mp4" and extent is None:
            return "misplaced", "no offset or size"
        if extent and extent.offset + extent.size > tar.bytes:
            return "past_end", f"{component} ends at {extent.offset + extent.size}, {tar.name} at {tar.bytes}"
        if extent and parts.get(component) != extent:
            return "misplaced", f"{component} is not at {extent.offset} of {tar.name}"
    return None


def _row(columns: Table, number: int) -> dict[str, Any]:
    return {name: columns.values(name)[number] for name in columns.names}


def _extent(row: dict[str, Any], component: str) -> Extent | None:
    """Where a row says that its component lies."""
    offset, size = (row.get(f"{component}_{name}", np.nan) for name in ("offset", "size"))
    return None if np.isnan(offset) or np.isnan(size) else Extent(int(offset), int(size))


def _examine(task: tuple[Path, dict[str, Any], bool]) -> tuple[str, ...]:
    """Compare a row with its bytes, and, when asked to, with every frame they decode to.

    Gives the sha256 of the bytes that are there, and then, where something is wrong, a kind of PROBLEMS and its detail.
    """
    folder, row, decode = task
    video, extent, size = (
        _extent(row, "mp4"),
        _extent(row, "flow.mp4"),
        (int(row["width"]), int(row["height"])),
    )
    assert video is not None  # _misplaced
    data = read_extent(folder / row["shard"], video)
    digest = hashlib.sha256(data).hexdigest()
    kind, changed = "undecodable", ("checksum", CHANGED) if digest != row["sha256"] else ()
    if extent and not changed:
        flow = read_extent(folder / row["shard"], extent)
        if row.get("flow.mp4_sha256") not in (None, hashlib.sha256(flow).hexdigest()):
            changed = "flow", CHANGED
    try:
        if decode:
            counted, expected = _count_frames(data), (int(row["num_frames"]), *size)
            if not changed and counted != expected:
                return digest, "frame_count", f"{counted} frames and pixels decode, not {expected}"
            if not changed and extent:
                kind, expected = "flow", (int(row["num_frames"]), size[0], 2 * size[1])
                if (counted := _count_frames(flow)) != expected:
                    return digest, "flow", f"{counted} frames and pixels, not {expected}"
    except (av.FFmpegError, ValueError, IndexError) as error:
        return digest, kind, str(error).splitlines()[0]
    return digest, *changed


def _count_frames(data: bytes) -> tuple[int, int, int]:
    """(frames, width, height), by decoding all of them."""
    quiet()
    count, size = 0, (0, 0)
    with av.open(io.BytesIO(data), "r", metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            count, size = count + 1, (frame.width, frame.height)
    return count, *size
