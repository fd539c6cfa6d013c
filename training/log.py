"""What a run notes of itself: metrics.jsonl, which is the truth, and the same for the trackers that it was given."""

import errno
import json
import logging
from pathlib import Path
from typing import IO, Any

from accelerate.tracking import GeneralTracker

from shards import InputError
from shards.atomic import atomic_write
from shards.documents import TEXT, AllOf, Each, Is, one_line_of, read_json_lines, whole
from training.trackers import open_trackers

log = logging.getLogger(__name__)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_LINE = AllOf({"step": whole(0)}, Each(TEXT, Is("a number", lambda value: type(value) in (int, float))))


class Log:
    """Lines of metrics, each flushed.

    step: a run that is resumed forgets the lines after its checkpoint's step. A tracker that had them already is not told
    them again, and one that the run did not have before is told all of them. flags: what a tracker is told of the run.
    Raises InputError where the folder cannot be written to, or a tracker cannot start.
    """

    def __init__(
        self, output: Path, step: int, trackers: tuple[str, ...] = (), flags: dict[str, Any] | None = None
    ) -> None:
        self._output = output
        self._file: IO[str] | None = None
        self._trackers: list[GeneralTracker] = []
        self._sent: dict[str, int] = {}  # tracker → the last step that it was told
        path = output / "metrics.jsonl"
        try:
            lines = read_metrics(path)
            kept = [line for line in lines if line["step"] <= step]
            _write_lines(path, kept)
            self._file = path.open("a")
            for tracker, known in open_trackers(trackers, output, flags or {}, step):
                self._trackers.append(tracker)
                begins_over = not known or tracker.name == "tensorboard"  # it drops later steps itself
                self._sent[tracker.name] = int(max((one["step"] for one in lines), default=0)) * (
                    not begins_over
                )
                for line in kept if not known else []:
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
        if step <= self._sent[tracker.name]:
            return
        try:
            tracker.log({name: value for name, value in line.items() if name != "step"}, step=step)
        except Exception as error:  # a service that is away must not end the run
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            log.warning(
                "--tracker %s fails and is told no more (metrics.jsonl has it all): %s",
                tracker.name,
                one_line_of(error),
            )
            self._trackers.remove(tracker)

    def close(self) -> None:
        try:
            if self._file:
                self._file.close()
        except OSError:  # a full disk was reported by write; a failed close has closed the file as well
            pass
        trackers, self._trackers = self._trackers, []
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


def _write_lines(path: Path, lines: list[dict[str, float]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if text.encode() != path.read_bytes():
        with atomic_write(path) as temporary:
            temporary.write_text(text)
