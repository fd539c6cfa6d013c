"""A run before its first step: its folder, its data, and what must not change when it is resumed."""

import itertools
import json
import logging
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from torch.distributed import DistError, PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

import objectives
from objectives import checkpoint
from shards import Dataset, InputError
from shards.atomic import WriterLock
from shards.build.scan import data_folder
from shards.documents import one_line_of
from shards.several import APART, joined
from training.processes import on_main
from training.settings import Settings, numbered_runs
from training.state import read_rows

log = logging.getLogger(__name__)
_TURNS = itertools.count()
# settings that must not change when a run is resumed
_FIXED = ("seed", "accumulate", "clip_norm", "min_frames", "val_split", "val_every", "val_passes", "sync_bn", "ema",
          "clips_per_decode")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """output: its folder. rows: (N,) of the data set, frozen. val_rows: those of --val-split, none without it.

    identity: what resuming compares.
    resumed: the checkpoint to continue from, None for a new run. lock: what makes the main process the folder's one writer.
    """

    output: Path
    dataset: Dataset
    rows: np.ndarray
    val_rows: np.ndarray
    identity: dict[str, Any]
    resumed: Path | None
    lock: WriterLock | None = None

    def close(self) -> None:
        self.dataset.close()
        if self.lock:
            self.lock.close()


def open_run(settings: Settings, config: Any, mixed_precision: str) -> Run:
    """Open a new run, or one to continue. Raises InputError, in all processes alike, where that cannot be."""
    output, lock = choose_and_lock(settings)
    resumed = on_main(lambda: checkpoint.newest(output)) if settings.resume else None
    # with tars that were damaged since, a run continues with what is left of them
    dataset = open_data(settings, damaged=resumed is not None)
    identity = (
        {
            "data": " / ".join(f"{one.name} {one.fingerprint[:12]}" for one in dataset.members),
            "global_batch": settings.batch_size * PartialState().num_processes,
            "split": settings.trained_split,
            "mixed_precision": mixed_precision,
            "window": dataset.window,  # of a remote set: the order depends on it
        }
        | rate_and_side(dataset)
        | {name: getattr(settings, name) for name in _FIXED}
    )
    spec = objectives.get(settings.objective).view_spec(config)
    shortest = max(settings.min_frames, spec.span if spec.padding == "error" else 1)
    if resumed:
        now = {"objective": settings.objective} | asdict(config) | identity
        on_main(lambda: refuse_changes(resumed, now))
        rows = on_main(lambda: frozen_rows(resumed, dataset))
    else:
        rows = on_main(lambda: dataset.select(split=settings.trained_split, min_frames=shortest))
        for one, count in zip(dataset.members, dataset.counts(rows), strict=True):
            if len(dataset.members) > 1 and not count:
                raise InputError(
                    f"--data: none of {one.source} would be trained on: it has no rows of --split "
                    f"{settings.trained_split}, or only short videos; leave it out, or change --split or --min-frames"
                )
    on_main(lambda: clear_leftovers(output))
    val_rows = np.array([], dtype=np.int64)
    if settings.val_split is not None:
        # quarantined videos too, so that a resumed run has the same rows; the loader replaces them
        val_rows = on_main(
            lambda: dataset.select(split=settings.val_split, min_frames=shortest, quarantine=False)
        )
    return Run(output, dataset, rows, val_rows, identity, resumed, lock)


def choose_and_lock(settings: Settings) -> tuple[Path, WriterLock | None]:
    """The run's folder, and in the main process its lock. Raises InputError where another process holds it."""
    lock: list[WriterLock] = []

    def choose() -> Path:
        output = settings.output
        if output is None and settings.resume:
            raise InputError(
                f"--resume: there is no run of {settings.objective} under runs/; name its folder"
            )
        output = output or next(run for run in numbered_runs(settings.objective) if not run.exists())
        if (output / "config.json").exists() and not settings.resume:
            raise InputError(
                f"--output {output} holds a run already: add --resume to go on with it, or name another"
            )
        try:
            output.mkdir(parents=True, exist_ok=settings.output is not None)
            lock.append(WriterLock(output, f"--output {output}"))
            (output / "checkpoints").mkdir(exist_ok=True)
            (output / "metrics.jsonl").touch()
        except OSError as error:
            raise InputError(
                f"--output {output}: {error.filename or '.lock'}: {error.strerror}; "
                "choose a folder that can be written to"
            ) from error
        return output

    return on_main(choose), lock[0] if lock else None


