"""The doctor: what in a data set's folder is not as it should be. Nothing is written, nothing need be whole."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards import quarantine
from shards.build.pool import Crashed, in_order
from shards.check.examine import TarSeen, VideoSeen, VideoTask, examine_tar, examine_video
from shards.errors import InputError
from shards.schema import DESCRIPTION, TABLE, read_description
from shards.table import Table, stamp
from shards.tar import Extent, tars_of

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
UNUSABLE = (
    "past_end",
    "misplaced",
    "checksum",
    "undecodable",
    "frame_count",
    "flow",
)  # what quarantine marks
REPAIRABLE = (
    *("description", "table", "unlisted_tar", "tar_checksum", "missing_index", "wrong_index"),
    *("missing_row", "misplaced", "past_end"),
)
Progress = Callable[[int, int], None]  # (tars and videos done, in all)


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


def check(
    folder: Path,
    *,
    fast: bool = False,
    workers: int = 1,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> Report:
    """Compare a data set's description, table, tars, indexes and videos with each other.

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
    rows = len(columns) if columns else 0
    count = _Count(len(paths) + rows, progress)
    seen: dict[str, TarSeen] = {}
    with ThreadPoolExecutor(workers) as pool:
        for tar in pool.map(examine_tar, paths):
            count.up()
            seen[tar.name] = tar
    _check_tars(seen, info, columns, report)
    if columns:
        _check_rows(folder, columns, seen, report, fast, workers, timeout, count)
    return report


class _Count:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self.up(0)

    def up(self, by: int = 1) -> None:
        self._done += by
        if self._progress:
            self._progress(self._done, self._total)


def _description(folder: Path, report: Report) -> dict[str, Any]:
    if not (folder / DESCRIPTION).is_file():
        report.add("description", DESCRIPTION, "missing")
        return {}
    try:
        return read_description(folder)
    except InputError as error:
        report.add("description", DESCRIPTION, str(error))
        return {}


def _table(folder: Path, info: dict[str, Any], report: Report) -> Table | None:
    path = folder / TABLE
    if not path.is_file():
        report.add("table", TABLE, "missing")
        return None
    if info.get("table") and stamp(path) != info["table"]:
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
    seen: dict[str, TarSeen], info: dict[str, Any], columns: Table | None, report: Report
) -> None:
    listed: dict[str, Any] = info.get("tars", {})
    named = set(listed) | set(columns.codes("shard").texts if columns else ())
    for name in sorted(named - seen.keys()):
        report.add("missing_tar", name)
    for name, tar in seen.items():
        if tar.contents.problem:
            report.add("truncated_tar", name, tar.contents.problem)
        if listed and name not in listed:
            report.add("unlisted_tar", name)
        elif listed and listed[name] != {"bytes": tar.bytes, "sha256": tar.sha256}:
            report.add("tar_checksum", name, f"{tar.bytes} bytes, {listed[name]['bytes']} were written")
        if tar.index:
            report.add(f"{tar.index}_index", Path(name).with_suffix(".idx").name)


def _check_rows(
    folder: Path,
    columns: Table,
    seen: dict[str, TarSeen],
    report: Report,
    fast: bool,
    workers: int,
    timeout: float,
    count: _Count,
) -> None:
    known = quarantine.noted(folder)
    keys, shards = columns.values("key"), columns.values("shard")
    _check_keys(keys, shards, seen, report)
    whole: list[int] = []
    for row, key in enumerate(keys):
        if key in known:
            report.skipped += 1
        elif problem := _misplaced(columns, row, seen.get(shards[row])):
            report.add(problem[0], key, problem[1], row)
        else:
            whole.append(row)
            continue
        count.up()
    contents: dict[str, list[int]] = defaultdict(list)
    tasks = (_task(folder, columns, row, decode=not fast) for row in whole)
    with (
        ThreadPoolExecutor(workers) as pool,
        _videos(tasks, pool, workers, None if fast else timeout) as results,
    ):
        for row, result in zip(whole, results, strict=True):
            count.up()
            if isinstance(result, Crashed):
                report.add("undecodable", keys[row], result.detail, row)
                continue
            contents[result.sha256].append(row)
            if result.problem:
                report.add(result.problem, keys[row], result.detail, row)
    for first, *others in contents.values():
        for row in others:
            report.add("duplicate", keys[row], f"the same bytes as {keys[first]}", row)


@contextmanager
def _videos(
    tasks: Iterable[VideoTask], pool: ThreadPoolExecutor, workers: int, timeout: float | None
) -> Iterator[Iterable[VideoSeen | Crashed]]:
    """Each video's result; only what decodes (timeout given) can hang or die, and needs processes of its own."""
    if timeout is None:
        yield pool.map(examine_video, tasks)
    else:
        with closing(in_order(examine_video, tasks, workers, timeout=timeout)) as results:
            yield results


def _check_keys(keys: np.ndarray, shards: np.ndarray, seen: dict[str, TarSeen], report: Report) -> None:
    for key, times in Counter(keys.tolist()).items():
        if times > 1:
            report.add("duplicate", key, f"the key of {times} rows")
    there = set(zip(shards.tolist(), keys.tolist(), strict=True))
    for name, tar in seen.items():
        for key, parts in tar.contents.samples.items():
            if "mp4" in parts and (name, key) not in there:
                report.add("missing_row", f"{name}: {key}")


def _extent(columns: Table, row: int, component: str) -> Extent | None:
    if f"{component}_offset" not in columns.names:
        return None
    offset, size = (columns.values(f"{component}_{name}")[row] for name in ("offset", "size"))
    return None if np.isnan(offset) or np.isnan(size) else Extent(int(offset), int(size))


def _misplaced(columns: Table, row: int, tar: TarSeen | None) -> tuple[str, str] | None:
    """What is wrong with where a row points, before anything is read there."""
    if tar is None:
        return "past_end", f"{columns.values('shard')[row]} is not there"
    parts = tar.contents.samples.get(columns.values("key")[row], {})
    for component in [name.removesuffix("_offset") for name in columns.names if name.endswith("_offset")]:
        extent = _extent(columns, row, component)
        if component == "mp4" and extent is None:
            return "misplaced", "no offset or size"
        if extent and extent.offset + extent.size > tar.bytes:
            return "past_end", f"{component} ends at {extent.offset + extent.size}, {tar.name} at {tar.bytes}"
        if extent and parts.get(component) != extent:
            return "misplaced", f"{component} is not at {extent.offset} of {tar.name}"
    return None


def _task(folder: Path, columns: Table, row: int, decode: bool) -> VideoTask:
    video = _extent(columns, row, "mp4")
    assert video is not None  # _misplaced
    return VideoTask(
        folder / columns.values("shard")[row],
        video,
        _extent(columns, row, "flow.mp4"),
        str(columns.values("sha256")[row]),
        int(columns.values("num_frames")[row]),
        (int(columns.values("width")[row]), int(columns.values("height")[row])),
        decode,
        _flow_checksum(columns, row),
    )


def _flow_checksum(columns: Table, row: int) -> str | None:
    """None for a row without flow, and in tables made before flow had a checksum."""
    if "flow.mp4_sha256" not in columns.names:
        return None
    value = columns.values("flow.mp4_sha256")[row]
    return str(value) if value else None


def unusable(report: Report) -> Iterator[Problem]:
    """The problems whose rows a training must step over, one a row."""
    rows = set()
    for problem in report.problems:
        if problem.kind in UNUSABLE and problem.row not in rows:
            rows.add(problem.row)
            yield problem
