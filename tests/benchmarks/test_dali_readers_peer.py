"""The peer with DALI's own readers: its graph is defined for NVDEC, and runs where DALI decodes on a CPU."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nvidia.dali import Pipeline

import objectives
from benchmarks.loader.dali_readers_peer import dali_readers, define
from benchmarks.loader.decoders import dali_nvdec
from benchmarks.loader.parts import Options
from benchmarks.loader.rounds import Source
from shards import Dataset, InputError
from shards.table import publish
from shards.tar import Sample, write_shard
from shards.video.encode import Encoding
from shards.video.transcode import transcode

OPTIONS = Options("cpu", 1)
SPECS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in objectives.available()),
    ("tcp", {"modality": "difference"}),
    ("tcp", {"modality": "flow"}),
    ("vdim", {"colour": "lab", "rotation": 15.0}),
]


def source_of(dataset: Dataset, name: str, changes: dict[str, Any]) -> Source:
    cls = objectives.get(name)
    return Source(dataset, dataset.select(), cls.view_spec(cls.Config(**changes)), 2, seed=0)


@pytest.mark.parametrize(
    ("name", "changes"), SPECS, ids=lambda case: case if isinstance(case, str) else "-".join(case)
)
def test_its_graph_is_defined(rendered: Dataset, name: str, changes: dict[str, Any]) -> None:
    with Pipeline(2, 1, 0):
        assert define(source_of(rendered, name, changes)).device == "gpu"


def test_it_says_where_it_cannot_run(rendered: Dataset) -> None:
    with pytest.raises(
        InputError, match="--against dali-readers: DALI's own decoder reads h264 on NVDEC only"
    ):
        dali_readers(source_of(rendered, "pace", {}), OPTIONS, 1)


@pytest.fixture(scope="module")
def vp9(rendered: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two of the videos as VP9."""
    folder: Path = tmp_path_factory.mktemp("vp9")
    encoding = Encoding(codec="vp9", short_side=128)
    samples = []
    for row in range(2):
        clip = transcode(rendered.read(row), encoding)
        facts = {name: getattr(clip, name) for name in ("num_frames", "fps", "width", "height")} | {
            "source": "here"
        }
        samples.append(Sample(f"v{row}", clip.data, facts, 0))
    shard = write_shard(folder, "vp9-000000", samples)
    assert shard is not None
    publish(folder, ["only"], [shard], asdict(encoding), name="vp9")
    return Dataset(folder)


@pytest.mark.parametrize(("name", "changes"), [("dpc", {}), ("pace", {}), ("vdim", {"rotation": 15.0})])
def test_it_runs_on_vp9(vp9: Dataset, name: str, changes: dict[str, Any]) -> None:
    source = source_of(vp9, name, changes)
    assert dali_readers(source, OPTIONS, 1)(0)["clips_per_s"] > 0


def test_the_decoder_alone_runs_on_vp9(vp9: Dataset) -> None:
    figures = dali_nvdec(source_of(vp9, "dpc", {}), replace(OPTIONS, on_cpu_dali=True), 1)(0)
    assert (figures["clips_per_s"] > 0 and figures["nvdec_use"] is None) or torch.cuda.is_available()
