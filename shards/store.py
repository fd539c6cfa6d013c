"""Open a data set, select rows, read bytes: everything a loader asks of the disk."""

import hashlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import InputError
from shards.table import DESCRIPTION, QUARANTINE, TABLE

_log = logging.getLogger(__name__)
MAKE = "make one with tools/make_shards.py SRC --out DIR"


class Dataset:
    """A folder of WebDataset tars and its table `samples.parquet`; rows are numbered from 0.

    Attributes: `path`; `name`; `classes`, label → name; `info`, the content of dataset.json; `fingerprint`,
    a hex sha256 that changes with the content of any tar. Threads may share one object; a pickled one opens
    its files anew.

    Raises InputError when the folder, its table or a tar is missing, or a tar is shorter than the table says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = self._description()
        self.name: str = self.info["name"]
        self.classes: list[str] = list(self.info["classes"])
        identity = json.dumps(self.info["tars"], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        try:
            self._table: pa.Table = pq.read_table(self.path / TABLE)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{self.path / TABLE}: cannot be read ({error}); make the shards again"
            ) from error
        self._columns: dict[str, np.ndarray] = {}
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        self._check_tars()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __reduce__(self) -> tuple[type["Dataset"], tuple[Path]]:
        return Dataset, (self.path,)

    def column(self, name: str) -> np.ndarray:
        """One value a row, shape (rows,): int32, int64, float64, or object for text. Not to be written to."""
        if name not in self._columns:
            if name not in self._table.column_names:
                there = ", ".join(self._table.column_names)
                raise InputError(f"{self.path / TABLE}: no column {name!r}; it has {there}")
            values = self._table.column(name).to_numpy()
            values.flags.writeable = False
            self._columns[name] = values
        return self._columns[name]

    def select(
        self,
        *,
        split: str | None = None,
        split_column: str = "split",
        min_frames: int = 1,
        label_fraction: float | None = None,
        seed: int = 0,
        quarantine: bool = True,
    ) -> np.ndarray:
        """Ascending row numbers, int64 of shape (selected,).

        label_fraction: that share of each label's rows, at least one, chosen by `seed` among the split's rows
        before short and quarantined ones are left out: a fraction names the same rows whatever else is asked,
        and a larger one contains a smaller one. quarantine: leave out the keys of quarantine.jsonl.

        Raises InputError for a split that is not there, a fraction outside (0, 1], or no labels to divide.
        """
        chosen = np.ones(len(self), dtype=bool)
        if split is not None:
            chosen &= self._in_split(split, split_column)
        if label_fraction is not None:
            chosen = self._share_of_each_label(chosen, label_fraction, seed)
        chosen &= self.column("num_frames") >= min_frames
        if quarantine and (bad := self._quarantined_keys()):
            chosen &= np.array([key not in bad for key in self.column("key")], dtype=bool)
        return np.flatnonzero(chosen).astype(np.int64)

    def read(self, row: int, component: str = "mp4") -> bytes:
        """The bytes of a row's component (`mp4`, `json`, `cls`). Safe from several threads at once.

        Raises InputError when the row has no such component, OSError when the tar ends before it.
        """
        offsets, sizes = self.column(f"{component}_offset"), self.column(f"{component}_size")
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path}: row {row} of {len(self)}")
        if np.isnan(offsets[row]):
            raise InputError(f"{self.path}: row {row} ({self.column('key')[row]}) has no {component}")
        offset, size, shard = int(offsets[row]), int(sizes[row]), self.column("shard")[row]
        descriptor = self._descriptor(shard)
        parts: list[bytes] = []
        missing = size
        while missing:
            part = os.pread(descriptor, missing, offset + size - missing)
            if not part:
                raise OSError(
                    f"{self.path / shard}: ends {missing} bytes before the end of row {row} "
                    f"({self.column('key')[row]}); make the shards again or restore the file"
                )
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def quarantine(self, row: int, reason: str) -> None:
        """Note in quarantine.jsonl that a row cannot be used; new selections leave it out.

        A folder that cannot be written to is worth a warning, not an end.
        """
        key = self.column("key")[row]
        line = json.dumps({"key": key, "reason": reason}, ensure_ascii=False) + "\n"
        path = self.path / QUARANTINE
        with self._lock:
            try:
                # one write of one line in append mode: ranks that share the folder do not mix theirs
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(descriptor, line.encode())
                finally:
                    os.close(descriptor)
            except OSError as error:
                _log.warning("%s: %s is not noted (%s): %s", path, key, error.strerror, reason)

    def close(self) -> None:
        """Close the tars; a later read opens them again."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _description(self) -> dict[str, Any]:
        if not self.path.is_dir():
            raise InputError(f"{self.path}: no such folder; {MAKE}")
        for name in (TABLE, DESCRIPTION):
            if not (self.path / name).is_file():
                raise InputError(f"{self.path}: no {name}, so not a finished data set; {MAKE}")
        try:
            info = json.loads((self.path / DESCRIPTION).read_text(encoding="utf-8"))
            missing = {"name", "classes", "tars"} - info.keys()
        except (ValueError, AttributeError) as error:
            found = f"not the JSON of a data set ({error})"
            raise InputError(f"{self.path / DESCRIPTION}: {found}; make the shards again") from error
        if missing:
            found = f"no {', '.join(sorted(missing))}"
            raise InputError(f"{self.path / DESCRIPTION}: {found}; make the shards again")
        return dict(info)

    def _check_tars(self) -> None:
        shards, rows = np.unique(self.column("shard").astype(str), return_inverse=True)
        needed = np.zeros(len(shards), dtype=np.int64)
        for name in self._table.column_names:
            if name.endswith("_offset"):
                ends = self.column(name) + self.column(f"{name.removesuffix('_offset')}_size")
                np.maximum.at(needed, rows, np.nan_to_num(ends).astype(np.int64))
        for shard, end in zip(shards, needed, strict=True):
            tar = self.path / str(shard)
            if not tar.is_file():
                raise InputError(f"{tar}: no such file, but the table has rows in it; restore the file")
            if (size := tar.stat().st_size) < end:
                raise InputError(
                    f"{tar}: {size} bytes, but the table's rows in it end at {end}; "
                    "make the shards again or restore the file"
                )

    def _in_split(self, split: str, column: str) -> np.ndarray:
        if column not in self._table.column_names:
            raise InputError(f"--split {split}: {self.path} has no column {column!r}; leave --split out")
        values = self.column(column)
        there = sorted({str(value) for value in values if value is not None})
        if split not in there:
            raise InputError(f"--split {split}: {self.path} has the splits {', '.join(there) or 'none'}")
        return np.array(values == split, dtype=bool)

    def _share_of_each_label(self, chosen: np.ndarray, fraction: float, seed: int) -> np.ndarray:
        if not 0 < fraction <= 1:
            raise InputError(f"--label-fraction {fraction}: give a share above 0, at most 1")
        labels = self.column("label")
        if not (chosen & (labels >= 0)).any():
            raise InputError(f"--label-fraction {fraction}: the rows of {self.path} have no labels")
        # ordered by a hash of the key, not by position: adding rows does not draw the others anew
        keys = self.column("key")
        share = np.zeros_like(chosen)
        for label in np.unique(labels[chosen & (labels >= 0)]):
            rows = np.flatnonzero(chosen & (labels == label))
            order = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}/{keys[row]}".encode()).digest())
            share[order[: max(1, round(fraction * len(rows)))]] = True
        return share

    def _quarantined_keys(self) -> set[str]:
        keys = set()
        try:
            lines = (self.path / QUARANTINE).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return set()
        for number, line in enumerate(lines, 1):
            try:
                keys.add(json.loads(line)["key"])
            except (ValueError, KeyError, TypeError):
                _log.warning("%s: line %d is not {key, reason}, left out", self.path / QUARANTINE, number)
        return keys

    def _descriptor(self, shard: str) -> int:
        with self._lock:
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(self.path / shard, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[shard]
