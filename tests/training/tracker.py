"""A tracker of somebody's own, that notes what it is told in a file. Imported by forked runs only."""

import json
import os
from pathlib import Path

from accelerate.tracking import GeneralTracker


class Noted(GeneralTracker):
    name = "noted"
    requires_logging_directory = True

    def __init__(self, project: str, output: str) -> None:
        super().__init__()
        self.path = Path(output) / "noted.jsonl"

    def start(self) -> None:
        self.file = self.path.open("a")

    @property
    def tracker(self):
        return self.file

    def store_init_configuration(self, values: dict) -> None:
        self._note({"flags": values})

    def log(self, values: dict, step: int | None, **_) -> None:
        if step == int(os.environ.get("NOTED_FAILS_AT", "-1")):
            raise ConnectionError("the service is away")
        self._note({"step": step, **values})

    def finish(self) -> None:
        self.file.close()

    def _note(self, line: dict) -> None:
        print(json.dumps(line), file=self.file, flush=True)
