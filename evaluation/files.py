"""What evaluation writes, whole or not at all, and the gate for the .npz files that it reads."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import InputError
from shards.atomic import WriterLock, atomic_write
from shards.documents import one_line_of
from shards.storage import open_regular
from training.processes import writing

_KINDS = {"text": "U", "whole": "iu", "real": "f", "float": "f"}


def only_writer(folder: Path, flag: str = "--output") -> WriterLock:
    """Make a result's folder and its lock. Raises InputError that says who holds it, or OwnError."""
    with writing(folder, flag):
        folder.mkdir(parents=True, exist_ok=True)
        return WriterLock(folder, f"{flag} {folder}")


@contextmanager
def written(path: Path, flag: str = "--output") -> Iterator[Path]:
    """Give a temporary path, which becomes `path` at the end; its folder is made. Raises OwnError where that fails."""
    with writing(path, flag):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary


def write_text(path: Path, text: str, flag: str = "--output") -> None:
    with written(path, flag) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, flag: str = "--output") -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", flag)


def write_arrays(path: Path, flag: str = "--output", **arrays: Any) -> None:
    """An .npz file."""
    with written(path, flag) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)


def read_arrays(path: Path, shapes: dict[str, str], fix: str) -> dict[str, NDArray]:
    """The arrays of an .npz file. Raises InputError, which ends with `fix`, where one is missing or of another kind.

    shapes: name → "text", "whole", "real" (finite) or "float", and a letter a dimension, such as "real M D"; a letter
    stands for the same size everywhere. "name?" need not be there. Nothing is unpickled.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as handle, np.load(handle, allow_pickle=False) as file:
            names = [
                name for name in shapes if name.removesuffix("?") in file.files or not name.endswith("?")
            ]
            found = {name.removesuffix("?"): np.asarray(file[name.removesuffix("?")]) for name in names}
    except Exception as error:  # zip, zlib and NumPy have one for each way in which a file is wrong
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: no arrays of evaluate.py ({one_line_of(said)}); {fix}") from error
    sizes: dict[str, int] = {}
    for name in names:
        kind, *letters = shapes[name].split()
        value = found[name.removesuffix("?")]
        sound = value.dtype.kind in _KINDS[kind] and value.ndim == len(letters)
        sound = sound and all(
            sizes.setdefault(letter, size) == size for letter, size in zip(letters, value.shape, strict=True)
        )
        if not sound or (kind == "real" and not np.isfinite(value).all()):
            raise InputError(
                f"{path}: {name} is {value.dtype} {value.shape}, not {shapes[name]!r} as expected; {fix}"
            )
    return found


def check_numbers(path: Path, values: NDArray, count: int, fix: str) -> None:
    """Raise InputError unless each value is the number of one of `count` things."""
    if len(values) and not (values.min() >= 0 and values.max() < count):
        raise InputError(f"{path}: a number in it is not from 0 to {count - 1}; {fix}")
