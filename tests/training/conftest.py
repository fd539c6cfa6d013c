"""A rendered data set, and a copy of it with other videos."""

from pathlib import Path

import pytest

from shards import demo


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 clips of 120 frames, 176×144: no method leaves one out."""
    return demo.render(tmp_path_factory.mktemp("data") / "set", clips_per_class=(2, 1), frames=120, workers=2)


@pytest.fixture(scope="session")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.render(
        tmp_path_factory.mktemp("data") / "other", clips_per_class=(1, 1), frames=20, seed=5, workers=2
    )
