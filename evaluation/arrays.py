"""Arrays from disk: the gate for .npz files, as shards.documents is for JSON."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards import InputError
from shards.documents import one_line_of
from shards.storage import open_regular

_KINDS = {"text": "U", "whole": "iu", "real": "f", "float": "f"}


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
