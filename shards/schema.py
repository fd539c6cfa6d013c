"""What a data set may say of itself: the one gate that its description and table pass when they are opened.

A data set may come from anybody. Nothing that it says becomes a path, an offset or a size before it has passed here.
"""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.documents import SHA256, TEXT, Each, Is, number, parse, problem, read_bytes, short, whole
from shards.errors import InputError

TABLE = "samples.parquet"
DESCRIPTION = "dataset.json"
REJECTED = "rejected.jsonl"
QUARANTINE = "quarantine.jsonl"

PARTS = {"head": pa.int64(), "gops": pa.string()}
"""Columns of a component whose parts can be read and checked alone: see shards.tar."""
# A row per video; fps is frames per second, offsets and sizes are bytes in the row's tar, failure_time (Oops)
# seconds, decoded_fraction the share of the frames that the source's container announced.
COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("num_frames", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("label", pa.int32()),
        ("label_name", pa.string()),
        ("split", pa.string()),
        ("split1", pa.string()),
        ("split2", pa.string()),
        ("split3", pa.string()),
        ("failure_time", pa.float64()),
        ("decoded_fraction", pa.float64()),
        ("source", pa.string()),
        ("sha256", pa.string()),
        ("mp4_offset", pa.int64()),
        ("mp4_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("cls_offset", pa.int64()),
        ("cls_size", pa.int64()),
        ("flow.mp4_offset", pa.int64()),
        ("flow.mp4_size", pa.int64()),
        ("flow.mp4_sha256", pa.string()),
        *[(f"{name}_{what}", kind) for name in ("mp4", "flow.mp4") for what, kind in PARTS.items()],
    ]
)
REQUIRED = ("key", "shard", "num_frames", "width", "height", "label", "sha256", "mp4_offset", "mp4_size")
WITHOUT_NULLS = (*REQUIRED, "fps")
WRITTEN = (
    *WITHOUT_NULLS,
    "label_name",
    "source",
    "json_offset",
    "json_size",
)  # any other one only when it is used

AGAIN = "make the shards again, or fetch the data set again"
REPAIR = "rebuild it with tools/check_shards.py DIR --repair, or make the shards again"
_PLAIN = re.compile(r"(?!\.{1,2}$)(?![A-Za-z]:)[^/\\\x00-\x1f\x7f\ud800-\udfff]+")
_LONGEST = 200  # bytes; with what we add for temporary files and locks it fits the 255 of a file system


def safe_name(text: str) -> str:
    """`text` with everything but [A-Za-z0-9_-] replaced by an underscore."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


def is_plain(name: Any) -> bool:
    """Whether it names something in the folder it is joined to, and in no other, on any system."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None and len(name.encode()) <= _LONGEST


def is_tar(name: Any) -> bool:
    """Whether a tar of a data set may be called this: it is plain, not hidden, and no table or description."""
    return is_plain(name) and name.endswith(".tar") and not name.startswith(".")


_NAME = Is("a plain name without a folder", is_plain)
TAR = Is("the plain name of a tar, without a folder", is_tar)
_FILE = {"bytes": whole(0), "sha256": SHA256}
_SETTINGS = {
    "codec?": TEXT,
    "short_side?": whole(1, 2**15),
    "fps?": number(1e-3, 1e6),
    "gop?": whole(1, 2**20),
    "crf?": whole(0, 100),
    "preset?": TEXT,
    "tune?": TEXT,
    "b_frames?": whole(0, 100),
    "stride?": whole(1, 2**20),
    "layout?": TEXT,
}
_CONTENT = {
    "name": _NAME,
    "classes": [str],
    "tars": Each(TAR, _FILE),
    "table?": _FILE,
    "rows?": whole(0),
    "frames?": whole(0),
    "rejected?": Each(TEXT, whole(0)),
    "settings?": _SETTINGS,
}


def read_description(folder: Path) -> dict[str, Any]:
    """The content of a folder's dataset.json, with `settings` in any case. Raises InputError where it is not one."""
    return parse_description(read_bytes(folder / DESCRIPTION, AGAIN), str(folder / DESCRIPTION), AGAIN)


def parse_description(content: bytes, name: str, fix: str = "upload the data set again") -> dict[str, Any]:
    """The same of bytes that were fetched from `name`."""
    found = parse(content, _CONTENT, name, fix)
    return {**found, "settings": found.get("settings") or {}}


