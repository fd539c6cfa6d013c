"""Trackers: where a run's metrics go besides metrics.jsonl, through Accelerate's tracker classes.

wandb, mlflow and trackio keep a run's id in OUTPUT/trackers.json, so that a resumed run goes on in the same place.
"""

import importlib
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from shards import InputError
from shards.atomic import atomic_write
from shards.documents import TEXT, Each, one_line_of, read_json

IDS = "trackers.json"
_ID_OF: dict[str, Callable[[Any], str]] = {
    "wandb": lambda run: run.id,
    "mlflow": lambda run: run.info.run_id,
    "trackio": lambda run: run.name,
}


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

    flags: what a new tracker is told of the run. step: the run goes on after it.
    Raises InputError where a tracker cannot start, OSError where nothing can be written.
    """
    path = output / IDS
    ids = (
        dict(read_json(path, Each(TEXT, TEXT), "remove it: the trackers begin new runs"))
        if path.exists()
        else {}
    )
    opened: list[tuple[GeneralTracker, bool]] = []
    for name in names:
        if name == "none":
            continue
        known = name in ids
        opened.append((_open(name, output, ids.get(name), step), known))
        if not known:
            opened[-1][0].store_init_configuration(flags)
            ids[name] = _ID_OF.get(name, lambda run: "")(opened[-1][0].tracker)
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
