"""WebDataset tars that others made (video2dataset, clip-video-encode): a folder of them, one, a range, or a URL."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from shards.atomic import atomic_write
from shards.build.scan import SPLITS, Found, Member, Source, class_name, text_of
from shards.errors import InputError
from shards.layouts.lists import numbered_or_sorted
from shards.remote import filesystem, said_of, shown, url_of
from shards.storage import cache_folder
from shards.tar import Extent, read_extent, walk

VIDEOS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "flv", "wmv", "ts", "3gp")
# a json's entries, in the order of trying
LABELS = ("label_name", "class_name", "class", "label", "category")
LONGEST = 2**20  # bytes of a text
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


class TarSample(NamedTuple):
    """One sample: where its members lie, by their names without the key; its small texts, and the content of its json."""

    tar: Path
    key: str
    members: dict[str, Extent]
    texts: dict[str, str]
    facts: dict[str, Any]

    @property
    def video(self) -> str | None:
        """The member that is the video; mp4 before others."""
        kinds = {name: name.rpartition(".")[2].lower() for name in self.members}
        there = [name for name in kinds if kinds[name] in VIDEOS and not name.endswith("flow.mp4")]
        return min(there, key=lambda name: (name != "mp4", VIDEOS.index(kinds[name])), default=None)


def tars_of(src: Path) -> list[Path]:
    """The tars that `src` names: itself, those of its braces (`{000..127}`), below a folder, or behind a URL.

    Those behind a URL are fetched into the cache first. Empty where `src` names none. Raises InputError for one that
    is not there.
    """
    named = [str(src)] if src.exists() else _expanded(str(src))
    if url_of(src):
        return sorted(path for one in named for path in _fetched(url_of(one) or one))
    if len(named) == 1 and src.is_dir():
        return sorted(path for path in src.rglob("*.tar") if path.is_file() and not path.name.startswith("."))
    tars = [Path(name) for name in named if name.endswith(".tar")]
    if len(named) > 1 and (absent := [name for name in named if not Path(name).is_file()]):
        raise InputError(f"{src}: {len(absent)} of {len(named)} tars are not there, such as {absent[0]}")
    return [tar for tar in tars if tar.is_file()]


def read(src: Path, tars: list[Path]) -> Found:
    """A row for each sample with a video.

    Label: the number in `cls`, with the name that the json gives; else the json's label_name, class, …; else a `txt`
    or `cls` that is the same for several samples (captions differ, and are no labels). Split: the json's `split`, else
    a word such as train or val in the tar's name or folder. Samples without a video, and what comes after a tar's
    damage, are named in `unreadable`. Raises InputError when no tar has a sample with a video.
    """
    samples: list[TarSample] = []
    unreadable: dict[str, str] = {}
    top = src if src.is_dir() else tars[0].parent
    for tar in tars:
        contents = walk(tar)
        if contents.problem:
            unreadable[_relative(tar, top)] = contents.problem
        samples += [_sample(tar, key, parts) for key, parts in contents.samples.items()]
    videos = [(sample, name) for sample in samples if (name := sample.video)]
    for sample in samples:
        if sample.video is None:
            members = ", ".join(sample.members)
            unreadable[_source(sample, top)] = f"no video among its members ({text_of(members)})"
    if not videos:
        first = next((f" ({name}: {why})" for name, why in unreadable.items()), "")
        raise InputError(f"{src}: no sample with a video in {len(tars)} tars{first}; give other tars")
    labels, classes = _labels([sample for sample, _ in videos])
    sources = [
        Source(
            sample.tar,
            f"{_source(sample, top)}.{name}",
            label,
            _split(sample, top),
            member=Member(sample.key, name, *sample.members[name]),
        )
        for (sample, name), label in zip(videos, labels, strict=True)
    ]
    return Found("webdataset", sources, classes, unreadable=unreadable)


def _sample(tar: Path, key: str, parts: dict[str, Extent]) -> TarSample:
    there: list[str] = [
        name for name in ("json", "txt", "cls") if name in parts and parts[name].size <= LONGEST
    ]
    texts = {name: read_extent(tar, parts[name]).decode("utf-8", "replace").strip() for name in there}
    try:
        facts = json.loads(texts.get("json", "{}"))
    except ValueError:
        facts = {}
    return TarSample(tar, key, parts, texts, facts if isinstance(facts, dict) else {})


def _labels(samples: list[TarSample]) -> tuple[list[str | None], list[str]]:
    """The label of each sample, and the classes."""
    numbers = [_number(sample.texts.get("cls", "")) for sample in samples]
    names = [
        next((one.facts[name] for name in LABELS if one.facts.get(name) not in (None, "")), None)
        for one in samples
    ]
    if any(number is not None for number in numbers):
        # -1 is the number of no label; a name belongs to one number, else the numbers are the names
        named = {n: class_name(name) for n, name in zip(numbers, names, strict=True) if isinstance(name, str)}
        count = max((number for number in numbers if number is not None), default=-1) + 1
        classes = [named.get(number) or str(number) for number in range(count)]
        if len(set(classes)) < count:
            classes = list(map(str, range(count)))
        return [None if n is None or n < 0 else classes[n] for n in numbers], classes
    texts = [sample.texts.get("cls") or sample.texts.get("txt") or None for sample in samples]
    there = [text for text in texts if text]
    if any(names):
        found = [None if name is None else class_name(str(name)) for name in names]
    elif len(set(there)) * 2 <= len(there):
        found = [class_name(text) if text else None for text in texts]
    else:
        found = [None] * len(samples)
    return found, numbered_or_sorted(found)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-1|\d{1,6}", text) else None


def _split(sample: TarSample, top: Path) -> str | None:
    said = sample.facts.get("split")
    if isinstance(said, str) and said:
        return said
    words = re.split(r"[^a-z]+", _relative(sample.tar, top).lower())
    return next((word for word in words if word in SPLITS), None)


def _source(sample: TarSample, top: Path) -> str:
    return f"{_relative(sample.tar, top).removesuffix('.tar')}/{text_of(sample.key)}"


def _relative(tar: Path, top: Path) -> str:
    return text_of(str(tar.relative_to(top) if tar.is_relative_to(top) else tar.name))


def _expanded(text: str) -> list[str]:
    """Each name that shell braces stand for: ranges of numbers, and words between commas."""
    match = BRACES.search(text)
    if match is None:
        return [text]
    if match[3] is not None:
        parts = match[3].split(",")
    else:
        parts = [f"{number:0{len(match[1])}d}" for number in range(int(match[1]), int(match[2]) + 1)]
    return [name for part in parts for name in _expanded(text[: match.start()] + part + text[match.end() :])]


def _fetched(url: str) -> list[Path]:
    """The tars at a URL, one or those of a folder, copied into the cache once."""
    folder = cache_folder() / "tars" / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files, base = filesystem(url)
        names = [base] if base.endswith(".tar") else sorted(files.glob(f"{base}/*.tar"))
        fetched = [folder / name.rpartition("/")[2] for name in names]
        for name, path in zip(names, fetched, strict=True):
            if not path.is_file() or path.stat().st_size != files.size(name):
                with atomic_write(path) as temporary:
                    files.get_file(name, str(temporary))
    except InputError:
        raise
    except Exception as error:  # each protocol's library has errors of its own
        said = said_of(error, url)
        raise InputError(f"{shown(url)}: {said}; check address, credentials and network") from error
    if not fetched:
        raise InputError(f"{shown(url)}: no tars there; give the address of a tar or of a folder of tars")
    return fetched
