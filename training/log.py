"""What a run writes down of itself: metrics.jsonl, and the same for TensorBoard."""

import json
import os
import time
from pathlib import Path
from typing import IO, Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from shards import InputError
from shards.atomic import atomic_write
from shards.documents import TEXT, AllOf, Each, Is, read_json_lines, whole

_LINE = AllOf({"step": whole(0)}, Each(TEXT, Is("a number", lambda value: type(value) in (int, float))))


class Log:
    """Lines of metrics, each flushed. A run that is resumed forgets the lines after its checkpoint's step.

    TensorBoard's own writer has a thread that prints a traceback of its own when the disk is full; its records are
    written here without one. Raises InputError where the folder cannot be written to.
    """

    def __init__(self, output: Path, step: int) -> None:
        self._output = output
        self._files: list[IO[Any]] = []
        try:
            _forget_lines_after(output / "metrics.jsonl", step)
            (output / "tensorboard").mkdir(exist_ok=True)
            self._files.append((output / "metrics.jsonl").open("a"))
            self._files.append(
                (output / f"tensorboard/events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("wb")
            )
            self._records = RecordWriter(self._files[1])
            self._record(Event(file_version="brain.Event:2"))
            self._record(
                Event(session_log=SessionLog(status=SessionLog.START), step=step + 1)
            )  # later ones are void
        except OSError as error:
            self.close()
            raise self._refused(error) from error

    def write(self, line: dict[str, float]) -> None:
        """line["step"], and the values to note for it."""
        step = int(line["step"])
        values = [
            Summary.Value(tag=name, simple_value=value) for name, value in line.items() if name != "step"
        ]
        try:
            self._files[0].write(json.dumps(line) + "\n")
            self._record(Event(summary=Summary(value=values), step=step))
            for file in self._files:
                file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        for file in self._files:
            try:
                file.close()
            except OSError:  # a full disk was reported by write; a failed close has closed the file as well
                continue

    def _record(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def _refused(self, error: OSError) -> InputError:
        return InputError(
            f"--output {self._output}: metrics cannot be written ({error.strerror}); make room and go on with --resume"
        )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, but a last one that was cut off. Raises InputError where it holds something else."""
    return read_json_lines(path, _LINE, "remove that line, or the file")


def _forget_lines_after(path: Path, step: int) -> None:
    kept = "".join(json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step)
    if kept.encode() != path.read_bytes():
        with atomic_write(path) as aside:
            aside.write_text(kept)
