"""What --autotune found is found again on the same machine for the same spec, and nowhere else."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.views import ViewSpec
from shards import InputError
from training import autotune as tuned

SPEC = ViewSpec(offsets=((0, 1, 2), (3, 4, 5)), size=64)
FOUND = tuned.Tuned(device="cpu", threads=3, prefetch=4)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_recorded_is_found_for_the_same_plan_alone() -> None:
    assert tuned.lookup("dpc", SPEC) is None
    tuned.record("dpc", SPEC, FOUND, clips_per_s=12.5)
    tuned.record("vdim", SPEC, FOUND | {"threads": 1})
    assert tuned.lookup("dpc", replace(SPEC, flip=0.0)) == FOUND
    assert tuned.lookup("vdim", SPEC) == FOUND | {"threads": 1}
    assert tuned.lookup("dpc", replace(SPEC, size=128)) is None
    assert tuned.lookup("dpc", replace(SPEC, modality="flow")) is None
    tuned.record("dpc", SPEC, FOUND | {"prefetch": 0})
    assert tuned.lookup("dpc", SPEC) == FOUND | {"prefetch": 0}


def test_another_machine_has_findings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.record("dpc", SPEC, FOUND)
    monkeypatch.setattr(tuned, "machine", lambda: "another")
    assert tuned.lookup("dpc", SPEC) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"m": 1}', '{"m": {"p": {"device": "tpu", "threads": 1, "prefetch": 1}}}']
)
def test_a_file_that_is_something_else_is_named(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / tuned.FILE).write_text(text)
    with pytest.raises(InputError, match=r"tuned\.json.*--autotune.*remove it"):
        tuned.lookup("dpc", SPEC)
