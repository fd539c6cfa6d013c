"""Open a data set, select rows, read bytes: everything a loader asks of the disk."""

import errno
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shards.documents import one_line_of
from shards.errors import DamagedError, InputError
from shards.remote import RemoteShards, shown, url_of
from shards.schema import DESCRIPTION, REPAIR, TABLE, read_description
from shards.storage import EndsEarly, LocalShards
from shards.table import Table, quarantine, quarantined
from shards.tar import Excerpt, Parts
from shards.video.mp4 import DecodeError, PacketIndex

MAKE = "make one with tools/make_shards.py SRC --out DIR"
_log = logging.getLogger(__name__)
# seconds between tries at a tar that cannot be read: a server that comes back, a folder that is mounted again
PAUSES = (0.1, 0.3, 0.7, 1.4)
_GONE = (errno.ENOENT, errno.EINVAL, errno.ELOOP, errno.EISDIR)  # no regular file of that name
_MOST_PARTS = 128  # videos whose index stays in memory: 16 KB for one of 300 frames
_OWN_LACK = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of this machine: says nothing about a tar
Result = TypeVar("Result")


class Dataset:
    """WebDataset tars and their table `samples.parquet`, in a folder or behind a URL; rows are numbered from 0.

    path: a folder, or s3://…, gs://…, https://… (the extra `remote`). Of a remote set the table is read first, and
    each tar is fetched whole when a row of it is asked for, into a cache on the local disk. cache_gb: size of that
    cache in GB; by default $SLIPSTREAM_CACHE_GB, else 100; 0 for none: then each read is a request; see `shards.remote`.

    Attributes: `path`, the folder (of a remote set: where its table lies in the cache); `source`, what was asked
    for, without a password; `name`; `classes`, label → name; `info`, the content of dataset.json; `fingerprint`, a hex
    sha256 that changes with the content of any tar. Threads may share one object; a pickled one opens its files again.

    What a data set says of itself passes shards.schema before it is used: the description and the tars' names here,
    any other column of the table when it is first read.

    damaged: open it although a local tar is missing or shorter than the table says, with a warning.

    Raises InputError when the folder, its table or a tar is missing, they say what cannot be, or a tar is shorter
    than the table says; quarantined rows do not count.
    """

    def __init__(self, path: str | Path, *, cache_gb: float | None = None, damaged: bool = False) -> None:
        self._address, self._cache_gb, self._damaged = str(path), cache_gb, damaged
        self.source = shown(self._address)
        url = url_of(path)
        self._shards = RemoteShards(url, cache_gb) if url else LocalShards(Path(path))
        self.path = self._shards.folder
        self.info = self._description()
        self.name: str = self.info["name"]
        self.classes: list[str] = list(self.info["classes"])
        identity = json.dumps(self.info["tars"], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self._gone: set[str] = set()  # tars that were waited for in vain
        self._parts = lru_cache(_MOST_PARTS)(self._read_parts)
        self._table = Table(self.path / TABLE, len(self.classes))
        if unlisted := [shard for shard in self.shards if shard not in self.info["tars"]]:
            found = f"has rows in {unlisted[0]}, which {DESCRIPTION} does not list"
            raise InputError(f"{self.path / TABLE}: {found}; {REPAIR}")
        try:
            self._shards.check(self._ends())
        except InputError as error:
            if url or not damaged:
                raise
            _log.warning("%s", error)

    def __len__(self) -> int:
        return len(self._table)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Dataset, cache_gb=self._cache_gb, damaged=self._damaged), (self._address,)

    def column(self, name: str) -> np.ndarray:
        """One value a row, shape (rows,): int32, int64, float64, or object for text. Not to be written to."""
        return self._table.values(name)

    def keys(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The keys of some rows; unlike `column("key")`, nothing is made for the others."""
        return [str(key) for key in self._table.take("key", np.asarray(rows, dtype=np.int64))]

    @property
    def members(self) -> "list[Dataset]":
        """The data sets that this one consists of: itself, unless it is shards.several.Several."""
        return [self]

    def counts(self, rows: np.ndarray) -> list[int]:
        """How many of these rows are of each of `members`."""
        return [len(rows)]

    @property
    def shards(self) -> list[str]:
        """The names of the tars that rows lie in, ascending."""
        return self._table.codes("shard").texts

    @property
    def shard_numbers(self) -> np.ndarray:
        """(rows,) int32: which of `shards` a row lies in. Not to be written to."""
        return self._table.codes("shard").codes

    @property
    def window(self) -> int | None:
        """Bytes of tars that an epoch's order may use at a time; None: all at once.

        Three windows fit the cache: the one in use, what is left of the last one, and the next, being fetched.
        """
        capacity = self._shards.capacity
        return None if capacity is None else capacity // 3

    def prefetch(self, shards: Sequence[int] | np.ndarray) -> None:
        """Begin to fetch these tars (places in `shards`), in this order, and return; locally nothing happens."""
        self._shards.prefetch([self.shards[number] for number in np.asarray(shards).tolist()])

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

        split: "train", a value of `split_column`, or "split1:train", which names the column too.
        label_fraction: that share of each label's rows, at least one, chosen by `seed` among the split's rows
        before short and quarantined ones are left out: a fraction names the same rows with any other option,
        and a larger one contains a smaller one. quarantine: leave out the keys of quarantine.jsonl.

        Raises InputError for a split that is not there, a fraction outside (0, 1], or no labels to divide.
        """
        chosen = np.ones(len(self), dtype=bool)
        if split is not None:
            chosen &= self._in_split(split, split_column)
        if label_fraction is not None:
            chosen = self._share_of_each_label(chosen, label_fraction, seed)
        chosen &= self.column("num_frames") >= min_frames
        if quarantine:
            chosen[self.quarantined()] = False
        return np.flatnonzero(chosen).astype(np.int64)

    def read(self, row: int, component: str = "mp4") -> bytes:
        """The bytes of a row's component (`mp4`, `json`, `cls`, `flow.mp4`). Safe from several threads at once.

        Raises InputError when the row has no such component or its tar cannot be fetched; DamagedError when the
        tar is gone from its folder, ends before the component, or holds other bytes than were written (checked for
        `mp4` and `flow.mp4`, by sha256); OSError for trouble with the disk, which says nothing about the video.
        """
        return self._checked(row, component, 0, None, lambda data: self._unchanged(row, component, data))

    def packet_index(self, row: int, component: str = "mp4") -> PacketIndex | None:
        """The index of a row's file, of which only the head is read; None where the file can only be checked whole.

        Raises as `read` does; DamagedError where the head is not the one that was written.
        """
        parts = self._parts(row, component)
        return parts.index if parts else None

    def read_packets(self, row: int, first: int, last: int, component: str = "mp4") -> Excerpt:
        """These packets of a row's file and the rest of their GOPs: no other bytes. The row has a `packet_index`.

        Raises as `read` does; DamagedError where one of these GOPs is not the one that was written.
        """
        parts = self._parts(row, component)
        assert parts is not None
        begin, end = parts.range(first, last)
        return self._checked(row, component, begin, end - begin, lambda data: parts.excerpt(begin, data))

    def _read_parts(self, row: int, component: str) -> Parts | None:
        """How parts of a row's file are read; None where it is read whole."""
        sums = self._table.text(f"{component}_gops", row)
        if sums is None or np.isnan(head := self.column(f"{component}_head")[row]):
            return None
        return self._checked(row, component, 0, int(head), lambda data: Parts.of(data, sums))

    def _checked(
        self, row: int, component: str, begin: int, size: int | None, check: Callable[[bytes], Result]
    ) -> Result:
        """What `check` makes of part of a row's component, by default all of it.

        check: raises DecodeError for bytes that are not those that were written. They are fetched again, once.
        """
        offsets, sizes = self.column(f"{component}_offset"), self.column(f"{component}_size")
        if not 0 <= row < len(self):
            raise IndexError(f"{self.source}: row {row} of {len(self)}")
        if np.isnan(offsets[row]) or np.isnan(sizes[row]):
            raise InputError(f"{self.source}: row {row} ({self.keys([row])[0]}) has no {component}")
        shard, size = self.shards[self.shard_numbers[row]], int(sizes[row]) if size is None else size
        if begin + size > sizes[row]:
            raise DamagedError(f"{self.path / shard}: the {component} ends before byte {begin + size}")
        while True:
            data = self._bytes(shard, int(offsets[row]) + begin, size)
            try:
                return check(data)
            except DecodeError as error:
                if not self._shards.refetch(shard):
                    raise DamagedError(f"{self.path / shard}: {error}") from error

    def _unchanged(self, row: int, component: str, data: bytes) -> bytes:
        written = self._table.text("sha256" if component == "mp4" else f"{component}_sha256", row)
        if written and hashlib.sha256(data).hexdigest() != written:
            raise DecodeError("not the bytes that were written (sha256)")
        return data

    def _bytes(self, shard: str, offset: int, size: int) -> bytes:
        """Part of a tar. What may pass is waited for, once a tar."""
        pauses = [] if shard in self._gone else list(PAUSES)
        while True:
            try:
                data = self._shards.read(shard, offset, size)
                self._gone.discard(shard)
                return data
            except OSError as error:
                self._shards.forget(shard)  # it may have been put back
                if isinstance(error, EndsEarly):
                    del pauses[1:]
                if pauses and error.errno not in _OWN_LACK:
                    time.sleep(pauses.pop(0))
                    continue
                place, said = self.path / shard, error.strerror or str(error)
                # or the folder is there, and lacks this one file
                absent = error.errno in _GONE and (self.path / DESCRIPTION).is_file()
                if isinstance(error, EndsEarly) or absent:
                    self._gone.add(shard)
                    raise DamagedError(f"{place}: {said}") from error
                raise OSError(error.errno, said, str(place)) from error

    def webdataset(self, rows: Sequence[int] | np.ndarray | None = None, **options: Any) -> Any:
        """webdataset's own reader of the tars (webdataset.WebDataset): dicts of __key__, mp4, json, cls, bytes each.

        rows: only the samples of these, by default of all that are not in quarantine. options: WebDataset's, such as
        shardshuffle, nodesplitter. Raises InputError where webdataset is not installed.
        """
        try:
            from webdataset import WebDataset
        except ImportError:
            raise InputError("webdataset is not installed; pip install webdataset") from None
        keys = frozenset(self.keys(self.select() if rows is None else rows))
        tars = [f"{self.source.rstrip('/')}/{shard}" for shard in self.shards]
        options = {"shardshuffle": False} | options
        return WebDataset(tars, **options).select(lambda sample: sample["__key__"] in keys)

    def quarantine(self, row: int, reason: str) -> None:
        """Note in quarantine.jsonl that a row cannot be used; new selections leave it out.

        A folder that cannot be written to is worth a warning, not an end.
        """
        quarantine(self.path, self.keys([row])[0], reason)

    def quarantined(self) -> np.ndarray:
        """Ascending numbers, int64, of the rows that quarantine.jsonl names."""
        bad = quarantined(self.path)
        return np.flatnonzero(self._table.isin("key", bad)) if bad else np.zeros(0, dtype=np.int64)

    def close(self) -> None:
        """Close the tars; a later read opens them again."""
        self._shards.close()

    def _description(self) -> dict[str, Any]:
        if not self.path.is_dir():
            what = "a file, not a folder" if self.path.exists() else "no such folder"
            raise InputError(f"{self.path}: {what}; {MAKE}")
        for name in (TABLE, DESCRIPTION):
            if not (self.path / name).is_file():
                raise InputError(f"{self.path}: no {name}, so not a finished data set; {MAKE}")
        return read_description(self.path)

    def _ends(self) -> dict[str, int]:
        """Tar → where the last of its rows' components ends, bytes; quarantined rows do not count."""
        there = np.ones(len(self), dtype=bool)
        there[self.quarantined()] = False
        ends = np.zeros(len(self.shards), dtype=np.int64)
        for name in self._table.names:
            if name.endswith("_offset"):
                end = self.column(name) + self.column(f"{name.removesuffix('_offset')}_size")
                np.maximum.at(
                    ends, self.shard_numbers, np.where(there, np.nan_to_num(end), 0).astype(np.int64)
                )
        return {shard: end for shard, end in zip(self.shards, ends.tolist(), strict=True) if end}

    def _in_split(self, split: str, column: str) -> np.ndarray:
        named, _, value = split.rpartition(":")
        column = named or column
        codes, there = self._table.codes(column) if column in self._table.names else (np.zeros(0), [])
        if value not in there:
            columns = [name for name in ("split", "split1", "split2", "split3") if name in self._table.names]
            splits = [(name, text) for name in columns for text in self._table.codes(name).texts]
            known = ", ".join(text if name == "split" else f"{name}:{text}" for name, text in splits[:20])
            fix = f"it has {one_line_of(known)}" if known else "it has none; leave --split out"
            raise InputError(f"--split {split}: {self.source} has no such split: {fix}")
        return np.asarray(codes == there.index(value), dtype=bool)

    def _share_of_each_label(self, chosen: np.ndarray, fraction: float, seed: int) -> np.ndarray:
        if not 0 < fraction <= 1:
            raise InputError(f"--label-fraction {fraction}: give a share above 0, at most 1")
        labels = self.column("label")
        if not (chosen & (labels >= 0)).any():
            raise InputError(f"--label-fraction {fraction}: the rows of {self.source} have no labels")
        # ordered by a hash of the key, not by position: adding rows leaves the others chosen
        share = np.zeros_like(chosen)
        for label in np.unique(labels[chosen & (labels >= 0)]):
            rows = np.flatnonzero(chosen & (labels == label))
            ranks = [hashlib.sha256(f"{seed}/{key}".encode()).digest() for key in self.keys(rows)]
            order = rows[sorted(range(len(rows)), key=ranks.__getitem__)]
            share[order[: max(1, round(fraction * len(rows)))]] = True
        return share
