"""What the loader is set to, and what is said when the loop waits for it."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import objectives
from pipelines.backends import BACKENDS, MANY_CORES, BackendSettings
from shards import Dataset
from tests.training.harness import TOY, train
from training import speed as loader_speed
from training.run import Run
from training.settings import Settings
from training.speed import PATIENCE, Speed, Waiting, advice, cores, settle

VDIM = objectives.get("vdim")
SPEC = VDIM.view_spec(VDIM.small())


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One process, and a cache folder without findings."""
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(loader_speed.os, "sched_getaffinity", lambda _: {0, 1})


def settings(**given: object) -> Settings:
    return Settings(objective="vdim", steps=1, batch_size=2, **given)  # type: ignore[arg-type]


def test_without_a_finding_there_are_defaults(run: Run) -> None:
    speed = settle(settings(device="cpu"), SPEC, run.dataset)
    assert speed == Speed(BackendSettings("cpu", threads=cores()), 2, speed.origin)
    assert (
        speed.origin == f"loader: --device cpu (given), --threads {cores()} (default), --prefetch 2 (default)"
    )


def test_what_autotune_found_is_taken_and_what_is_given_wins(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader_speed.note_tuned("vdim", SPEC, {"device": "cpu", "threads": 6, "prefetch": 5})
    speed = settle(settings(), SPEC, run.dataset)
    assert (speed.backend.name, speed.backend.threads, speed.prefetch) == ("cpu", 6, 5)
    assert speed.origin.count("found by --autotune") == 3
    speed = settle(settings(threads=1, prefetch=0), SPEC, run.dataset)
    assert (speed.backend.name, speed.backend.threads, speed.prefetch) == ("cpu", 1, 0)
    assert "--threads 1 (given), --prefetch 0 (given)" in speed.origin
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert settle(settings(), SPEC, run.dataset).backend.threads == 1  # of six for four processes
    other = objectives.get("dpc").view_spec(objectives.get("dpc").small())
    assert "found" not in settle(settings(), other, run.dataset).origin


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a GPU")
def test_a_finding_for_what_is_out_of_reach_is_left_aside(run: Run) -> None:
    loader_speed.note_tuned("vdim", SPEC, {"device": "gpu", "threads": 6, "prefetch": 5})
    for device in ("auto", "cpu"):
        assert settle(settings(device=device), SPEC, run.dataset).prefetch == 2


def test_a_word_is_due_once_in_a_while() -> None:
    waiting, steps = Waiting(), 10
    said = [n for n in range(1, 1000) if waiting.judge(0.2, steps)]
    assert said == [5, 55, 555]  # after 50 steps, 500 more, and 5,000 more
    assert not Waiting().judge(0.9, 10 * PATIENCE)  # the first batch is in a run's first line


def test_no_word_where_the_wait_does_not_stay() -> None:
    waiting = Waiting()
    assert not any(waiting.judge(0.2 if n % 5 else 0.05, 10) for n in range(1000))


@pytest.fixture(scope="module")
def run(data: Path) -> Run:
    dataset = Dataset(data)
    return Run(Path(), dataset, np.arange(len(dataset)), np.array([], np.int64), {}, None)


def advised(run: Run, speed: Speed, late: float = 1.0, **given: object) -> str:
    return "; ".join(advice(settings(**given), speed, run, SPEC, late))


def test_advice_follows_what_is_known(run: Run) -> None:
    enough = Speed(BackendSettings("cpu", threads=cores()), 2)
    assert "--prefetch" not in advised(run, enough) and "--threads" not in advised(run, enough)
    assert "--prefetch 4" in advised(run, enough, late=0.2)
    assert "--prefetch 2" in advised(run, Speed(BackendSettings("cpu", threads=cores()), 0))
    assert "--autotune --objective vdim --data" in advised(run, enough)
    assert "--cache host --cache-gib 1" in advised(run, enough)
    assert "--cache" not in advised(run, enough, cache="host")
    assert "--clips-per-decode" not in advised(run, enough, clips_per_decode=2)
    assert "make_shards" not in advised(run, enough)  # 144 pixels are no more than VDIM needs
    loader_speed.note_tuned("vdim", SPEC, {"device": "cpu", "threads": 1, "prefetch": 2})
    assert "--autotune" not in advised(run, enough)


def test_more_threads_only_where_there_are_cores(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert "--threads 8" in advised(run, Speed(BackendSettings("cpu", threads=2), 2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "--threads" not in advised(run, Speed(BackendSettings("cpu", threads=2), 2))


def test_the_faster_decoder_is_advised() -> None:
    def advice(name: str, cores: int) -> list[str]:
        others = [other for other in BACKENDS if other != name]
        return BACKENDS[name].advice(BackendSettings(name, threads=cores), cores, others)

    assert advice("hybrid", MANY_CORES) == advice("gpu", 2) == []
    assert advice("gpu", MANY_CORES) == advice("cpu", MANY_CORES) == ["--device hybrid"]
    assert advice("hybrid", 2) == advice("cpu", 2) == ["--device gpu"]


def test_advice_names_flags_that_there_are(run: Run) -> None:
    known = {"--" + field.name.replace("_", "-") for field in fields(Settings)} | {"--autotune", "--for"}
    for name in BACKENDS:
        words = advised(run, Speed(BackendSettings(name, threads=1), 0), late=0.0)
        assert set(re.findall(r"--[a-z-]+", words)) <= known


def test_a_run_that_waits_says_so_once(data: Path, tmp_path: Path) -> None:
    """Nothing is made ahead, so every step waits for its whole batch."""
    done = train(
        *(*TOY, "--data", data, "--output", tmp_path / "run", "--prefetch", 0),
        *("--steps", 60, "--log-every", 20),
    )
    assert done.status == 0, done.said
    assert "loader: --device cpu (given), --threads 2 (given), --prefetch 0 (given)" in done.said
    (line,) = [line for line in done.said.splitlines() if "of the time is spent waiting for data" in line]
    assert re.search(r"step 60: \d+% .*; try --prefetch 2; try ", line), line
