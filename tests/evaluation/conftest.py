"""A small data set, and a checkpoint of a network that takes milliseconds."""

from pathlib import Path

import pytest
import torch

import objectives
from objectives import checkpoint
from tests.evaluation.rendered import Video, write_set

LENGTHS = (1, 5, 50)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; 4 videos each for training, and for tests one each of 1, 5 and 50 frames."""
    videos = [Video(label, "train", 12 + number) for label in range(3) for number in range(4)]
    videos += [Video(label, "test", frames) for label in range(3) for frames in LENGTHS]
    return write_set(tmp_path_factory.mktemp("data") / "colours", videos)


def save(name: str, config: object, folder: Path) -> Path:
    """An untrained checkpoint in the layout of a run."""
    torch.manual_seed(0)
    objective = objectives.get(name)(config)
    step = folder / "checkpoints" / "step-00000001"
    with checkpoint.written(step, objective, {}):
        pass
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DPC with a hair of a network: 3 blocks of 2 frames, 34²."""
    config = objectives.get("dpc").Config(width=0.05, size=34, blocks=3, frames=2, stride=2, pred_steps=1)
    return save("dpc", config, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def memory_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MemDPC with 8 slots, as small."""
    config = objectives.get("memdpc").Config(
        width=0.05, size=34, blocks=3, frames=2, stride=2, pred_steps=1, memory_size=8
    )
    return save("memdpc", config, tmp_path_factory.mktemp("runs") / "slots")
