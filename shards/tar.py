"""The tars of a data set: written so that the same samples give the same bytes, and read back member by member.

Parts of a member that is an mp4 file are read and checked without the rest: what precedes its media, and its GOPs. A GOP
is what lies between two key frames. Checksums of both are noted for files of WHOLE bytes and more, in the columns mp4_head
and mp4_gops. A clip needs the GOPs of its frames; shards.Dataset reads these, and nothing else.
"""

import hashlib
import io
import itertools
import json
import mmap
import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.atomic import atomic_write
from shards.documents import one_line_of, short
from shards.schema import is_tar
from shards.video.mp4 import DecodeError, PacketIndex, read_index

# webdataset's rule: a key ends at the first dot of the file's name; the folders belong to the key
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
WHOLE = 2**19
"""Files of fewer bytes are read whole: a second read costs more than the bytes that it saves (docs/guides/speed.md)."""
_DIGITS = 8  # of a checksum


class Extent(NamedTuple):
    """Where a component's data lies in its tar, bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Contents:
    """The samples of a tar, key → component → extent, in its order; `problem` says why it could not be read on."""

    samples: dict[str, dict[str, Extent]]
    problem: str = ""


def tars_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The tars of a data set's folder, and the names of what is called one but is not: pipes, devices, odd names."""
    paths = sorted(folder.glob("*.tar"))
    sound = [path for path in paths if is_tar(path.name) and path.is_file()]
    return sound, [short(path.name) for path in paths if path not in set(sound)]


