"""Parts of a data set, made on machines that share no disk, brought together."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from shards.atomic import atomic_write
from shards.build.finish import Summary, finish, summary_of
from shards.build.job import Notes
from shards.build.lock import begin, locked_shards
from shards.errors import InputError
from shards.schema import DESCRIPTION


def merge(out: Path, parts: Sequence[Path] = ()) -> Summary:
    """Move the shards of `parts` into `out`, and make `out` the data set that one process would have made.

    parts: folders that `make_shards.py --part` wrote, of the same name as `out`; none when every part wrote
    into `out` itself. Stopped half way, it goes on when called again; called once more, it finds the set complete.
    Raises InputError when a shard is not there, a folder holds no part, or the parts are not of one job.
    """
    target = Notes(out)
    others = [part for part in parts if part.resolve() != out.resolve()]
    if (out / DESCRIPTION).is_file():
        if full := [part for part in others if any(part.glob("*.tar"))]:
            raise InputError(
                f"{full[0]}: holds shards, but {out} is complete without them; give the set that they belong to"
            )
        for part in others:
            _remove(part)
        return summary_of(target)
    for part in others:
        _check_part(out, part)
    with ExitStack() as locks:
        if not others and target.outline is None:
            raise InputError(f"{out}: holds no unfinished data set; give the folder that --part wrote into")
        locks.enter_context(locked_shards(target, None))
        for part in others:
            locks.enter_context(locked_shards(Notes(part), None))
            _take(target, Notes(part))
        summary = finish(target)
        for part in others:
            _remove(part)
        return summary


def _remove(part: Path) -> None:
    """Remove what a part leaves behind once its shards have been moved."""
    shutil.rmtree(Notes(part).folder, ignore_errors=True)
    with suppress(OSError):  # it holds something else too
        part.rmdir()


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
        with atomic_write(there) as temporary:
            shutil.copyfile(here, temporary)
        here.unlink()
