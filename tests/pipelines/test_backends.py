"""Backends: all show the same views, a further one is one class, and nobody else asks which one it is."""

import ast
import io
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline

import objectives
import pipelines.backends
from objectives.vdim import VDIM, VDIMConfig
from pipelines.backends import (
    BACKENDS,
    MANY_CORES,
    BackendSettings,
    available,
    choose_backend,
    open_backend,
    settings_for,
)
from pipelines.backends.base import Backend, Rendered, Video, is_device_fault, is_out_of_memory
from pipelines.backends.cpu import CpuBackend, Decoded, Frames
from pipelines.backends.gpu import StreamKind, UnsuitedError, stated_colours
from pipelines.decode import decode_frames
from pipelines.sampler import Sample
from pipelines.transforms.dali import define
from pipelines.views import Jitter, ViewSpec, eval_view
from shards import Dataset, InputError
from shards.tar import indexed
from shards.video.encode import Encoding
from shards.video.mp4 import DecodeError
from shards.video.transcode import transcode
from tests.pipelines.reference import Encoded, flow_video, loader, made, params_for, render
from tests.pipelines.test_loader import assert_same
from tests.pipelines.test_modalities import DPC, JITTER, PACE, TCP

ROOT = Path(__file__).parents[2]
STRONG = Jitter(0.4, 0.4, 0.4, 0.2, probability=0.9, grey=0.3)
SPEC = ViewSpec(offsets=((0, 2, 4), (8, 9, 10)), size=32, jitter=Jitter(), box_scope="view")
SOURCES: Any = pytest.mark.parametrize("source", ["pixels", "frames"])


DALI_SAYS = "CUDA runtime API error cudaErrorMemoryAllocation (2): out of memory"
FAULTS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(f"Error in GPU operator `nvidia.dali.fn.resize`: {DALI_SAYS}"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9999999999 bytes"),
]
faults = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault)[:40])


# --- the graphs of a GPU, as far as a machine without one can go


@SOURCES
@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("objective", objectives.available())
def test_gpu_graphs_of_every_objective_are_defined(objective: str, source: Any, clips: int) -> None:
    method = objectives.get(objective)
    for config in (method.Config(), method.small()):
        spec = method.view_spec(config)
        for one in (spec, eval_view(spec)):
            with Pipeline(4, 2, 0):
                assert define(one, source, clips=clips).device == "gpu"


@SOURCES
@pytest.mark.parametrize(
    "spec",
    [
        *(
            VDIM.view_spec(config)
            for config in (
                VDIMConfig(temporal_difference=False),
                VDIMConfig(colour="lab"),
                VDIMConfig(rotation=15.0, offset=32, downsample=3),
                VDIMConfig(colour="lab", rotation=15.0, temporal_difference=False, downsample=1),
            )
        ),
        DPC,
        replace(DPC, area=(0.5, 1.0), crop=None, jitter=replace(JITTER, grey_from="channel")),
        replace(DPC, modality="flow"),
        TCP,
        replace(TCP, channel_drop=True),
        replace(TCP, modality="difference"),
        replace(TCP, modality="difference", rotation=10.0),
        replace(TCP, modality="flow"),
        PACE,
        replace(PACE, levels="bgr-255"),
    ],
)
def test_gpu_graphs_of_other_specs_are_defined(spec: ViewSpec, source: Any) -> None:
    with Pipeline(4, 2, 0):
        assert define(spec, source).device == "gpu"


@pytest.mark.parametrize("kind", ["hybrid", "gpu"])
@pytest.mark.parametrize("extra", [{"jitter": STRONG}, {"lab_drop": True}, {"rotation": 20.0}])
@pytest.mark.parametrize("padding", ["repeat_last", "wrap"])
@pytest.mark.parametrize("groups", [(0, 1, 1), (0, 1, 0), (0, 0, 0)])
def test_dalis_graphs_on_the_cpu_show_the_same_views(
    vp9_folder: Path, extra: dict, padding: Any, groups: tuple[int, ...], kind: str
) -> None:
    dataset = Dataset(vp9_folder)
    spec = ViewSpec(
        offsets=((0, 5, 9), (20, 33, 45), (3, 4, 44)), size=64, box_scope="view", colour_scope="view",
        groups=groups, padding=padding, **extra,
    )  # fmt: skip
    rows = [0, 2, 5]
    whole = params_for(spec, dataset, rows, seed=1)
    batch_params, videos = [whole.sample(i) for i in range(3)], [dataset.read(row) for row in rows]
    assert whole.flips.any() and not whole.flips.all()
    found, expected = (render(made(name, spec, 3), batch_params, videos) for name in (kind, "cpu"))
    assert found.shape == expected.shape and found.stride() == expected.stride()
    difference = (found - expected).abs()
    assert difference.mean() < 0.02
    # each frame of each view on its own: another frame, box or flip would show; the two scale a bar's sharp edges differently
    assert difference.mean((2, 4, 5)).max() < 0.035
    assert (found - expected.roll(1, 3)).abs().mean(
        (2, 4, 5)
    ).max() > 0.07  # as the frames of another time do


