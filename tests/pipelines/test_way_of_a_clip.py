"""docs/guides/extend.md lists the files that a clip crosses from its bytes to its loss: those that run, and no other."""

import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import objectives
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from shards import Dataset

ROOT = Path(__file__).parents[2]


def listed() -> tuple[list[str], set[str]]:
    """The files of the way, and those that are called on it."""
    guide = (ROOT / "docs/guides/extend.md").read_text()
    section = guide.split("## The way of a clip")[1].split("\n## ")[0]
    way = re.findall(r"^\d+\. `([^`]+)`", section, re.M)
    called = [
        name for line in re.findall(r"^- (.*)$", section, re.M) for name in re.findall(r"`([^`]+\.py)`", line)
    ]
    return way, set(called)


def test_the_way_of_a_clip_is_the_one_in_the_guide(dataset: Dataset) -> None:
    method = objectives.get("dpc")
    objective = method(replace(method.small(), padding="repeat_last"))
    sampler = TrainSampler(dataset, np.arange(len(dataset)), method.view_spec(objective.config), 2)
    ran: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and file.is_relative_to(ROOT):
            ran.add(str(file.relative_to(ROOT)))

    with Loader(dataset, sampler, prefetch=0) as loader:
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            out = objective(next(loader))
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    assert torch.isfinite(out.loss)
    way, called = listed()
    assert len(way) == len(set(way)) <= 16
    rooms = {name for name in ran if not name.startswith((".venv", "tests"))}
    assert rooms == set(way) | called
