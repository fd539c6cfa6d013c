"""The table beside the tars, `samples.parquet`, a row a video; and quarantine.jsonl, the rows that cannot be used.

Ten million rows open in a second or two. A line of quarantine.jsonl is {key, reason}; new selections leave its rows out.
"""

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.atomic import atomic_write
from shards.documents import one_line_of, parse, read_bytes, write_json, write_json_lines
from shards.errors import InputError
from shards.schema import (
    COLUMNS,
    DESCRIPTION,
    QUARANTINE,
    REJECTED,
    REPAIR,
    TABLE,
    WRITTEN,
    check_columns,
    checked,
    type_of,
)
from shards.storage import open_regular, stamp
from shards.tar import Shard

# texts that hardly repeat; any other is stored as a number a row
OF_EACH_ROW = ("key", "source", "sha256", "flow.mp4_sha256", "mp4_gops", "flow.mp4_gops")

_QUARANTINED = {"key": str, "reason?": str}
_log = logging.getLogger(__name__)


class Codes(NamedTuple):
    """A text column as numbers: `texts[codes[row]]` is a row's text, and −1 stands for none."""

    codes: np.ndarray
    texts: list[str]


class Table:
    """`samples.parquet`, open for reading; each column is read, and passes shards.schema, when it is first asked for.

    classes: how many the data set has, above which no label may be. Threads may share one object. Raises InputError if
    the file is no table of a data set.
    """

    def __init__(self, path: Path, classes: int | None = None) -> None:
        self.path, self._classes = path, classes
        try:
            os.close(open_regular(path))
            schema = pq.read_schema(path)
            texts = [field.name for field in schema if pa.types.is_string(field.type)]
            self._file = pq.ParquetFile(path, read_dictionary=[t for t in texts if t not in OF_EACH_ROW])
            if self._file.metadata.num_rows < 0:
                raise pa.ArrowInvalid(f"{self._file.metadata.num_rows} rows")
        except (OSError, UnicodeError, pa.ArrowException) as error:
            raise InputError(f"{path}: cannot be read ({one_line_of(error)}); {REPAIR}") from error
        check_columns(schema, path)
        self._types = {field.name: type_of(field.name, field.type) for field in schema}
        self.names: list[str] = list(schema.names)
        self._lock = threading.Lock()
        self._arrow: dict[str, pa.ChunkedArray] = {}
        self._values: dict[str, np.ndarray] = {}
        self._codes: dict[str, Codes] = {}

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def values(self, name: str) -> np.ndarray:
        """(rows,) int32, int64, float64, or object for text, where equal texts share one object. Read-only."""
        if name not in self._values:
            if name in self.names and pa.types.is_string(self._types[name]) and name not in OF_EACH_ROW:
                codes, texts = self.codes(name)
                values = np.array([*texts, None], dtype=object)[codes]
            else:
                values = self._read(name).to_numpy()
                if values.dtype != object:
                    self._arrow.pop(name, None)
            values.flags.writeable = False
            self._values[name] = values
        return self._values[name]

    def codes(self, name: str) -> Codes:
        """A text column as numbers, int32; the texts are ascending. Raises InputError for a column of numbers."""
        if name not in self._codes:
            column = self._read(name)
            if not pa.types.is_string(self._types[name]):
                raise InputError(f"{self.path}: column {name} holds {self._types[name]}, not text")
            column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
            whole = column.unify_dictionaries().combine_chunks()
            whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
            texts = whole.dictionary.to_pylist()
            order = np.argsort(np.array(texts, dtype=object)) if texts else np.zeros(0, np.int64)
            place = np.append(np.argsort(order), -1).astype(np.int32)
            codes = place[whole.indices.fill_null(len(texts)).to_numpy()]
            codes.flags.writeable = False
            self._codes[name] = Codes(codes, [texts[i] for i in order])
            self._arrow.pop(name, None)
        return self._codes[name]

    def take(self, name: str, rows: np.ndarray) -> list[str | None]:
        """The texts of some rows in a column of OF_EACH_ROW, without making an object for any other."""
        return list(self._read(name).take(pa.array(rows)).to_pylist())

    def text(self, name: str, row: int) -> str | None:
        """One row's text in a column of OF_EACH_ROW; None where it has none, or the table no such column."""
        return self._read(name)[row].as_py() if name in self.names else None

    def isin(self, name: str, texts: Collection[str]) -> np.ndarray:
        """(rows,) bool: whether a row's text is one of these."""
        return np.asarray(pc.is_in(self._read(name), pa.array(sorted(texts), pa.string())).to_numpy(), bool)

    def _read(self, name: str) -> pa.ChunkedArray:
        if name not in self.names:
            raise InputError(f"{self.path}: no column {name!r}; it has {', '.join(self.names)}")
        with self._lock:
            if name not in self._arrow:
                try:
                    column = self._file.read([name]).column(name)
                    if len(column) != len(self):
                        raise pa.ArrowInvalid(f"{len(column)} rows, not {len(self)}")
                    self._arrow[name] = checked(name, column, self.path, self._classes)
                except (OSError, UnicodeError, pa.ArrowException) as error:
                    raise InputError(
                        f"{self.path}: column {name} cannot be read ({one_line_of(error)}); {REPAIR}"
                    ) from error
            return self._arrow[name]


