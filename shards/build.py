"""The job behind tools/make_shards.py: a folder of videos to a data set, restartable at every shard."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.aside import sweep
from shards.errors import InputError
from shards.pool import Crashed, in_order
from shards.sources import Source, find, keys, safe_name
from shards.table import DESCRIPTION, REJECTED, publish, read_json, write_json, write_json_lines
from shards.transcode import Clip, Encoding, Rejected, transcode
from shards.writer import Sample, write_shard

UNFINISHED = ".unfinished"  # notes on the finished shards, kept until all are
Progress = Callable[[int, int], None]  # (videos done, videos in all)


@dataclass(frozen=True)
class Summary:
    """Rows, bytes of the tars, and reason → rejected videos of a data set; `already`: nothing was done."""

    rows: int
    bytes: int
    rejected: dict[str, int]
    already: bool = False


@dataclass(frozen=True)
class _Job:
    """Everything that decides what the shards will hold."""

    folder: Path
    out: Path
    encoding: Encoding
    sources: list[Source]  # in the order of the shards
    keys: list[str]
    classes: list[str]
    batches: list[range]  # the sources of each shard

    @property
    def notes(self) -> Path:
        return self.out / UNFINISHED

    def stem(self, shard: int) -> str:
        return f"{safe_name(self.out.resolve().name)}-{shard:06d}"


def build(
    folder: Path,
    out: Path,
    encoding: Encoding,
    *,
    per_shard: int = 1000,
    workers: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Make the data set `out` from the videos in `folder`; see `sources.find` for its layouts.

    The order of the videos is fixed by `seed` and their names, a shard is `per_shard` of them, and each is
    encoded by one thread, so that neither `workers` nor a restart changes a byte. Called again after a kill
    it goes on with the first unfinished shard. A shard all of whose videos are rejected has no tar.

    Raises InputError when the folder holds nothing usable, or `out` holds something else.
    """
    for flag, value in (("--per-shard", per_shard), ("--workers", workers)):
        if value < 1:
            raise InputError(f"{flag} {value}: give 1 or more")
    sources = sorted(find(folder), key=lambda one: hashlib.sha256(f"{seed}/{one.relative}".encode()).digest())
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"--out {out}: lies inside {folder}, where the videos are; give another --out")
    settings = asdict(encoding) | {"crf": encoding.quality, "per_shard": per_shard, "seed": seed}
    settings["sources"] = _digest(sources)
    if (out / DESCRIPTION).is_file():
        info = read_json(out / DESCRIPTION)
        _check_same(out, info.get("settings", {}), settings)
        return Summary(
            info["rows"], sum(tar["bytes"] for tar in info["tars"].values()), info["rejected"], True
        )
    starts = range(0, len(sources), per_shard)
    job = _Job(
        folder=folder,
        out=out,
        encoding=encoding,
        sources=sources,
        keys=keys([source.relative for source in sources]),
        classes=sorted({source.label_name for source in sources if source.label_name is not None}),
        batches=[range(start, min(start + per_shard, len(sources))) for start in starts],
    )
    with _claimed(job, settings):
        _make_shards(job, workers, progress)
        return _finish(job, settings)


def _make_shards(job: _Job, workers: int, progress: Progress | None) -> None:
    """Make the shards that are not finished; after each, leave a note that says what a restart must know."""
    todo = [shard for shard in range(len(job.batches)) if not _is_finished(job, shard)]
    tasks = [
        _Task(job.sources[i].path, job.encoding, job.notes) for shard in todo for i in job.batches[shard]
    ]
    total = len(job.sources)
    with closing(
        _counted(in_order(_attempt, tasks, workers), total - len(tasks), total, progress)
    ) as results:
        for shard in todo:
            rejected: list[dict[str, str]] = []
            made = write_shard(job.out, job.stem(shard), _samples(job, shard, results, rejected))
            write_json(_note(job, shard), {"shard": asdict(made) if made else None, "rejected": rejected})


def _samples(
    job: _Job, shard: int, results: Iterator["Clip | _Reject"], rejected: list[dict[str, str]]
) -> Iterator[Sample]:
    """The samples of one shard; what does not become one is appended to `rejected`."""
    for i in job.batches[shard]:
        source, result = job.sources[i], next(results)
        if isinstance(result, _Reject):
            rejected.append({"source": source.relative, "reason": result.reason, "detail": result.detail})
            continue
        facts: dict[str, Any] = {"source": source.relative, "label_name": source.label_name}
        if source.split is not None:
            facts["split"] = source.split
        for name in ("num_frames", "fps", "width", "height"):
            facts[name] = getattr(result, name)
        label = -1 if source.label_name is None else job.classes.index(source.label_name)
        yield Sample(job.keys[i], result.data, facts | result.seen, label)


