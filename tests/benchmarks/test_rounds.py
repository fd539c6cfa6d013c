"""Rounds take turns, and their figures are medians."""

import threading

import pytest

from benchmarks.loader.rounds import Figures, GpuMonitor, Usage, in_turns, medians, ratio


def test_parts_take_turns_and_all_see_a_rounds_samples() -> None:
    calls: list[tuple[str, int]] = []

    def part(name: str):
        def run(first: int) -> Figures:
            calls.append((name, first))
            return {"clips_per_s": float(len(calls))}

        return run

    found = in_turns({"a": part("a"), "b": part("b")}, rounds=3, samples=10, title="test")
    assert calls == [("a", 0), ("b", 0), ("a", 10), ("b", 10), ("a", 20), ("b", 20)]
    assert [figures["clips_per_s"] for figures in found["b"]] == [2, 4, 6]


def test_medians_and_ratios_over_rounds() -> None:
    ours = [
        {"clips_per_s": 10.0, "gpu": None},
        {"clips_per_s": 1.0, "gpu": None},
        {"clips_per_s": 8.0, "gpu": None},
    ]
    theirs = [{"clips_per_s": 5.0}, {"clips_per_s": 1.0}, {"clips_per_s": 2.0}]
    assert medians(ours) == {"clips_per_s": 8.0, "gpu": None}
    assert ratio(ours, theirs) == 2.0  # of 2, 1 and 4: a slow round weighs on both


def test_a_gpu_is_monitored_in_the_timed_span_alone() -> None:
    looks: list[int] = []
    three = threading.Event()

    def look() -> Usage:
        looks.append(len(looks) % 2)
        if len(looks) == 3:
            three.set()
        return Usage(looks[-1], 0.25, 10.0, 4.0)

    monitor = GpuMonitor(look)
    assert monitor.least > 0 and not looks  # nothing is looked at before
    with monitor:
        three.wait()
    seen = len(looks)
    figures = monitor.figures()
    assert figures["gpu_use"] == pytest.approx(sum(looks) / len(looks)) and figures["nvdec_use"] == 0.25
    assert (figures["device_gib"], figures["beside_torch_gib"]) == (10, 6)
    assert len(looks) == seen  # nor afterwards
