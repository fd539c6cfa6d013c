"""What a run notes of itself: run.json, how it was started; metrics.jsonl; the same for its trackers; and its first views.

metrics.jsonl is the truth. Trackers are Accelerate's classes, and one of our own for TensorBoard.
wandb, mlflow and trackio keep a run's id in OUTPUT/trackers.json, so that a resumed run continues in the same place.
"""

import errno
import importlib
import json
import logging
import math
import os
import platform
import shlex
import socket
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from objectives.checkpoint import git_commit
from pipelines import colour
from pipelines.views import ViewSpec
from shards import InputError
from shards.atomic import atomic_write
from shards.documents import TEXT, AllOf, Each, Is, one_line_of, read_json, read_json_lines, whole
from training.processes import writing
from training.run import Run
from training.settings import Settings
from training.speed import machine

log = logging.getLogger(__name__)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_LINE = AllOf({"step": whole(0)}, Each(TEXT, Is("a number", lambda value: type(value) in (int, float))))
STARTS = "run.json"  # one entry for each time that a run was started
_PACKAGES = (
    *("torch", "torchvision", "accelerate", "numpy", "av", "pyarrow", "safetensors"),
    *("nvidia-dali-cuda130", "nvidia-dali-cuda120", "pynvvideocodec"),
)
IDS = "trackers.json"
_ID_OF: dict[str, Callable[[Any], str]] = {
    "wandb": lambda run: run.id,
    "mlflow": lambda run: run.info.run_id,
    "trackio": lambda run: run.name,
}


def record_start(settings: Settings, run: Run, argv: list[str], step: int) -> None:
    """Add this start to OUTPUT/run.json. Raises InputError where it cannot be written."""
    path = run.output / STARTS
    packages = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    entry = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join([sys.argv[0], *argv]),
        "from_step": step,
        "steps": settings.steps,
        "data": ", ".join(str(one.path) for one in run.dataset.members),
        "fingerprint": run.dataset.fingerprint,
        "split": settings.trained_split,
        "videos": len(run.rows),
        "commit": git_commit(),
        "versions": {"python": platform.python_version()} | packages,
        "hardware": {
            "host": socket.gethostname(),
            "machine": machine(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "processes": PartialState().num_processes,
        },
    }
    starts = read_json(path, {"starts": [dict]}, "remove it")["starts"] if path.exists() else []
    with writing(path), atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"starts": [*starts, entry]}, indent=1) + "\n")


class Log:
    """Lines of metrics, each flushed.

    step: a run that is resumed forgets the lines after its checkpoint's step. A tracker that had them already does
    not get them again, and a new tracker gets all of them. flags: of the run, for a new tracker.
    Raises InputError where the folder cannot be written to, or a tracker cannot start.
    """

    def __init__(
        self, output: Path, step: int, trackers: tuple[str, ...] = (), flags: dict[str, Any] | None = None
    ) -> None:
        self._output = output
        self._file: IO[str] | None = None
        self._trackers: dict[GeneralTracker, float] = {}  # each with the last step that it got
        path = output / "metrics.jsonl"
        try:
            lines = read_metrics(path)
            kept = [line for line in lines if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            if text.encode() != path.read_bytes():
                with atomic_write(path) as temporary:
                    temporary.write_text(text)
            self._file = path.open("a")
            for tracker, known in open_trackers(trackers, output, flags or {}, step):
                begins_over = not known or tracker.name == "tensorboard"  # it drops later steps itself
                self._trackers[tracker] = 0 if begins_over else max((one["step"] for one in lines), default=0)
                for line in [] if known else kept:
                    self._tell(tracker, line)
        except OSError as error:
            self.close()
            raise self._refused(error) from error

    def write(self, line: dict[str, float]) -> None:
        """line["step"], and the values to note for it."""
        assert self._file is not None
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for tracker in list(self._trackers):
                self._tell(tracker, line)
        except OSError as error:
            raise self._refused(error) from error

    def _tell(self, tracker: GeneralTracker, line: dict[str, float]) -> None:
        step = int(line["step"])
        if step <= self._trackers.get(tracker, math.inf):
            return
        try:
            tracker.log({name: value for name, value in line.items() if name != "step"}, step=step)
        except Exception as error:  # a service that is away must not end the run
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            log.warning(
                "--tracker %s fails and gets no more lines (metrics.jsonl has them all): %s",
                tracker.name,
                one_line_of(error),
            )
            del self._trackers[tracker]

    def close(self) -> None:
        with suppress(
            OSError
        ):  # a full disk was reported by write; a failed close has closed the file as well
            if self._file:
                self._file.close()
        trackers, self._trackers = self._trackers, {}
        for tracker in trackers:
            try:
                tracker.finish()
            except Exception as error:
                log.warning("--tracker %s: cannot be closed: %s", tracker.name, one_line_of(error))

    def _refused(self, error: OSError) -> InputError:
        return InputError(
            f"--output {self._output}: metrics cannot be written ({error.strerror or error}); "
            "make room and go on with --resume"
        )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, but a last one that was cut off. Raises InputError where it holds something else."""
    return read_json_lines(path, _LINE, "remove that line, or the file")


class TensorBoard(GeneralTracker):
    """Events for TensorBoard. Its own writer has a thread that prints a traceback when the disk is full; this has none.

    step: of the run's checkpoint; TensorBoard drops the events of later steps that an earlier start left.
    """

    name = "tensorboard"
    requires_logging_directory = True

    def __init__(self, output: Path, step: int) -> None:
        super().__init__()
        folder = output / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(session_log=SessionLog(status=SessionLog.START), step=step + 1))

    @property
    def tracker(self) -> Any:
        return self._records

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """TensorBoard shows metrics alone; config.json has the flags."""

    def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=one) for name, one in values.items()])
        self._write(Event(summary=summary, step=step))
        self._file.flush()

    def finish(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise InputError, naming the fix, for a tracker that this environment does not have."""
    if "none" in names and len(names) > 1:
        raise InputError(f"--tracker {' '.join(names)}: none goes with no other")
    for name in names:
        if name not in ("none", "tensorboard"):
            _kind(name)


def _kind(name: str) -> type[GeneralTracker]:
    """Accelerate's class of this name, or the user's own, "module:Class"."""
    module, _, own = name.partition(":")
    if own:
        try:
            return getattr(importlib.import_module(module), own)  # type: ignore[no-any-return]
        except (ImportError, AttributeError) as error:
            raise InputError(f"--tracker {name}: {one_line_of(error)}") from error
    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join([*sorted(LOGGER_TYPE_TO_CLASS), "none"])
        raise InputError(
            f"--tracker {name}: there is no such tracker; choose of {known}, or name module:Class"
        )
    if name not in map(str, get_available_trackers()):
        raise InputError(f"--tracker {name}: is not installed: pip install {name}")
    return LOGGER_TYPE_TO_CLASS[name]  # type: ignore[no-any-return]


def open_trackers(
    names: tuple[str, ...], output: Path, flags: dict[str, Any], step: int
) -> list[tuple[GeneralTracker, bool]]:
    """The trackers of these names, started, each with whether the run was tracked by it before.

    flags: of the run, for a new tracker. step: the run continues after it.
    Raises InputError where a tracker cannot start, OSError where nothing can be written.
    """
    path = output / IDS
    broken = "remove it: the trackers begin new runs"
    ids = dict(read_json(path, Each(TEXT, TEXT), broken)) if path.exists() else {}
    opened: list[tuple[GeneralTracker, bool]] = []
    for name in [name for name in names if name != "none"]:
        tracker, known = _open(name, output, ids.get(name), step), name in ids
        if not known:
            tracker.store_init_configuration(flags)
            ids[name] = _ID_OF.get(name, lambda run: "")(tracker.tracker)
        opened.append((tracker, known))
    if ids:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(ids, indent=1) + "\n")
    return opened


