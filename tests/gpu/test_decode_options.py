"""On a GPU: videos kept in its memory, and NVDEC beside the CPU, show what the CPU shows."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from pipelines.graph import choose_placement

from pipelines.loader import Loader
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, InputError, demo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
SPEC = ViewSpec(offsets=((0, 2, 4), (8, 9, 10)), size=64, jitter=Jitter(), box_scope="view", rotation=5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(demo.render(tmp_path_factory.mktemp("demo"), clips_per_class=(1, 1), frames=40, workers=2))


def batches(dataset: Dataset, placement: str, **options: Any) -> list[dict[str, Any]]:
    try:
        chosen = choose_placement(placement)
    except InputError as error:
        pytest.skip(str(error))
    with Loader(dataset, np.arange(12), SPEC, batch_size=4, seed=1, placement=chosen, **options) as made:
        return list(islice(made, 6))


@pytest.mark.parametrize(
    "options",
    [
        {"placement": "hybrid", "cache": "gpu", "cache_gib": 1},
        {"placement": "gpu", "cache": "gpu", "cache_gib": 0.01},  # seven of twelve
        {"placement": "gpu", "cache": "host", "cache_gib": 1},
        {"placement": "gpu", "cpu_share": 0.5},
        {"placement": "gpu", "clips_per_decode": 2},
    ],
)
def test_an_option_shows_what_the_cpu_shows(dataset: Dataset, options: dict[str, Any]) -> None:
    clips = options.get("clips_per_decode", 1)
    found, expected = batches(dataset, **options), batches(dataset, "cpu", clips_per_decode=clips)
    for one, other in zip(found, expected, strict=True):
        assert one["key"] == other["key"] and one["views"].device.type == "cuda"
        difference = (one["views"].cpu() - other["views"]).abs()
        assert difference.mean() < 0.02 and difference.mean((2, 3, 4, 5)).max() < 0.05


def test_kept_videos_take_no_more_than_is_said(dataset: Dataset) -> None:
    before = torch.cuda.memory_allocated()
    with Loader(
        dataset, np.arange(12), SPEC, batch_size=4, placement="hybrid", cache="gpu", cache_gib=1
    ) as made:
        for _ in islice(made, 6):
            pass
        assert made.cache is not None
        kept = int(made.cache.sizes.sum())
        assert kept <= torch.cuda.memory_allocated() - before < 1.2 * kept + 2**22
