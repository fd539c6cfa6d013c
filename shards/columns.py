"""The table's columns, each read when it is first asked for: ten million rows open in a second or two."""

import os
import threading
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.documents import one_line_of
from shards.errors import InputError
from shards.schema import REPAIR, check_columns, checked, type_of
from shards.storage import open_regular

HEAD = 16  # hexadecimal digits of a sha256 that are kept in memory to recognise a video's bytes by
OF_EACH_ROW = ("key", "source", "sha256")  # texts that hardly repeat; any other is stored as a number a row


class Codes(NamedTuple):
    """A text column as numbers: `texts[codes[row]]` is a row's text, and −1 stands for none."""

    codes: np.ndarray
    texts: list[str]


class Columns:
    """`samples.parquet`, open for reading. Threads may share one object. Raises InputError if it is not one.

    What is read of it has passed shards.schema. classes: how many the data set has, above which no label may be.
    """

    def __init__(self, path: Path, classes: int | None = None) -> None:
        self.path, self._classes = path, classes
        try:
            os.close(open_regular(path))
            schema = pq.read_schema(path)
            texts = [field.name for field in schema if pa.types.is_string(field.type)]
            self._file = pq.ParquetFile(path, read_dictionary=[t for t in texts if t not in OF_EACH_ROW])
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
            if self._is_coded(name):
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
        """The texts of some rows, without making an object for any other."""
        if self._is_coded(name):
            codes, texts = self.codes(name)
            return [texts[code] if code >= 0 else None for code in codes[rows].tolist()]
        return list(self._read(name).take(pa.array(rows)).to_pylist())

    @cached_property
    def heads(self) -> np.ndarray:
        """(rows,) bytes: the first HEAD digits of each row's sha256."""
        whole = self._read("sha256").cast(pa.binary())
        self._arrow.pop("sha256", None)
        fixed = pc.binary_slice(whole, 0, HEAD).cast(pa.binary(HEAD)).combine_chunks()
        return np.frombuffer(fixed.buffers()[1], f"S{HEAD}")

    def isin(self, name: str, texts: Collection[str]) -> np.ndarray:
        """(rows,) bool: whether a row's text is one of these."""
        return np.asarray(pc.is_in(self._read(name), pa.array(sorted(texts), pa.string())).to_numpy(), bool)

    def _is_coded(self, name: str) -> bool:
        return name in self.names and pa.types.is_string(self._types[name]) and name not in OF_EACH_ROW

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