def _open(name: str, output: Path, known: str | None, step: int) -> GeneralTracker:
    if name == "tensorboard":
        return TensorBoard(output, step)
    kind = _kind(name)
    project = "slipstream"
    options: dict[str, dict[str, Any]] = {
        "wandb": {"dir": str(output), "name": output.name}
        | ({"id": known, "resume": "allow"} if known else {}),
        "mlflow": {"run_name": output.name, "run_id": known},
        "trackio": {"name": known or f"{output.name}-{uuid.uuid4().hex[:8]}", "resume": "allow"},
    }
    place = (str(output),) if kind.requires_logging_directory else ()
    try:
        tracker = kind(project, *place, **options.get(name, {}))
        tracker.start()
    except OSError:
        raise
    except Exception as error:  # each service has its own
        raise InputError(f"--tracker {name}: cannot start: {one_line_of(error)}") from error
    return tracker


def visible(views_BVCTHW: Tensor, spec: ViewSpec) -> Tensor:
    """Views as the loader gives them → RGB (B, V, T, H, W, 3), uint8, on the CPU.

    RGB without its normalisation; standardised Lab as false colours, and image difference as grey, ±2 deviations
    from black to white; flow in the usual colour wheel, the fastest motion of the batch in full colour.
    """
    frames_BVTCHW = views_BVCTHW.detach().float().cpu().transpose(2, 3)
    if spec.modality == "flow":
        from torchvision.utils import flow_to_image  # here, since it takes two seconds

        flow = frames_BVTCHW.flatten(0, 2)[:, :2]
        return flow_to_image(flow).unflatten(0, frames_BVTCHW.shape[:3]).movedim(3, -1)
    if spec.modality == "difference":
        pixels = (frames_BVTCHW / 4 + 0.5).expand(-1, -1, -1, 3, -1, -1)
    elif spec.lab:
        pixels = frames_BVTCHW / 4 + 0.5
    elif spec.levels == "bgr-255":
        pixels = frames_BVTCHW.flip(3) / 255
    else:
        mean, std = (
            torch.tensor(v).float()[:, None, None] for v in (colour.IMAGENET_MEAN, colour.IMAGENET_STD)
        )
        pixels = frames_BVTCHW * std + mean
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).movedim(3, -1)


def save_views(
    batch: dict[str, Any], spec: ViewSpec, path: Path, *, samples: int = 4, frames: int = 8
) -> None:
    """Save a batch's first samples as a PNG: one row a view, frames from left to right, videos below each other.

    batch["views"]: (B, V, C, T, H, W) as the loader gives them; shown as `visible` does.
    """
    from torchvision.utils import save_image

    pixels_BVTHW3 = visible(batch["views"][:samples], spec)
    T = pixels_BVTHW3.shape[2]
    chosen = torch.linspace(0, T - 1, min(frames, T)).round().long()
    rows = pixels_BVTHW3[:, :, chosen].flatten(0, 2).movedim(-1, 1)
    save_image(rows / 255, path, format="png", nrow=len(chosen), padding=2)
