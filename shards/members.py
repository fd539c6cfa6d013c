"""What a tar holds, read from the tar itself, and the index that DALI wants beside it."""

import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shards.documents import short
from shards.schema import is_tar


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
    """Every member that is there whole; WebDataset's rule: a key ends at the first dot. Never raises for damage."""
    samples: dict[str, dict[str, Extent]] = {}
    size, end = tar.stat().st_size, 0
    try:
        # names that are no UTF-8 come with U+FFFD: surrogates could be written neither to the index nor to a terminal
        with tarfile.open(tar, "r:", encoding="utf-8", errors="replace") as handle:
            for member in handle:
                if member.offset_data + member.size > size:
                    return Contents(samples, f"ends inside {member.name}")
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                key, _, component = member.name.partition(".")
                if member.isfile() and key and component:
                    samples.setdefault(key, {})[component] = Extent(member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        return Contents(samples, f"cannot be read as a tar after {len(samples)} samples ({error})")
    with tar.open("rb") as raw:
        raw.seek(end)
        if raw.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
            return Contents(samples, "ends without the empty blocks that close a tar")
    return Contents(samples)


def index_text(samples: Iterable[tuple[str, dict[str, Extent]]]) -> str:
    """The format of DALI's wds2idx: "extension offset size name" for each component, a sample a line."""
    lines = [
        " ".join(
            f"{component} {offset} {size} {key}.{component}" for component, (offset, size) in parts.items()
        )
        for key, parts in samples
    ]
    return "\n".join([f"v1.2 {len(lines)}", *lines, ""])