def _finish(job: _Job, settings: dict[str, Any]) -> Summary:
    notes = [read_json(_note(job, shard)) for shard in range(len(job.batches))]
    shards = [note["shard"] for note in notes if note["shard"]]
    rejected = [one for note in notes for one in note["rejected"]]
    if not shards:
        write_json_lines(job.out / REJECTED, rejected)
        shutil.rmtree(job.notes)
        first = "{source}, {reason}: {detail}".format(**rejected[0])
        found = f"none of {len(rejected)} files became a sample (the first: {first})"
        raise InputError(f"{job.folder}: {found}; see {job.out / REJECTED} and give a folder of videos")
    info = publish(job.out, job.classes, shards, settings, rejected, name=job.out.resolve().name)
    shutil.rmtree(job.notes)
    return Summary(info["rows"], sum(shard["size"] for shard in shards), info["rejected"])


@dataclass(frozen=True)
class _Task:
    path: Path
    encoding: Encoding
    scratch: Path


@dataclass(frozen=True)
class _Reject:
    reason: str
    detail: str


def _attempt(task: _Task) -> "Clip | _Reject":
    """One video, in a worker process. No error of one video may end a job of a hundred thousand."""
    try:
        return transcode(task.path, task.encoding, task.scratch)
    except Rejected as rejected:
        return _Reject(rejected.reason, rejected.detail)
    except OSError:
        raise  # a full disk is not the video's fault
    except Exception as error:
        return _Reject("unexpected", f"{type(error).__name__}: {error}")


def _counted(
    results: Generator["Clip | _Reject | Crashed"], done: int, total: int, progress: Progress | None
) -> Generator["Clip | _Reject"]:
    with closing(results):
        if progress:
            progress(done, total)
        for result in results:
            done += 1
            if progress:
                progress(done, total)
            yield _Reject("crashed", result.detail) if isinstance(result, Crashed) else result


def _note(job: _Job, shard: int) -> Path:
    return job.notes / f"{job.stem(shard)}.json"


def _is_finished(job: _Job, shard: int) -> bool:
    """Whether a shard's note is there and its tar is as long as the note says."""
    if not _note(job, shard).is_file():
        return False
    made = read_json(_note(job, shard))["shard"]
    if made is None:
        return True
    tar = job.out / made["name"]
    return tar.is_file() and tar.stat().st_size == made["size"] and tar.with_suffix(".idx").is_file()


@contextmanager
def _claimed(job: _Job, settings: dict[str, Any]) -> Iterator[None]:
    """Be the only one to write `out`: an empty folder, or one where the same job was cut off."""
    kept = job.notes / "settings.json"
    others = [path.name for path in job.out.glob("*") if path.name != REJECTED] if job.out.exists() else []
    if others and not kept.is_file():
        found = f"holds {others[0]} and no data set"
        raise InputError(f"--out {job.out}: {found}; give an empty or a new folder")
    job.notes.mkdir(parents=True, exist_ok=True)
    with open(job.notes / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"--out {job.out}: another make_shards.py is at work on it; wait for it"
            ) from None
        if kept.is_file():
            _check_same(job.out, read_json(kept), settings)
        for stale in job.notes.glob("encode-*"):
            shutil.rmtree(stale)
        sweep(job.out)
        sweep(job.notes)
        write_json(kept, settings)
        yield


def _check_same(out: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise InputError when `out` was made, or begun, with other settings or from other videos."""
    differing = [name for name in asked if there.get(name) != asked[name]]
    if differing == ["sources"]:
        raise InputError(f"--out {out}: holds a data set of other videos; give another --out")
    if differing:
        name = next(name for name in differing if name != "sources")
        flag, value = f"--{name.replace('_', '-')}", there.get(name)
        raise InputError(
            f"--out {out}: holds a data set made with {flag} {value}, not {asked[name]}; give another --out"
        )


def _digest(sources: list[Source]) -> str:
    """Names, sizes and labels: enough to notice other videos without reading them all again."""
    lines = [f"{one.relative}\t{one.path.stat().st_size}\t{one.label_name}\t{one.split}" for one in sources]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