def open_data(settings: Settings, *, damaged: bool) -> Dataset:
    """The data sets of --data as one, a folder of videos as one too, or the demo set. damaged: see Dataset."""

    def opened() -> Dataset:
        folders = [data_folder(one) for one in settings.data or (None,)]
        return joined([Dataset(one, cache_gb=settings.cache_gb, damaged=damaged) for one in folders])

    return in_turn(opened)


def in_turn(opened: Callable[[], Dataset]) -> Dataset:
    """opened() in each machine's first process, which may make a data set for hours, then in the others.

    They wait by what is noted in the launcher's store: a collective operation gives up after some minutes. All processes
    call it together. Raises InputError in those that wait where another one fails.
    """
    state = PartialState()
    if state.num_processes == 1:
        return opened()
    store, here = PrefixStore(f"slipstream-data-{next(_TURNS)}", _get_default_store()), socket.gethostname()

    def wait_for(key: str) -> None:
        while not store.check([key]):
            if store.check(["failed"]):
                raise InputError(store.get("failed").decode())
            time.sleep(0.1)

    try:
        if not state.is_local_main_process:
            wait_for(f"made on {here}")
        dataset = opened()
        for key in (f"made on {here}", f"opened by {state.process_index}"):
            store.set(key, "")
        for number in range(state.num_processes):
            wait_for(f"opened by {number}")
        return dataset
    except DistError as error:  # what keeps the store, process 0 or the launcher, is gone
        gone = "another process ended before the data set was open: its own message says why"
        raise InputError(gone) from error
    except BaseException as error:
        failed = f"process {state.process_index} cannot open the data set: its own message says why"
        with suppress(DistError):
            store.set("failed", str(error) if isinstance(error, InputError) else failed)
        raise


def init_from(objective: objectives.Objective, directory: Path) -> None:
    """Give a new objective the weights of a run or checkpoint: all of one of the same method, the encoder's of another's.

    Raises InputError where their tensors are not the same in name and size.
    """
    earlier = objectives.load(directory)
    whole = earlier.name == objective.name
    to, of = (objective, earlier) if whole else (objective.encoder, earlier.encoder)
    ours, theirs = ({key: value.shape for key, value in one.state_dict().items()} for one in (to, of))
    if wrong := [key for key in ours | theirs if ours.get(key) != theirs.get(key)]:
        raise InputError(
            f"--init-from {directory}: the {earlier.name} there has another {'network' if whole else 'encoder'} "
            f"({len(wrong)} tensors, {wrong[0]} first): give its flags"
        )
    to.load_state_dict(of.state_dict())
    if not whole:
        log.warning(
            "--init-from %s: the encoder of %s; the rest of %s has fresh weights",
            directory,
            earlier.name,
            objective.name,
        )


def init_remark(objective: objectives.Objective, directory: Path, run: Run) -> str:
    """One line that names in what the clips of --init-from's run differ from this one's, in time or in size; else ""."""
    earlier = checkpoint.read_config(directory)
    defaults = asdict(type(objective).Config())
    stride = type(objective).shards.stride
    now = {"config": asdict(objective.config), "settings": run.identity}

    def looks(of: dict[str, Any]) -> dict[str, Any]:
        config, data = defaults | of["config"], of["settings"]
        found = {name: config[name] for name in ("size", "modality") if name in config}
        found |= {"short side of the videos": data.get("short_side")}
        if stride and data.get("fps"):
            found["ms from frame to frame"] = round(1000 * config[stride] / data["fps"])
        return found

    then, here = looks(earlier), looks(now)
    differ = [name for name in here if then.get(name) is not None and then[name] != here[name]]
    if not differ:
        return ""
    said = ", ".join(f"{name} {then[name]} → {here[name]}" for name in differ)
    return f"--init-from {directory} looked at other clips: {one_line_of(said)}"


