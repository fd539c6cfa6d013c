"""Sweeps and autotune: what is tried, what is left out and why, and which flags win."""

from dataclasses import replace

import pytest
import torch

import objectives
from benchmarks.loader import sweep
from benchmarks.loader.parts import Options
from benchmarks.loader.rounds import Figures, Part, Source
from shards import Dataset, InputError

OPTIONS = Options("cpu", 2)


@pytest.fixture
def source(rendered: Dataset) -> Source:
    cls = objectives.get("pace")
    return Source(rendered, rendered.select(), replace(cls.view_spec(cls.small()), size=32), 2, seed=0)


def test_axes() -> None:
    words = ("threads=1,2", "prefetch=0", "batch-size=4", "device=cpu,gpu")
    assert sweep.parse_axes(words) == {
        "threads": [1, 2],
        "prefetch": [0],
        "batch_size": [4],
        "device": ["cpu", "gpu"],
    }


@pytest.mark.parametrize(
    "word",
    [
        "threads",
        "threads=",
        "threads=0",
        "threads=two",
        "device=tpu",
        "device=cpu,",
        "views=2",
        "cache=disk",
        "prefetch=-1",
    ],
)
def test_a_senseless_axis_is_named(word: str) -> None:
    with pytest.raises(InputError, match=f"--sweep {word}: give threads="):
        sweep.parse_axes((word,))


def test_a_sweep_tries_all_combinations_and_says_what_it_leaves_out(source: Source) -> None:
    axes = sweep.parse_axes(("threads=1,2", "batch_size=1,4", "device=cpu,gpu"))
    found = sweep.sweep(source, OPTIONS, axes, rounds=1, batches=1)
    assert len(found) == 8 and {(f["threads"], f["batch_size"], f["device"]) for f in found} == {
        (threads, size, device) for threads in (1, 2) for size in (1, 4) for device in ("cpu", "gpu")
    }
    for figures in found:
        if figures["device"] == "cpu" or torch.cuda.is_available():
            assert figures["clips_per_s"] > 0
        else:
            assert "--device gpu" in figures["left_out"]


def test_a_sweep_over_options_of_training(source: Source) -> None:
    axes = sweep.parse_axes(("clips_per_decode=1,2,3", "cache=none,host,gpu"))
    found = sweep.sweep(source, OPTIONS, axes, rounds=1, batches=1)
    left_out = {(f["clips_per_decode"], f["cache"]) for f in found if "left_out" in f}
    assert left_out == {(3, "none"), (3, "host"), (1, "gpu"), (2, "gpu"), (3, "gpu")}  # 3 do not divide 2
    assert all(figures["clips_per_s"] > 0 for figures in found if "left_out" not in figures)


def test_autotune_takes_the_least_that_is_as_good_as_the_best(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretended(_source: Source, options: Options, _batches: int) -> Part:
        def part(_: int) -> Figures:
            rate = (
                100 * min(options.threads, 4) if options.threads < 8 else 405
            )  # 8 threads: 1 % faster than 4
            return {"clips_per_s": rate - (50.0 if options.prefetch < 2 else 0.0)}

        return part

    monkeypatch.setattr(sweep, "loader_alone", pretended)
    monkeypatch.setattr(sweep.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(sweep, "available", lambda dataset: ["cpu"])
    best, tried = sweep.autotune(source, OPTIONS, None, rounds=1, batches=1)
    assert best == {"device": "cpu", "threads": 4, "prefetch": 2}
    assert {one["threads"] for one in tried} == {2, 4, 8, 16} and {one["prefetch"] for one in tried} == {
        1,
        2,
        4,
    }
