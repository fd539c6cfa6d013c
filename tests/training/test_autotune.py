"""What --autotune found is found again on the same machine for the same spec, and nowhere else."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.views import ViewSpec
from shards import InputError
from training import speed

SPEC = ViewSpec(offsets=((0, 1, 2), (3, 4, 5)), size=64)
FOUND = {"device": "cpu", "threads": 3, "prefetch": 4}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_recorded_is_found_for_the_same_plan_alone() -> None:
    assert speed.find_tuned("dpc", SPEC) is None
    speed.note_tuned("dpc", SPEC, FOUND)
    speed.note_tuned("vdim", SPEC, FOUND | {"threads": 1})
    assert speed.find_tuned("dpc", replace(SPEC, flip=0.0)) == FOUND
    assert speed.find_tuned("vdim", SPEC) == FOUND | {"threads": 1}
    assert speed.find_tuned("dpc", replace(SPEC, size=128)) is None
    assert speed.find_tuned("dpc", replace(SPEC, modality="flow")) is None
    speed.note_tuned("dpc", SPEC, FOUND | {"prefetch": 0})
    assert speed.find_tuned("dpc", SPEC) == FOUND | {"prefetch": 0}


def test_another_machine_has_findings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    speed.note_tuned("dpc", SPEC, FOUND)
    monkeypatch.setattr(speed, "machine", lambda: "another")
    assert speed.find_tuned("dpc", SPEC) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"m": 1}', '{"m": {"p": {"device": "tpu", "threads": 1, "prefetch": 1}}}']
)
def test_a_file_that_is_something_else_is_named(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / speed.TUNED).write_text(text)
    with pytest.raises(InputError, match=r"tuned\.json.*--autotune.*remove it"):
        speed.find_tuned("dpc", SPEC)
