"""Indexes, table and description rebuilt from the tars, which stay as they are."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.atomic import atomic_write
from shards.check import TarFound, examine_tar
from shards.documents import TEXT, parse, problem, read_json_lines, short
from shards.errors import InputError
from shards.schema import DESCRIPTION, FACTS, KEY, REJECTED, TABLE, read_description
from shards.table import publish
from shards.tar import WHOLE, Shard, checksums, places, read_extent, tars_of, write_index

KEPT = ".before-repair"
_SUMS = {"mp4": "sha256", "flow.mp4": "flow.mp4_sha256"}
_LONGEST_FACTS = 2**20  # bytes of a sample's json


def repair(folder: Path, *, workers: int = 1) -> tuple[int, list[str]]:
    """Rebuild what lies beside the tars of `folder`; returns the rows and what could not be used.

    The table and the description that are there are kept as NAME.before-repair (the first ones, should it be called
    twice). A row is made of each sample with a video and a readable json that lie whole in a tar. Name, classes and
    settings come from the old description where it can be read, else classes from the rows. The checksums of the
    tars become those of what is there; those of the videos are the ones noted when they were made.

    Raises InputError when there is no tar, or no sample in any.
    """
    paths, others = tars_of(folder)
    if not paths:
        raise InputError(f"{folder}: no tars to repair from; give a folder that tools/make_shards.py made")
    lost = [f"{name}: is no tar, or its name is no plain file name" for name in others]
    shards: list[Shard] = []
    with ThreadPoolExecutor(workers) as pool:
        examined = list(pool.map(examine_tar, paths))
    for path, seen in zip(paths, examined, strict=True):
        if seen.index:
            write_index(path, seen.contents.samples.items())
        if rows := _rows(path, seen, lost):
            shards.append(Shard(seen.name, seen.bytes, seen.sha256, rows))
    if not shards:
        raise InputError(f"{folder}: not one whole sample in {len(paths)} tars; make the shards again")
    old: dict[str, Any] = {}
    rejected: list[dict[str, Any]] = []
    with suppress(InputError):
        old = read_description(folder)
    with suppress(InputError):
        rejected = read_json_lines(folder / REJECTED, {"source": str, "reason": TEXT, "detail?": str}, "")
    for name in (
        TABLE,
        DESCRIPTION,
    ):  # each keeps its name until it is replaced, or a full disk would lose the settings
        path, kept = folder / name, folder / f"{name}{KEPT}"
        if path.is_file() and not kept.exists():
            try:
                os.link(path, kept)
            except OSError:  # a file system without links
                with atomic_write(kept) as temporary:
                    shutil.copyfile(path, temporary)
    publish(
        folder,
        max(
            old.get("classes", []), _classes(shards), key=len
        ),  # a label names a class; on a tie the old ones
        shards,
        old.get("settings", {}),
        rejected,
        name=old.get("name") or folder.resolve().name,
    )
    return sum(len(shard.rows) for shard in shards), lost


def _rows(path: Path, seen: TarFound, lost: list[str]) -> list[dict[str, Any]]:
    rows = []
    for key, parts in seen.contents.samples.items():
        name = f"{path.name}: {short(key)}"
        whole = {"mp4", "json"} <= parts.keys() and parts["json"].size <= _LONGEST_FACTS
        if problem(key, KEY) or not whole:
            lost.append(f"{name} has no video or no readable json")
            continue
        try:
            facts = parse(read_extent(path, parts["json"]), FACTS, f"{name}.json", "left out")
        except InputError as error:
            lost.append(str(error))
            continue
        row = facts | {"key": key, "shard": path.name} | places(parts)
        for component in _SUMS.keys() & parts.keys():
            if parts[component].size >= WHOLE:
                data = read_extent(path, parts[component])
                if hashlib.sha256(data).hexdigest() == facts.get(_SUMS[component]):
                    row |= checksums(component, data)
        rows.append(row)
    return rows


def _classes(shards: list[Shard]) -> list[str]:
    names = {
        row["label"]: row.get("label_name") for shard in shards for row in shard.rows if row["label"] >= 0
    }
    return [names.get(label) or str(label) for label in range(max(names, default=-1) + 1)]