def test_a_box_beyond_the_frame_is_that_videos_fault(dataset: Dataset) -> None:
    """DALI would fail the whole batch."""
    params = params_for(SPEC, dataset, [0]).sample(0)
    sample = Sample(np.zeros(1, np.int64), 0, replace(params, boxes=params.boxes + 400), 1, 0)
    with pytest.raises(DecodeError, match="the box ends at"):
        made("gpu", SPEC, 1).prepare(Encoded(dataset.read(0)), sample, None)


class FakeNvdec:
    """FFmpeg in NVDEC's place, of the file that NVDEC is given. fault: what it raises instead."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.files = fault, 0

    def __call__(self, file: bytes, numbers: np.ndarray, kind: StreamKind) -> tuple[torch.Tensor, ...]:
        self.files += 1
        if self.fault:
            raise self.fault
        frames = Frames.of(Decoded.of(file, numbers.tolist()), torch.device("cpu"))
        assert frames.luma.shape[1:3] == (kind.height, kind.width)
        return frames.luma, frames.chroma


def nvdec_frames(
    dataset: Dataset, fault: Exception | None, video: bytes | None = None, times: int = 1
) -> tuple[Any, Frames]:
    backend: Any = made("gpu", SPEC, 1)
    backend._nvdec = fake = FakeNvdec(fault)
    params = params_for(SPEC, dataset, [0], seed=3).sample(0)
    sample = Sample(np.zeros(1, np.int64), 0, params, 1, 0)
    prepared = [backend.prepare(Encoded(video or dataset.read(0)), sample, None) for _ in range(times)]
    return fake, prepared[-1]


def test_nvdec_is_given_what_shows_the_frames_and_ffmpeg_what_it_fails_on(
    dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    fake, found = nvdec_frames(dataset, None)
    failed, expected = nvdec_frames(dataset, ValueError("a word\nof NVDEC's"))
    assert fake.files == failed.files == 1 and caplog.text.count("a word of NVDEC's") == 1
    assert torch.equal(found.luma, expected.luma) and torch.equal(found.chroma, expected.chroma)
    np.testing.assert_array_equal(found.to_rgb, expected.to_rgb)
    unsuited, _ = nvdec_frames(dataset, UnsuitedError("frames are 10 bit"), times=3)
    assert unsuited.files == 1  # and then no longer
    video = bytearray(dataset.read(0))
    video[len(video) // 3 :] = bytes(len(video) - len(video) // 3)
    with pytest.raises(DecodeError):  # FFmpeg's judgement
        nvdec_frames(dataset, ValueError("?"), bytes(video))


@faults
def test_a_gpu_in_trouble_is_no_bad_video(dataset: Dataset, fault: RuntimeError) -> None:
    with pytest.raises(RuntimeError, match="NVDEC: "):
        nvdec_frames(dataset, fault)


def test_nvdec_is_not_given_a_file_that_cannot_be_trimmed(dataset: Dataset) -> None:
    fragmented = io.BytesIO()
    with av.open(io.BytesIO(dataset.read(0))) as source:
        options = {"movflags": "frag_keyframe+empty_moov"}
        with av.open(fragmented, "w", format="mp4", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    fake, found = nvdec_frames(dataset, None, fragmented.getvalue())
    _, expected = nvdec_frames(dataset, None)
    assert fake.files == 0 and torch.equal(found.luma, expected.luma)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_colours_are_what_the_container_or_the_stream_states(
    dataset: Dataset, tmp_path: Path, codec: Any, full: bool
) -> None:
    video = (
        flow_video(tmp_path / "flow.mp4", np.full((6, 2, 64, 96), 90, np.uint8), codec)
        if full
        else transcode(dataset.read(0), Encoding(codec=codec, short_side=64, preset="ultrafast")).data
    )
    found = indexed(video)
    assert found.index.full_range is full
    silent = replace(found, index=replace(found.index, full_range=None, colorspace=None))
    expected = Frames.of(Decoded.of(video, [0]), torch.device("cpu")).to_rgb
    np.testing.assert_array_equal(stated_colours(found, 3), expected)
    np.testing.assert_array_equal(stated_colours(silent, 3), expected)


def test_nvdec_has_its_threads_whatever_the_cores() -> None:
    assert [BACKENDS[name].threads(2) for name in ("cpu", "hybrid", "gpu")] == [2, 2, 8]
    assert BACKENDS["gpu"].threads(16) == 8


@pytest.mark.parametrize(
    ("cores", "asked", "threads", "processes"),
    [
        (2, {}, 2, 0),
        (2, {"decode_with": "auto"}, 2, 0),
        (2, {"decode_with": "processes"}, 2, 2),
        (4, {"decode_with": "auto"}, 4, 4),
        (16, {"decode_with": "auto", "threads": 3}, 3, 3),
        (16, {"decode_with": "threads"}, 16, 0),
    ],
)
def test_threads_and_processes_suit_the_cores(cores: int, asked: dict, threads: int, processes: int) -> None:
    found = settings_for("cpu", None, cores=cores, **asked)
    assert found == BackendSettings("cpu", threads=threads, processes=processes)


@pytest.mark.parametrize("settings", [{}, {"cache": "host"}, {"cache": "gpu"}])
@pytest.mark.parametrize("backend", ["cpu", "hybrid", "gpu"])
def test_every_backend_loads_the_same_batches(vp9_folder: Path, backend: str, settings: dict) -> None:
    dataset = Dataset(vp9_folder)
    with loader(dataset, SPEC, clips=2) as cpu, loader(
        dataset, SPEC, clips=2, backend=backend, cache_gib=0.01, prefetch=4, **settings
    ) as other:  # fmt: skip
        for one, found in zip(islice(cpu, 9), other, strict=False):
            assert one["key"] == found["key"] and torch.equal(one["label"], found["label"])
            assert found["views"].stride() == one["views"].stride()
            difference = (one["views"] - found["views"]).abs()
            assert difference.mean() < 0.015 and difference.mean((2, 3, 4, 5)).max() < 0.03


# --- a further backend


class ArrayBackend(Backend):
    """A toy: frames decoded beforehand, cropped by indexing; no colour."""

    def __init__(self, spec: ViewSpec, samples: int, videos: dict[int, np.ndarray]) -> None:
        super().__init__(spec, samples, max_clips=1)
        self._videos = videos

    def prepare(self, video: Video, sample: Sample, out: Any) -> torch.Tensor:
        views, frames = self._videos[video.row], sample.params.frames
        steps = np.linspace(0, 1, self.spec.size, endpoint=False)
        found = []
        for numbers, (left, top, width, height) in zip(frames, sample.params.boxes, strict=True):
            down, right = (top + height * steps).astype(int), (left + width * steps).astype(int)
            found.append(views[numbers][:, down][:, :, right])
        return torch.from_numpy(np.stack(found)).permute(0, 4, 1, 2, 3) / 255

    def render(self, samples: list[Sample], prepared: list[torch.Tensor]) -> Rendered:
        return lambda: torch.stack(prepared)


def test_a_toy_backend_trains(dataset: Dataset) -> None:
    torch.manual_seed(0)
    videos = {
        row: np.stack(
            [f.to_ndarray(format="rgb24") for _, f in decode_frames(dataset.read(row), [*range(40)])]
        )
        for row in range(8)
    }
    method = objectives.get("vdim")
    config = method.small()
    spec, objective = replace(method.view_spec(config), jitter=None, lab_drop=False), method(config)
    with loader(dataset, spec, rows=range(8), backend=ArrayBackend(spec, 4, videos)) as batches:
        optimizer = torch.optim.SGD(objective.parameters(), 0.001)
        for batch in islice(batches, 3):
            assert batch["views"].shape[:3] == (4, spec.views, 3) and batch["views"].std() > 0.05
            loss = objective({k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.isfinite()


def test_nobody_else_asks_which_backend_it_is() -> None:
    names = set(pipelines.backends.BACKENDS)
    # DALI's operators have a device that is called cpu or gpu, too
    own = [ROOT / "pipelines" / "backends", ROOT / "pipelines" / "transforms" / "dali.py"]
    folders = ("pipelines", "objectives", "models", "shards", "training", "evaluation", "tools")
    files = [ROOT / "train.py", ROOT / "evaluate.py"]
    files += [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    asked = []
    for file in files:
        if any(file.is_relative_to(path) for path in own):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Compare | ast.MatchValue):
                continue
            # torch's devices, and the peers' decoders
            if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith((".type", "decoder")):
                continue
            sides = [node.value] if isinstance(node, ast.MatchValue) else [node.left, *node.comparators]
            sides += [one for side in sides for one in getattr(side, "elts", [])]
            if any(isinstance(one, ast.Constant) and one.value in names for one in sides):
                asked.append(f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {ast.unparse(node)}")
    assert not asked


# --- a GPU in trouble is no bad video


class Faulty(CpuBackend):
    """A CPU backend whose GPU fails when a batch is begun, or when it is waited for."""

    def __init__(self, spec: ViewSpec, fault: RuntimeError, *, begun: bool) -> None:
        super().__init__(spec, 4, 1)
        self.fault: RuntimeError | None = fault
        self.begun = begun

    def _fail(self) -> None:
        if self.fault:
            raise self.fault

    def render(self, samples: list[Sample], prepared: list[torch.Tensor]) -> Rendered:
        if self.begun:
            self._fail()
        rendered = super().render(samples, prepared)

        def views() -> torch.Tensor:
            if not self.begun:
                self._fail()
            return rendered()

        return views


@faults
@pytest.mark.parametrize("begun", [True, False])
def test_a_fault_of_the_gpu_quarantines_nothing(dataset: Dataset, fault: RuntimeError, begun: bool) -> None:
    assert is_device_fault(fault)
    backend = Faulty(SPEC, fault, begun=begun)
    with loader(dataset, SPEC) as sound, loader(dataset, SPEC, backend=backend) as batches:
        with pytest.raises(type(fault)) as caught:
            next(batches)
        assert caught.value is fault
        assert not batches.failed and not (dataset.path / "quarantine.jsonl").exists()
        backend.fault = None  # there is room again: the same batches come
        for one, other in zip(islice(sound, 3), batches, strict=False):
            assert_same(one, other)


def test_what_is_out_of_memory() -> None:
    assert [is_out_of_memory(fault) for fault in FAULTS] == [
        True,
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    assert is_out_of_memory(MemoryError())
    assert is_device_fault(RuntimeError("cuvidCreateDecoder(&m_hDecoder, &info) returned error 2"))
    assert not is_device_fault(RuntimeError("frames of (216, 176) torch.uint16, not of 8 bits in 4:2:0"))


@pytest.mark.parametrize("concurrent", [1, 2, 3])
def test_no_more_batches_are_under_way_than_a_backend_allows(dataset: Dataset, concurrent: int) -> None:
    class Counting(CpuBackend):
        under_way = most = 0

        def render(self, samples: list[Sample], prepared: list[torch.Tensor]) -> Rendered:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            rendered = super().render(samples, prepared)

            def views() -> torch.Tensor:
                self.under_way -= 1
                return rendered()

            return views

    backend = Counting(SPEC, 4, 1)
    backend.concurrent = concurrent
    with loader(dataset, SPEC, backend=backend, prefetch=6) as batches:
        for _ in islice(batches, 12):
            pass
    assert 1 <= backend.most <= concurrent and backend.under_way == 0


# --- choosing one


def test_choosing_a_backend() -> None:
    assert choose_backend("cpu") == "cpu"
    with pytest.raises(InputError, match="choose one of"):
        choose_backend("tpu")
    if not torch.cuda.is_available():
        assert choose_backend("auto") == "cpu" and available() == ["cpu"]
        for name in ("gpu", "hybrid"):
            with pytest.raises(InputError, match="no CUDA GPU"):
                choose_backend(name)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pipelines.backends, "_missing_of_nvdec", str)


def test_a_gpu_without_its_video_decoder_says_what_the_container_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def out_of_reach(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("pipelines.backends.ctypes.CDLL", out_of_reach)
    with pytest.raises(InputError, match=r"NVIDIA_DRIVER_CAPABILITIES=\S*video"):
        choose_backend("gpu")
    assert choose_backend("auto") == choose_backend("hybrid") == "hybrid"
    assert available() == ["cpu", "hybrid"]


def test_nvdec_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("pipelines.backends.ctypes.CDLL", lambda name: name)
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)  # an import of it fails
    with pytest.raises(InputError, match="pip install PyNvVideoCodec"):
        choose_backend("gpu")
    assert choose_backend("auto", cores=1) == "hybrid"


@pytest.mark.usefixtures("with_gpu")
def test_an_odd_side_is_not_for_nvdec(dataset: Dataset) -> None:
    class Odd(Dataset):
        def column(self, name: str) -> np.ndarray:
            return np.full(len(self), 145) if name == "height" else super().column(name)

    with pytest.raises(InputError, match="odd side"):
        choose_backend("gpu", Odd(dataset.path))
    assert choose_backend("auto", Odd(dataset.path), 1) == "hybrid"


@pytest.mark.usefixtures("with_gpu")
def test_auto_decodes_where_it_is_faster(dataset: Dataset) -> None:
    found = [choose_backend("auto", dataset, cores) for cores in (2, MANY_CORES - 1, MANY_CORES, 64)]
    assert found == ["gpu", "gpu", "hybrid", "hybrid"]
    assert choose_backend("gpu", dataset, 64) == "gpu" and available(dataset) == ["cpu", "hybrid", "gpu"]


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize(
    ("codec", "side", "said"),
    [("mjpeg", 144, "NVDEC does not decode mjpeg"), ("hevc", 142, "hevc from 144 pixels.*videos of 142")],
)
def test_what_nvdec_does_not_take(dataset: Dataset, codec: str, side: int, said: str) -> None:
    class Other(Dataset):
        def column(self, name: str) -> np.ndarray:
            return np.full(len(self), side) if name == "height" else super().column(name)

    other = Other(dataset.path)
    other.info["settings"]["codec"] = codec
    with pytest.raises(InputError, match=said):
        choose_backend("gpu", other)
    assert choose_backend("auto", other, 1) == "hybrid"


@pytest.mark.parametrize(
    "settings",
    [BackendSettings("gpu", cache="gpu", on_cpu_dali=True), BackendSettings("hybrid", on_cpu_dali=True)],
)
def test_settings_make_a_backend(dataset: Dataset, settings: BackendSettings) -> None:
    backend = open_backend(settings, SPEC, 4, 1, dataset, np.arange(18))
    assert bool(backend.describe()) == (settings.cache is not None)
    backend.close()


# --- DALI is not needed for the CPU

WITHOUT_DALI = """
import sys
sys.modules["nvidia.dali"] = None  # importing it fails
"""
LOADS = """
import numpy as np
import objectives, evaluation, evaluate
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from shards import Dataset
for method in objectives.available().values():
    method(method.small())
spec = objectives.get("vdim").view_spec(objectives.get("vdim").small())
dataset = Dataset(sys.argv[1])
for settings in ({}, {"cache": "host"}):
    from pipelines.backends import BackendSettings
    sampler = TrainSampler(dataset, np.arange(18), spec, 4)
    with Loader(dataset, sampler, BackendSettings("cpu", **settings)) as loader:
        assert next(loader)["views"].isfinite().all()
"""
TRAINS = """
import train
sys.exit(train.ended(train.main, sys.argv[1:]))
"""


def without_dali(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DALI + program, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_all_but_the_gpus_backends_load_without_dali(dataset: Dataset) -> None:
    without_dali(LOADS, str(dataset.path))


def test_train_on_a_cpu_without_dali(dataset: Dataset, tmp_path: Path) -> None:
    flags = ["--objective", "vdim", "--small", "--device", "cpu", "--steps", "2", "--batch-size", "2"]
    said = without_dali(TRAINS, *flags, "--data", str(dataset.path), "--output", str(tmp_path / "run"))
    assert (tmp_path / "run" / "encoder.safetensors").exists(), said