def rate_and_side(dataset: Dataset) -> dict[str, float]:
    """Medians of a data set's videos: fps, frames a second, and short_side, pixels; a run's config.json has those of its own."""
    sides = np.minimum(dataset.column("width"), dataset.column("height"))
    return {"fps": round(float(np.median(dataset.column("fps"))), 3), "short_side": float(np.median(sides))}


def data_remarks(
    objective: objectives.Objective, size: int, dataset: Dataset, trained: dict[str, Any]
) -> list[str]:
    """A line each where a data set's frame rate, or the size of its pictures, is not what an objective is used to.

    size: pixels of a view's side. trained: the settings in the config.json of the run that made the objective. Where they
    have no rate, the method's own counts, at the config's stride; where they have no size, a view's. Rates as close as 25
    and 30 (see APART) are taken for the same, and so are all sizes above a view's.
    """
    suits, now, lines = objective.shards, rate_and_side(dataset), []
    stride = getattr(objective.config, suits.stride) if suits.stride else None
    fps = trained.get("fps") or (suits.fps * stride if suits.fps and stride else None)
    if fps and max(fps / now["fps"], now["fps"] / fps) >= APART:
        fitting = (
            f", or train with --{suits.stride} {max(1, round(stride * now['fps'] / fps))}" if stride else ""
        )
        lines.append(
            f"{dataset.source} has {now['fps']:g} frames a second and not about {fps:g}, so that a clip lasts "
            f"{fps / now['fps']:.2g} times as long: make shards with --fps {fps:g}{fitting}"
        )
    side = trained.get("short_side") or size
    if (before := min(side, size)) != (here := min(now["short_side"], size)):
        lines.append(
            f"{dataset.source} has pictures of {now['short_side']:g} pixels on the short side and not {side:g}, so that "
            f"views of {size}² are {'more blurred' if here < before else 'sharper'}: make shards with --short-side"
        )
    return lines


def frozen_rows(resumed: Path, dataset: Dataset) -> np.ndarray:
    """The rows of a run's videos in the run's order, those that were quarantined since included."""
    number = {key: row for row, key in enumerate(dataset.column("key").tolist())}
    keys = read_rows(resumed)
    if missing := [key for key in keys if key not in number]:
        raise InputError(
            f"{dataset.source} lacks {len(missing)} videos of the run, {missing[0]} first: give the run's data set"
        )
    return np.array([number[key] for key in keys], dtype=np.int64)


def refuse_changes(resumed: Path, now: dict[str, Any]) -> None:
    """Raise InputError that names what differs from the run that wrote the checkpoint."""
    saved = checkpoint.read_config(resumed)
    defaults = asdict(checkpoint.class_of(resumed, saved).Config())  # of flags younger than the run
    then = {"objective": saved["objective"]} | defaults | saved["config"] | saved["settings"]
    then = json.loads(json.dumps(then))
    now = json.loads(json.dumps(now))  # tuples become lists
    changed = [key for key in now | then if now.get(key) != then.get(key)]
    if changed:
        differences = one_line_of("; ".join(f"{key} {then.get(key)} → {now.get(key)}" for key in changed))
        batch, rest = divmod(then.get("global_batch") or 1, PartialState().num_processes)
        hint = f" (--batch-size {batch})" if "global_batch" in changed and not rest else ""
        raise InputError(
            f"--resume: {resumed} was made by another run: {differences}. "
            f"Give that run's flags{hint}, or another --output"
        )


def clear_leftovers(output: Path) -> None:
    """Remove what a killed process was writing."""
    for path in (output / "checkpoints").glob(".step-*"):
        shutil.rmtree(path)