def write_table(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `samples.parquet` from rows that have COLUMNS' names; optional columns only when used."""
    used = {name for row in rows for name in row if row[name] is not None}
    schema = pa.schema([column for column in COLUMNS if column.name in used.union(WRITTEN)])
    table = pa.Table.from_pylist(list(rows), schema=schema)
    with atomic_write(folder / TABLE) as temporary:
        pq.write_table(table, temporary)


def publish(
    out: Path,
    classes: Sequence[str],
    shards: Iterable[Shard | None],
    settings: dict[str, Any],
    rejected: Sequence[dict[str, Any]] = (),
    *,
    name: str,
) -> dict[str, Any]:
    """Write what makes the tars in `out` a data set; returns its description, the content of dataset.json.

    shards: what write_shard made; None, which had no samples, is left out. The description is written last: a folder
    that has one is complete.
    """
    there = [shard for shard in shards if shard]
    rows = [row for shard in there for row in shard.rows]
    reasons = Counter(one["reason"] for one in rejected)
    write_json_lines(out / REJECTED, rejected)
    write_table(out, rows)
    description = {
        "name": name,
        "classes": list(classes),
        "rows": len(rows),
        "frames": sum(row["num_frames"] for row in rows),
        "rejected": dict(sorted(reasons.items())),
        "settings": settings,
        "tools": {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info, "pyarrow": pa.__version__},
        "table": stamp(out / TABLE),
        "tars": {shard.name: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in there},
    }
    write_json(out / DESCRIPTION, description)
    return description


def quarantine(folder: Path, key: str, reason: str) -> None:
    """Append a line. A folder that cannot be written to is worth a warning, not an end."""
    line = json.dumps({"key": key, "reason": reason}, ensure_ascii=False) + "\n"
    try:
        # one write of one line in append mode: ranks that share the folder do not mix theirs
        # not through a link: a data set from elsewhere could append what it likes to a file of the user's
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(folder / QUARANTINE, flags, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            # by a full disk, or amid another's write
            cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, ("\n" * cut + line).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        _log.warning("%s: %s is not noted (%s): %s", folder / QUARANTINE, key, error.strerror, reason)


def quarantined(folder: Path) -> set[str]:
    """The keys noted so far."""
    return {key for key, _ in quarantine_entries(folder / QUARANTINE)}


def quarantine_entries(path: Path) -> list[tuple[str, str]]:
    """(key, reason) of each line; lines that say something else are left out with a warning."""
    found: list[tuple[str, str]] = []
    if not path.is_file():
        return found
    for number, line in enumerate(read_bytes(path, "remove it").split(b"\n"), 1):
        if not line:  # two wrote at once, and one took the other's line for cut off
            continue
        try:
            one = parse(line, _QUARANTINED, path, "")
            found.append((one["key"], one.get("reason") or ""))
        except InputError:
            _log.warning("%s: line %d is not {key, reason}, left out", path, number)
    return found
