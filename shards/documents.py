"""JSON and .npz files, read and written. Whatever is read from a disk or a server passes one gate: what has not the expected shape
ends in one line.

A shape says what is expected. It is one of
  str, bool, dict, list   a value of this type
  Is(says, test)          a value that passes the test; `whole`, `number`, TEXT, … are made of it
  [shape]                 a list of such values
  {"a": shape, "b?": …}   an object with these entries and any others; what is absent counts as null; "b?" may be null
  Each(key, shape)        an object whose keys are not known beforehand
  AnyOf(shape, …)         a value that has one of these shapes
  AllOf(shape, …)         a value that has all of them
"""

import json
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.atomic import atomic_write
from shards.errors import InputError
from shards.storage import open_regular

DEEPEST = 64  # levels of nesting: far more than anything of ours has, far less than Python's recursion allows
LARGEST = 2**28  # bytes of a file; Python needs about ten times as much for what is in it
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Is:
    """says: what is expected, in words."""

    says: str
    test: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """An object: every key and every value has its shape."""

    key: Any
    value: Any


class AnyOf:
    def __init__(self, *shapes: Any) -> None:
        self.shapes = shapes


class AllOf(AnyOf):
    pass


def whole(least: int, most: int = 2**53) -> Is:
    """A whole number in these bounds."""
    bounds = f"from {least}" + (f" to {most}" if most != 2**53 else "")
    return Is(f"a whole number {bounds}", lambda value: type(value) is int and least <= value <= most)


def number(least: float = -1e300, most: float = 1e300) -> Is:
    """A finite number in these bounds."""
    bounds = f" from {least:g} to {most:g}" if (least, most) != (-1e300, 1e300) else ""
    return Is(
        f"a finite number{bounds}", lambda value: type(value) in (int, float) and least <= value <= most
    )


def one_of(*values: Any) -> Is:
    return Is(f"one of {', '.join(map(repr, values))}", lambda value: value in values)


TEXT = Is(
    "text without control characters", lambda value: isinstance(value, str) and not _CONTROL.search(value)
)
SHA256 = Is(
    "a sha256 of 64 hexadecimal digits",
    lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
)
_TYPES = {str: "text", bool: "true or false", dict: "an object", list: "a list"}


def problem(value: Any, shape: Any, place: str = "") -> str:
    """The first thing in which a value differs from a shape, in one line; "" where it fits."""
    if isinstance(shape, AllOf):
        return next(filter(None, (problem(value, one, place) for one in shape.shapes)), "")
    if isinstance(shape, AnyOf):
        found = [problem(value, one, place) for one in shape.shapes]
        return "" if "" in found else found[-1]
    if isinstance(shape, Is):
        return "" if shape.test(value) else f"{_named(place)} is {_found(value)}, not {shape.says}"
    expected = shape if isinstance(shape, type) else list if isinstance(shape, list) else dict
    if not isinstance(value, expected):
        return f"{_named(place)} is {_found(value)}, not {_TYPES[expected]}"
    return next(filter(None, (problem(*part) for part in _parts(value, shape, place))), "")


def _parts(value: Any, shape: Any, place: str) -> Iterator[tuple[Any, Any, str]]:
    """What a list or an object holds: value, shape and place of each."""
    if isinstance(shape, list):
        for index, one in enumerate(value):
            yield one, shape[0], f"{place}[{index}]"
    elif isinstance(shape, Each):
        for key, one in value.items():
            yield key, shape.key, f"a name in {_named(place)}"
            yield one, shape.value, f"{place}[{short(key)}]"
    elif isinstance(shape, dict):
        for name, one in shape.items():
            optional, name = name.endswith("?"), name.removesuffix("?")
            if not optional or value.get(name) is not None:
                yield value.get(name), one, f"{place}.{name}" if place else name


def parse(text: bytes | str, shape: Any, name: object, fix: str) -> Any:
    """The value of JSON that has `shape`. Raises InputError, which begins with `name` and ends with `fix`, else."""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a character: no file or terminal takes it
        found = "nested too deep" if _is_deep(value) else problem(value, shape)
    except RecursionError:
        found = "nested too deep"
    except ValueError as error:
        found = f"not JSON ({one_line_of(error)})"
    if found:
        raise InputError(f"{name}: {found}; {fix}")
    return value


def read_json(path: Path, shape: Any, fix: str) -> Any:
    """The value of a JSON file that has `shape`. Raises InputError else, as where the file cannot be read."""
    return parse(read_bytes(path, fix), shape, path, fix)


def read_json_lines(path: Path, shape: Any, fix: str) -> list[Any]:
    """The values of a file of one JSON value a line. Raises InputError for one of another shape.

    A last line that was cut off is left out: a process that is killed while it writes leaves one.
    """
    *lines, last = read_bytes(path, fix, 4 * LARGEST).split(b"\n")  # last: empty where the file is whole
    values = [parse(line, shape, f"{path}: line {n}", fix) for n, line in enumerate(lines, 1) if line]
    with suppress(InputError):
        values.append(parse(last, shape, path, fix))
    return values


def read_bytes(path: Path, fix: str, most: int = LARGEST) -> bytes:
    """A regular file of at most `most` bytes. Raises InputError where it is something else, or cannot be read."""
    try:
        with open(open_regular(path), "rb") as handle:
            if (size := os.fstat(handle.fileno()).st_size) > most:
                raise InputError(f"{path}: {size} bytes, more than the {most} that are read; {fix}")
            return handle.read(most)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; {fix}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, for people to read."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    with atomic_write(path) as temporary:
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)
        temporary.write_text(lines, encoding="utf-8")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inside: list[Any] = []
        for one in level:
            inside += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        level = [one for one in inside if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _found(value: Any) -> str:
    return "absent" if value is None else short(value)


def _named(place: str) -> str:
    return place or "the content"


def one_line_of(said: object, most: int = 400) -> str:
    """What a library says of a file, in one printable line: it may quote any bytes of the file."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(said)) or type(said).__name__
    return textwrap.shorten(text, most, placeholder=" …")


def short(value: Any) -> str:
    """A value in a message: one line, plain characters, few of them."""
    text = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


_ARRAYS = {"text": "U", "whole": "iu", "real": "f", "float": "f"}


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
        sound = value.dtype.kind in _ARRAYS[kind] and value.ndim == len(letters)
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
