"""On a GPU: videos kept in its memory, and NVDEC beside the CPU, show what the CPU shows."""

from itertools import islice
from typing import Any

import pytest
import torch

from pipelines.backends import available, choose_backend
from pipelines.backends.cpu import CachedBackend
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, InputError, demo
from tests.pipelines.reference import loader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
SPEC = ViewSpec(offsets=((0, 2, 4), (8, 9, 10)), size=64, jitter=Jitter(), box_scope="view", rotation=5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(demo.render(tmp_path_factory.mktemp("demo"), clips_per_class=(1, 1), frames=40, workers=2))


def batches(dataset: Dataset, backend: str, **options: Any) -> list[dict[str, Any]]:
    try:
        choose_backend(backend)
    except InputError as error:
        pytest.skip(str(error))
    with loader(dataset, SPEC, backend=backend, on_cpu_dali=False, **options) as made:
        found = list(islice(made, 6))
        assert all(batch["views"].isfinite().all() for batch in found)
        return found


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "hybrid", "cache": "gpu", "cache_gib": 1},
        {"backend": "gpu", "cache": "gpu", "cache_gib": 0.01},  # seven of twelve
        {"backend": "gpu", "cache": "host", "cache_gib": 1},
        {"backend": "gpu", "clips": 2},
    ],
)
def test_an_option_shows_what_the_cpu_shows(dataset: Dataset, options: dict[str, Any]) -> None:
    clips = options.get("clips", 1)
    found, expected = batches(dataset, **options), batches(dataset, "cpu", clips=clips)
    for one, other in zip(found, expected, strict=True):
        assert one["key"] == other["key"] and one["views"].device.type == "cuda"
        difference = (one["views"].cpu() - other["views"]).abs()
        assert difference.mean() < 0.02 and difference.mean((2, 3, 4, 5)).max() < 0.05


def test_kept_videos_take_no_more_than_is_said(dataset: Dataset) -> None:
    before = torch.cuda.memory_allocated()
    with loader(dataset, SPEC, backend="hybrid", on_cpu_dali=False, cache="gpu", cache_gib=1) as made:
        for _ in islice(made, 6):
            pass
        assert isinstance(made.backend, CachedBackend)
        kept = int(made.backend.cache.sizes.sum())
        assert kept <= torch.cuda.memory_allocated() - before < 1.2 * kept + 2**22


def test_a_batch_that_the_model_still_reads_is_not_written_over(dataset: Dataset) -> None:
    """The host lets go of a batch long before the GPU has read it, while the next ones are made."""
    device = torch.device("cuda", torch.cuda.current_device())
    for backend in available():
        with loader(dataset, SPEC, backend=backend, on_cpu_dali=False, device=device, prefetch=4) as made:
            expected = [batch["views"].double().sum().item() for batch in islice(made, 12)]
        with loader(dataset, SPEC, backend=backend, on_cpu_dali=False, device=device, prefetch=4) as made:
            sums = []
            for batch in islice(made, 12):
                torch.cuda._sleep(100_000_000)  # cycles: some 50 ms
                sums.append(batch["views"].double().sum())
                del batch
            assert [one.item() for one in sums] == expected, backend


def test_the_host_waits_for_nothing(dataset: Dataset) -> None:
    """The thread that trains takes its batches without a synchronisation."""
    device = torch.device("cuda", torch.cuda.current_device())
    for backend in available():
        with loader(dataset, SPEC, backend=backend, on_cpu_dali=False, device=device) as made:
            next(made)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in islice(made, 4):
                    pass
            finally:
                torch.cuda.set_sync_debug_mode("default")
