"""On a GPU: NVDEC and the GPU's operators show what PyAV and the CPU's operators show."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.backends import BACKENDS, choose_backend
from pipelines.sampling import ViewParams
from pipelines.views import ViewSpec
from shards import Dataset, InputError, demo
from shards.video.encode import Encoding
from shards.video.transcode import transcode
from tests.pipelines.reference import flow_video, made, params_for, render, write_dataset
from tests.pipelines.test_modalities import DPC, FRAMES, HEIGHT, PACE, TCP, WIDTH, samples

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")

SPECS = {
    "dpc": replace(DPC, size=64),
    "pace": replace(PACE, size=64),
    "tcp": TCP,
    "tcp-drop": replace(TCP, channel_drop=True),
    "tcp-difference": replace(TCP, modality="difference"),
    "rotated": replace(TCP, rotation=15.0),
}


@pytest.fixture(scope="module", params=[0, 2], ids=["no B-frames", "B-frames"])
def h264(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("demo")
    made = Dataset(demo.render(folder / "rendered", clips_per_class=(1, 1), frames=FRAMES, workers=2))
    encoding = Encoding(short_side=144, b_frames=request.param)
    clips = [transcode(made.read(row), encoding) for row in range(len(made))]
    facts = [{"num_frames": c.num_frames, "fps": c.fps, "width": c.width, "height": c.height} for c in clips]
    return Dataset(write_dataset(folder / "encoded", [c.data for c in clips], facts))


def views(spec: ViewSpec, backend: str, videos: list[bytes], batch_params: list[ViewParams]) -> np.ndarray:
    try:
        choose_backend(backend)
    except InputError as error:
        pytest.skip(str(error))
    device = torch.cuda.current_device() if BACKENDS[backend].on_gpu else None
    found = render(made(backend, spec, len(batch_params), device=device), batch_params, videos)
    assert found.device.type == ("cuda" if BACKENDS[backend].on_gpu else "cpu")
    torch.cuda.synchronize()
    return found.cpu().numpy().astype(np.float64)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("backend", ["hybrid", "gpu"])
def test_a_backend_shows_what_the_cpu_shows(h264: Dataset, backend: str, name: str) -> None:
    spec, rows = SPECS[name], [0, 2, 5]
    whole = params_for(spec, h264, rows, seed=1)
    batch_params, videos = [whole.sample(i) for i in range(3)], [h264.read(row) for row in rows]
    found, expected = (views(spec, p, videos, batch_params) for p in (backend, "cpu"))
    difference = np.abs(found - expected)
    assert difference.mean() < (0.002 if backend == "hybrid" else 0.02)
    assert difference.mean((2, 4, 5)).max() < 0.05


@pytest.mark.parametrize("backend", ["hybrid", "gpu"])
def test_flow_keeps_its_full_range(tmp_path: Path, backend: str) -> None:
    t, _, x = np.mgrid[:FRAMES, :HEIGHT, :WIDTH]
    u, v = 2 + 2 * t + 200 * x / WIDTH, 250 - 3 * t - 100 * x / WIDTH
    video = flow_video(tmp_path / "flow.mp4", np.round(np.stack([u, v], 1)).astype(np.uint8))
    spec = replace(TCP, modality="flow")
    batch_params = samples(spec, 3)
    found, expected = (views(spec, p, [video] * 3, batch_params) for p in (backend, "cpu"))
    assert np.abs(found - expected).mean() < 0.01 and np.abs(expected).max() > 0.75
