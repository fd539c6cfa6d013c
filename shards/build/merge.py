"""Parts of a data set, made on machines that share no disk, brought together."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from shards.atomic import written_aside
from shards.build.finish import Summary, finish
from shards.build.job import Notes
from shards.build.lock import begin, locked
from shards.errors import InputError
from shards.table import DESCRIPTION


def merge(out: Path, parts: Sequence[Path] = ()) -> Summary:
    """Move the shards of `parts` into `out`, and make `out` the data set that one process would have made.

    parts: folders that `make_shards.py --part` wrote, of the same name as `out`; none when every part wrote
    into `out` itself. Stopped half way, it goes on when called again. Raises InputError when a shard is not
    there, a folder holds no part, or the parts are not of one job.
    """
    target = Notes(out)
    if (out / DESCRIPTION).is_file():
        raise InputError(f"{out}: is a complete data set already; nothing to merge")
    others = [part for part in parts if part.resolve() != out.resolve()]
    for part in others:
        _check_part(out, part)
    with ExitStack() as locks:
        if not others and target.outline is None:
            raise InputError(f"{out}: holds no unfinished data set; give the folder that --part wrote into")
        locks.enter_context(locked(target, None))
        for part in others:
            locks.enter_context(locked(Notes(part), None))
            _take(target, Notes(part))
        summary = finish(target)
        for part in others:
            shutil.rmtree(Notes(part).folder)
            with suppress(OSError):  # it holds something else too
                part.rmdir()
        return summary


def _check_part(out: Path, part: Path) -> None:
    if Notes(part).outline is None:
        raise InputError(
            f"{part}: holds no part of a data set; give a folder that make_shards.py --part wrote"
        )
    if part.resolve().name != out.resolve().name:
        names = f"its shards are named after {part.resolve().name}, not {out.resolve().name}"
        raise InputError(f"{part}: {names}; give every part, and the merged set, the same last folder name")


def _take(target: Notes, part: Notes) -> None:
    outline = part.outline
    assert outline is not None
    begin(target, outline)
    for shard in range(outline["shards"]):
        if target.is_finished(shard) or not part.note(shard).is_file():
            continue
        for suffix in (".tar", ".idx"):
            name = part.stem(shard) + suffix
            if (part.out / name).is_file():
                _move(part.out / name, target.out / name)
        _move(part.note(shard), target.note(shard))  # last: with it the shard counts as finished


def _move(here: Path, there: Path) -> None:
    try:
        os.replace(here, there)
    except OSError:  # on another disk
        with written_aside(there) as temporary:
            shutil.copyfile(here, temporary)
        here.unlink()
