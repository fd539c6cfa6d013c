"""WebDataset tars with DALI's index: the same samples give the same bytes, offsets are known as they go."""

import hashlib
import itertools
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from shards.atomic import written_aside
from shards.members import Extent, index_text


@dataclass(frozen=True)
class Sample:
    """One video on its way into a tar. `facts` become its json and, by their names, its row of the table."""

    key: str
    mp4: bytes = field(repr=False)
    facts: dict[str, Any]
    label: int = -1
    flow: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Shard:
    """A finished tar: its file name, bytes, sha256, and a table row per sample."""

    name: str
    size: int
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
    name = f"{stem}.tar"
    rows: list[dict[str, Any]] = []
    index: list[tuple[str, dict[str, Extent]]] = []
    with written_aside(folder / name) as temporary, open(temporary, "wb") as handle:
        tar = _Tar(handle)
        for sample in itertools.chain([first], samples):
            facts = {"key": sample.key, **sample.facts, "label": sample.label}
            facts["sha256"] = hashlib.sha256(sample.mp4).hexdigest()
            if sample.flow is not None:
                facts["flow.mp4_sha256"] = hashlib.sha256(sample.flow).hexdigest()
            members = {"mp4": sample.mp4, "json": json.dumps(facts, sort_keys=True).encode()}
            if sample.label >= 0:
                members["cls"] = str(sample.label).encode()
            if sample.flow is not None:
                members["flow.mp4"] = sample.flow
            row = facts | {"shard": name}
            extents: dict[str, Extent] = {}
            for component, data in members.items():
                extents[component] = Extent(tar.add(f"{sample.key}.{component}", data), len(data))
                row[f"{component}_offset"], row[f"{component}_size"] = extents[component]
            rows.append(row)
            index.append((sample.key, extents))
        tar.end()
    with written_aside(folder / f"{stem}.idx") as temporary:
        temporary.write_text(index_text(index))
    return Shard(name, tar.size, tar.digest.hexdigest(), rows)


class _Tar:
    """Plain ustar members, one after another, with nothing in them that depends on when or where."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.size = 0
        self.digest = hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Append one file; its data's offset in the tar, bytes."""
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def end(self) -> None:
        """Two empty blocks, filled up to a record, as tar ends a file."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self._handle.write(data)
        self.digest.update(data)
        self.size += len(data)