def walk(tar: Path) -> Contents:
    """Every member that is there whole, of tars that others made too. Never raises for damage."""
    samples: dict[str, dict[str, Extent]] = {}
    size, end = tar.stat().st_size, 0
    try:
        # names that are no UTF-8 come with U+FFFD: surrogates could be written neither to the index nor to a terminal
        with tarfile.open(tar, "r:", encoding="utf-8", errors="replace") as handle:
            for member in handle:
                if member.offset_data + member.size > size:
                    return Contents(samples, f"ends inside {one_line_of(member.name)}")
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if (match := _MEMBER.fullmatch(member.name)) and member.isfile():
                    samples.setdefault(match[1], {})[match[2]] = Extent(member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        return Contents(samples, f"cannot be read as a tar after {len(samples)} samples ({error})")
    if read_extent(tar, Extent(end, 2 * tarfile.BLOCKSIZE)) != bytes(2 * tarfile.BLOCKSIZE):
        return Contents(samples, "ends without the empty blocks that close a tar")
    return Contents(samples)


def read_extent(tar: Path, extent: Extent) -> bytes:
    with tar.open("rb") as handle:
        handle.seek(extent.offset)
        return handle.read(extent.size)


def places(parts: dict[str, Extent]) -> dict[str, int]:
    """The columns of a row that say where its components lie."""
    columns = {}
    for component, extent in parts.items():
        columns[f"{component}_offset"], columns[f"{component}_size"] = extent
    return columns


def write_index(tar: Path, samples: Iterable[tuple[str, dict[str, Extent]]]) -> None:
    """Write the index of a tar beside it."""
    with atomic_write(tar.with_suffix(".idx")) as temporary:
        temporary.write_text(index_text(samples))


def index_text(samples: Iterable[tuple[str, dict[str, Extent]]]) -> str:
    """The format of DALI's wds2idx: "extension offset size name" for each component, a sample a line."""
    lines = [
        " ".join(
            f"{component} {offset} {size} {key}.{component}" for component, (offset, size) in parts.items()
        )
        for key, parts in samples
    ]
    return "\n".join([f"v1.2 {len(lines)}", *lines, ""])


@dataclass(frozen=True)
class Sample:
    """One video on its way into a tar. `facts` become its json and, by their names, its row of the table.

    mp4, flow: the bytes, or a file of them.
    """

    key: str
    mp4: bytes | Path = field(repr=False)
    facts: dict[str, Any]
    label: int = -1
    flow: bytes | Path | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Shard:
    """A finished tar: its file name, bytes, sha256, and a table row per sample."""

    name: str
    bytes: int
    sha256: str
    rows: list[dict[str, Any]]


def write_shard(folder: Path, stem: str, samples: Iterable[Sample]) -> Shard | None:
    """Write `stem`.tar and `stem`.idx into `folder`; None, and no files, when there are no samples.

    A sample's members are `<key>.mp4`, `<key>.json`, when labelled `<key>.cls` (the label's number), and
    `<key>.flow.mp4` when it has one.
    """
    samples = iter(samples)
    first = next(samples, None)
    if first is None:
        return None
    path = folder / f"{stem}.tar"
    rows: list[dict[str, Any]] = []
    index: list[tuple[str, dict[str, Extent]]] = []
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        # The standard library's own, not webdataset.TarWriter: that one writes the same bytes
        # (tests/shards/test_tar.py), holds each member twice in memory, and does not say where it put it.
        hashing: Any = _Hashing(handle)
        with tarfile.open(fileobj=hashing, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in itertools.chain([first], samples):
                facts, parts = _add_sample(tar, sample)
                columns = checksums("mp4", sample.mp4) | checksums("flow.mp4", sample.flow or b"")
                rows.append(facts | {"shard": path.name} | places(parts) | columns)
                index.append((sample.key, parts))
    write_index(path, index)
    return Shard(path.name, hashing.size, hashing.digest.hexdigest(), rows)


def _add_sample(tar: tarfile.TarFile, sample: Sample) -> tuple[dict[str, Any], dict[str, Extent]]:
    """Append a sample's members; gives what its json says, and where each of them lies."""
    facts = {"key": sample.key, **sample.facts, "label": sample.label, "sha256": _sha256(sample.mp4)}
    if sample.flow is not None:
        facts["flow.mp4_sha256"] = _sha256(sample.flow)
    members: dict[str, bytes | Path] = {"mp4": sample.mp4, "json": json.dumps(facts, sort_keys=True).encode()}
    if sample.label >= 0:
        members["cls"] = str(sample.label).encode()
    if sample.flow is not None:
        members["flow.mp4"] = sample.flow
    return facts, {name: _add(tar, f"{sample.key}.{name}", data) for name, data in members.items()}


def _add(tar: tarfile.TarFile, name: str, content: bytes | Path) -> Extent:
    """Append one file, with nothing in it that depends on when or where."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size_of(content), 0o644, 0
    offset = tar.offset + tarfile.BLOCKSIZE  # names are short: every header is one block
    with _opened(content) as handle:
        tar.addfile(info, handle)
    return Extent(offset, info.size)


def size_of(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _sha256(content: bytes | Path) -> str:
    with _opened(content) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _opened(content: bytes | Path) -> Any:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


class _Hashing:
    """What tarfile writes to: a file, and the length and sha256 of what went into it."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.size = 0
        self.digest = hashlib.sha256()

    def tell(self) -> int:
        return self.size

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._handle.write(data)


@dataclass(frozen=True, eq=False)
class Excerpt:
    """Bytes of an mp4 file, and where its packets lie in them.

    index: of all packets of the file. Its offsets count from the first byte of `data`; packets that are not there lie
    before that byte or after the last one.
    """

    index: PacketIndex
    data: bytes


def indexed(video: bytes | Excerpt) -> Excerpt:
    """An mp4 file's bytes with its index. Raises DecodeError as read_index does."""
    return video if isinstance(video, Excerpt) else Excerpt(read_index(video), video)


@dataclass(frozen=True, eq=False)
class Parts:
    """An mp4 file's index, and how its GOPs are checked.

    bounds: first byte of each GOP in the file, and the end of the last one, (G + 1,). sums: zlib.crc32 of each, (G,).
    """

    index: PacketIndex
    bounds: NDArray[np.int64]
    sums: tuple[int, ...]

    @classmethod
    def of(cls, head: bytes, sums: str) -> "Parts":
        """head: the file's bytes up to its media. sums: as `checksums` gives them. Raises DecodeError for a damaged head."""
        expected = [int(sums[at : at + _DIGITS], 16) for at in range(0, len(sums), _DIGITS)]
        if zlib.crc32(head) != expected[0]:
            raise DecodeError("not the bytes that were written (checksum of the mp4's index)")
        index = read_index(head)
        bounds = _bounds(index)
        if len(bounds) != len(expected):
            raise DecodeError(f"the table has checksums of {len(expected) - 1} GOPs of {len(bounds) - 1}")
        return cls(index, bounds, tuple(expected[1:]))

    def range(self, first: int, last: int) -> tuple[int, int]:
        """The bytes (begin, end) of the GOPs that hold the packets from `first` to `last`."""
        begin, end = np.searchsorted(self.index.gops, [first, last], side="right")
        return int(self.bounds[begin - 1]), int(self.bounds[end])

    def excerpt(self, begin: int, data: bytes) -> Excerpt:
        """Of whole GOPs, `data`, from the file's byte `begin` on. Raises DecodeError for damaged ones."""
        view, places = memoryview(data), self.bounds - begin
        for gop in range(*np.searchsorted(places, [0, len(data)])):
            if zlib.crc32(view[places[gop] : places[gop + 1]]) != self.sums[gop]:
                raise DecodeError(f"not the bytes that were written (checksum of GOP {gop})")
        return Excerpt(replace(self.index, offsets=self.index.offsets - begin), data)


def checksums(component: str, video: bytes | Path) -> dict[str, Any]:
    """The columns that say how parts of a row's component can be read; {} if it is read whole.

    COMPONENT_head: bytes of the file that precede its media. COMPONENT_gops: zlib.crc32 of these, and then of each GOP,
    8 hexadecimal digits each.
    """
    if size_of(video) < WHOLE:
        return {}
    if isinstance(video, Path):
        with video.open("rb") as handle:  # mapped: the system pages it in and out
            view = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
    else:
        view = memoryview(video)
    try:
        index = read_index(view)
        bounds = _bounds(index)
    except DecodeError:
        return {}
    ends = index.offsets + index.sizes
    if not index.head or index.offsets[0] < index.head or (index.offsets[1:] < ends[:-1]).any():
        return {}  # the index follows the media, or packets do not lie in their order
    parts = [view[: index.head], *(view[a:b] for a, b in pairwise(bounds.tolist()))]
    sums = "".join(f"{zlib.crc32(part):0{_DIGITS}x}" for part in parts)
    return {f"{component}_head": index.head, f"{component}_gops": sums}


def _bounds(index: PacketIndex) -> NDArray[np.int64]:
    return np.append(index.offsets[index.gops], index.offsets[-1] + index.sizes[-1])
