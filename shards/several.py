"""Several data sets that a run trains on as one: `train.py --data data/k400 data/oops`."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shards.dataset import Dataset
from shards.errors import InputError
from shards.schema import safe_name
from shards.tar import Excerpt
from shards.video.mp4 import PacketIndex

APART = 1.5
"""From this factor on two frame rates show another motion in the same frames."""


def joined(members: Sequence[Dataset]) -> Dataset:
    """A single data set as it is, several as one."""
    return members[0] if len(members) == 1 else Several(members)


def prefixes(names: Sequence[str]) -> list[str]:
    """What the keys, and the tars, of data sets of these names begin with: "NAME/"; a single one's begin with nothing."""
    if len(names) == 1:
        return [""]
    safe = [safe_name(name) for name in names]
    if len(set(safe)) < len(safe):
        safe = [f"{name}-{number}" for number, name in enumerate(safe, 1)]
    return [f"{name}/" for name in safe]


class Several(Dataset):
    """The rows of several open data sets, one set after the other.

    `keys` and `shards` begin with the name of their data set and a slash. Classes of one name are one class: `classes`
    has all names, ascending, and the column `label` numbers them. Where a data set lacks a column that another has, its
    rows hold NaN or None; where it lacks a split, none of its rows are selected. Files are read, and videos put into
    quarantine, by the data set that they belong to.

    Raises InputError for a data set that is given twice, and for frame rates that are apart by APART or more.
    """

    def __init__(self, members: Sequence[Dataset]) -> None:
        self._members = list(members)
        self._prefixes = prefixes([one.name for one in members])
        self.source = ", ".join(one.source for one in members)
        self.name = "+".join(one.name for one in members)
        self.classes = sorted({name for one in members for name in one.classes})
        together = " ".join(one.fingerprint for one in members)
        self.fingerprint = hashlib.sha256(together.encode()).hexdigest()
        self._refuse_unlike()
        self._starts = np.cumsum([0, *map(len, members)])
        self._shard_starts = np.cumsum([0, *(len(one.shards) for one in members)])
        self._columns: dict[str, np.ndarray] = {}
        codecs = sorted({one.info["settings"].get("codec", "h264") for one in members})
        tars = [
            (prefix + tar, facts) for prefix, one in self._each() for tar, facts in one.info["tars"].items()
        ]
        settings = {"codec": " and ".join(codecs)}
        self.info = {"name": self.name, "classes": self.classes, "settings": settings, "tars": dict(tars)}

    def _each(self) -> Iterator[tuple[str, Dataset]]:
        """The prefix and the data set of each member."""
        return zip(self._prefixes, self._members, strict=True)

    def _refuse_unlike(self) -> None:
        by_rate = sorted(self._members, key=_rate)
        slow, fast = by_rate[0], by_rate[-1]
        if _rate(fast) >= APART * _rate(slow):
            raise InputError(
                f"--data: {slow.source} has {_rate(slow):g} frames a second, {fast.source} {_rate(fast):g}: "
                "make them at one rate (tools/make_shards.py --fps, or --for a method)"
            )
        by_content = {one.fingerprint: one for one in self._members}
        for one in self._members:
            if (other := by_content[one.fingerprint]) is not one:
                raise InputError(f"--data: {one.source} and {other.source} hold the same; name one of them")

    @property
    def members(self) -> list[Dataset]:
        return self._members

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return Several, (self._members,)

    def column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            values = np.concatenate(self._parts_of(name))
            values.flags.writeable = False
            self._columns[name] = values
        return self._columns[name]

    def _parts_of(self, name: str) -> list[np.ndarray]:
        """A column's values, member by member."""
        if name == "label":
            place = {text: number for number, text in enumerate(self.classes)}
            numbers = [np.array([*map(place.get, one.classes), -1], dtype=np.int32) for one in self._members]
            return [mine[one.column(name)] for mine, one in zip(numbers, self._members, strict=True)]
        found = [one.column(name) if name in one._table.names else None for one in self._members]
        there = [values for values in found if values is not None]
        if not there:
            raise InputError(f"{self.source}: no column {name!r}")
        if name in ("key", "shard"):
            return [prefix + one.column(name) for prefix, one in self._each()]
        lacking = None if any(values.dtype == object for values in there) else np.nan
        return [
            np.full(len(one), lacking) if values is None else values
            for one, values in zip(self._members, found, strict=True)
        ]

    def keys(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        rows = np.asarray(rows, dtype=np.int64)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty(len(rows), dtype=object)
        for number, (prefix, member) in enumerate(self._each()):
            mine = which == number
            found[mine] = [prefix + key for key in member.keys(rows[mine] - self._starts[number])]
        return found.tolist()

    @property
    def shards(self) -> list[str]:
        return [prefix + tar for prefix, one in self._each() for tar in one.shards]

    @property
    def shard_numbers(self) -> np.ndarray:
        starts = zip(self._shard_starts.astype(np.int32), self._members, strict=False)
        return np.concatenate([start + one.shard_numbers for start, one in starts])

    @property
    def window(self) -> int | None:
        """As of one data set; the remote ones share one cache."""
        return min((one.window for one in self._members if one.window is not None), default=None)

    def prefetch(self, shards: Sequence[int] | np.ndarray) -> None:
        shards = np.asarray(shards, dtype=np.int64)
        which = np.searchsorted(self._shard_starts, shards, side="right") - 1
        for number, member in enumerate(self._members):
            member.prefetch(shards[which == number] - self._shard_starts[number])

    def read(self, row: int, component: str = "mp4") -> bytes:
        member, own = self._place(row)
        return member.read(own, component)

    def packet_index(self, row: int, component: str = "mp4") -> PacketIndex | None:
        member, own = self._place(row)
        return member.packet_index(own, component)

    def read_packets(self, row: int, first: int, last: int, component: str = "mp4") -> Excerpt:
        member, own = self._place(row)
        return member.read_packets(own, first, last, component)

    def webdataset(self, rows: Sequence[int] | np.ndarray | None = None, **options: Any) -> Any:
        raise InputError(f"{self.source}: webdataset reads one data set; ask each of `members`")

    def quarantine(self, row: int, reason: str) -> None:
        member, own = self._place(row)
        member.quarantine(own, reason)

    def quarantined(self) -> np.ndarray:
        starts = zip(self._starts, self._members, strict=False)
        return np.concatenate([start + one.quarantined() for start, one in starts])

    def counts(self, rows: np.ndarray) -> list[int]:
        return np.histogram(rows, self._starts)[0].tolist()

    def close(self) -> None:
        for one in self._members:
            one.close()

    def _place(self, row: int) -> tuple[Dataset, int]:
        """The data set that a row is of, and its number there."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.source}: row {row} of {len(self)}")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._members[number], int(row - self._starts[number])

    def _in_split(self, split: str, column: str) -> np.ndarray:
        found, start, refused = np.zeros(len(self), dtype=bool), 0, []
        for one in self._members:
            try:
                found[start : start + len(one)] = one._in_split(split, column)
            except InputError as error:
                refused.append(error)
            start += len(one)
        if len(refused) == len(self._members):
            raise refused[0]
        return found


def _rate(dataset: Dataset) -> float:
    return float(np.median(dataset.column("fps")))