BOUNDS: dict[str, tuple[float, float]] = {
    "num_frames": (1, 2**24),
    "width": (1, 2**15),
    "height": (1, 2**15),
    "label": (-1, 2**20),
    "fps": (1e-6, 1e6),
    "failure_time": (0, 1e9),
    "decoded_fraction": (0, 1e9),
    **dict.fromkeys(("mp4_head", "flow.mp4_head"), (8, 2**28)),
}
_OFFSETS = (0, 2**53)  # exact in float64, which a column with nulls becomes
_SIZES = (0, 2**34)  # a video is decoded from memory
_PATTERNS = {
    "key": (r"^[^\x00-\x20\x7f]{1,200}$", "a short text without spaces"),  # rows.txt is split at them
    "sha256": (r"^[0-9a-f]{64}$", SHA256.says),
    "flow.mp4_sha256": (r"^[0-9a-f]{64}$", SHA256.says),
    **dict.fromkeys(("mp4_gops", "flow.mp4_gops"), (r"^([0-9a-f]{8}){2,}$", "checksums of 8 digits each")),
    **dict.fromkeys(("split", "split1", "split2", "split3"), (r"^[^\x00-\x1f\x7f]{0,200}$", "a short text")),
}
KEY = Is(
    _PATTERNS["key"][1],
    lambda value: isinstance(value, str) and re.fullmatch(_PATTERNS["key"][0], value) is not None,
)


def _fact(field: pa.Field) -> Any:
    if field.name in BOUNDS:
        low, high = BOUNDS[field.name]
        return whole(int(low), int(high)) if pa.types.is_integer(field.type) else number(low, high)
    return SHA256 if field.name.endswith("sha256") else TEXT if field.name in _PATTERNS else str


# A sample's json in its tar: its row of the table but for where it lies.
FACTS = {
    field.name + ("" if field.name in WITHOUT_NULLS else "?"): _fact(field)
    for field in COLUMNS
    if field.name not in ("key", "shard") and not field.name.endswith(("_offset", "_size", "_head", "_gops"))
}


def check_columns(schema: pa.Schema, path: Path) -> None:
    """Raise InputError unless a table has what every data set has, each column once."""
    names = list(schema.names)
    for name in names:
        if problem(name, TEXT) or names.count(name) > 1:
            raise InputError(f"{path}: column {short(name)} is there twice, or is no name; {REPAIR}")
    if missing := [name for name in REQUIRED if name not in names]:
        raise InputError(f"{path}: no column {missing[0]!r}; {REPAIR}")


def type_of(name: str, kind: pa.DataType) -> pa.DataType:
    """The type that a column's values are read as: what data sets have there; of a column of the user's, its own."""
    if name in COLUMNS.names:
        return COLUMNS.field(name).type
    if _is_ours(name):
        return pa.int64()
    return pa.string() if _is_text(kind) else kind


def checked(name: str, column: pa.ChunkedArray, path: Path, classes: int | None = None) -> pa.ChunkedArray:
    """A column of its type; text may be a dictionary of int32. classes: how many there are, where that is known.

    Raises InputError where a value is not one that a data set has; pa.ArrowException where it is none of its type.
    """
    _check_type(name, column.type, path)
    column.validate(full=True)  # among others, that text is UTF-8
    expected = type_of(name, column.type)
    if column.type not in (expected, pa.dictionary(pa.int32(), pa.string())):
        column = column.cast(expected)
    checks = [(column, pc.is_valid(column), "a value")] if name in WITHOUT_NULLS else []
    if name in _PATTERNS:
        (pattern, says), texts = _PATTERNS[name], _texts(column)
        checks.append((texts, pc.match_substring_regex(texts, pattern), says))
    elif name == "shard":
        tars = _texts(column).unique()
        checks.append((tars, pa.array(map(is_tar, tars.to_pylist())), TAR.says))
    elif bounds := _bounds(name, classes):
        low, high = bounds
        inside = pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high))
        checks.append((column, inside, f"from {low:g} to {high:g}"))
    for values, sound, says in checks:  # nulls pass, unless they are what is looked for
        if (place := pc.index(sound, False).as_py()) >= 0:
            value = short(values[place].as_py())
            raise InputError(f"{path}: column {name}: {value} is not {says}; {REPAIR}")
    return column


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The different texts of a dictionary's chunks; other columns as they are."""
    if not pa.types.is_dictionary(column.type):
        return column
    return pa.chunked_array([chunk.dictionary for chunk in column.chunks], pa.string())


def _bounds(name: str, classes: int | None) -> tuple[float, float] | None:
    if name == "label" and classes is not None:
        return -1, classes - 1
    if name.endswith("_offset"):
        return _OFFSETS
    return _SIZES if name.endswith("_size") else BOUNDS.get(name)


def _is_ours(name: str) -> bool:
    return name in COLUMNS.names or name.endswith(("_offset", "_size"))


def _check_type(name: str, kind: pa.DataType, path: Path) -> None:
    expected, sound = type_of(name, kind), pa.types.is_integer(kind) or pa.types.is_null(kind)
    if pa.types.is_string(expected):
        sound = _is_text(kind) or pa.types.is_null(kind)
    elif pa.types.is_floating(expected):
        sound |= pa.types.is_floating(kind)
    elif not _is_ours(name):
        sound |= pa.types.is_boolean(kind)
    if not sound:
        wanted = expected if _is_ours(name) else "text or numbers"
        raise InputError(f"{path}: column {name} holds {kind}, not {wanted}; {REPAIR}")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
