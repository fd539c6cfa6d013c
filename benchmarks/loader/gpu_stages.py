"""What benchmarks/gpu_day.py measures, stage by stage, in order of worth. docs/guides/gpu.md says how to read it.

A stage is a generator of (name, what measures it); gpu_day.py calls those that are not measured yet.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import objectives
from benchmarks import render
from benchmarks.loader.decoders import dali_nvdec, spdl, spdl_nvdec
from benchmarks.loader.parts import (
    Options,
    decode_alone,
    loader_alone,
    model_alone,
    nvdec_alone,
    random_batch,
    together,
    training_step,
)
from benchmarks.loader.rounds import Figures, GpuMonitor, Part, Source
from benchmarks.report import describe
from objectives.base import ShardSettings
from pipelines.backends import available, choose_backend, in_processes
from shards import Dataset
from shards.atomic import made_once
from shards.several import joined
from training.log import read_metrics

ROOT = Path(__file__).parents[2]
EVEN, UNEVEN = 336, 340  # pixels of width; the second is no multiple of 16
Measurements = Iterator[tuple[str, Callable[[], Figures]]]


@dataclass(frozen=True)
class Day:
    """dry: on a CPU, tiny, with DALI's CPU operators in place of the GPU's. folder: where the videos are kept."""

    dry: bool
    folder: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def batches(self) -> int:
        return 1 if self.dry else 8

    @property
    def methods(self) -> tuple[str, ...]:
        """Objectives whose clips the decoding stages decode."""
        return ("dpc",) if self.dry else ("dpc", "pace", "vdim")

    @property
    def options(self) -> Options:
        cores = len(os.sched_getaffinity(0))
        if self.dry:
            return Options("gpu", cores, device=self.device, prefetch=0, on_cpu_dali=True)
        way = "processes" if in_processes("auto", cores) else "threads"
        return Options("gpu", cores, device=self.device, decode_with=way)

    @property
    def nvdec_options(self) -> Options:
        """The same with as many threads as train.py takes."""
        options = self.options
        return replace(options, threads=options.kind.threads(options.threads))

    def data(self, width: int = EVEN) -> Path:
        """Rendered on first use: 64 videos of ten seconds."""
        videos, frames, codec = ("2", "24", "vp9") if self.dry else ("64", "300", "h264")
        flags = ("--videos", videos, "--frames", frames, "--codec", codec, "--width", str(width))
        workers = ("--workers", str(len(os.sched_getaffinity(0))))
        path = self.folder / f"{width}x256-{codec}-{frames}"
        return made_once(path, lambda out: render.render_in_a_process(out, *flags, *workers))

    def data_for(self, name: str) -> Path:
        """The rendered videos as `make_shards --for NAME` stores them, made on first use."""

        def make(out: Path) -> None:
            with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
                dataset = Dataset(self.data())
                for row in dataset.select():
                    video = Path(folder) / str(row % 4) / f"{row}.mp4"
                    video.parent.mkdir(exist_ok=True)
                    video.write_bytes(dataset.read(row))
                flags = ["--for", name, "--out", str(out), "--workers", str(len(os.sched_getaffinity(0)))]
                command = [sys.executable, "tools/make_shards.py", folder, *flags]
                subprocess.run(command, **_OF_THIS_CHECKOUT, check=True, capture_output=True)

        return made_once(self.data().with_name(f"{self.data().name}-for-{name}"), make)

    def config(self, name: str) -> Any:
        cls = objectives.get(name)
        if not self.dry:
            return cls.Config()
        config = replace(cls.small(), width=0.0625)
        # the few frames of a dry run are fewer than a DPC clip's
        return replace(config, padding="repeat_last") if hasattr(config, "padding") else config

    def source(self, name: str, batch_size: int = 32, width: int = EVEN) -> Source:
        """An objective's clips; rows are repeated where a batch has more."""
        dataset = Dataset(self.data(width))
        size = 2 if self.dry else batch_size
        rows = np.resize(dataset.select(), max(len(dataset), 4 * size))
        return Source(dataset, rows, objectives.get(name).view_spec(self.config(name)), size, seed=0)

    def model(self, name: str) -> objectives.Objective:
        torch.manual_seed(0)
        return objectives.get(name)(self.config(name)).to(self.device)


def machine(day: Day) -> Measurements:
    def facts() -> Figures:
        libraries = {}
        for name in ("libnvcuvid.so.1", "libcuda.so.1"):
            try:
                ctypes.CDLL(name)
                libraries[name] = "loads"
            except OSError as error:
                libraries[name] = str(error)
        query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
        smi = ""
        with suppress(OSError):
            asked = ["nvidia-smi", query, "--format=csv,noheader"]
            smi = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
        return describe() | {"nvidia_smi": smi, "libraries": libraries}

    def backends() -> Figures:
        dataset = Dataset(day.data())
        return {"available": available(dataset), "auto": choose_backend("auto", dataset)}

    yield "facts", facts
    yield "backends", backends


def tests(day: Day) -> Measurements:
    def run() -> Figures:
        chosen = "tests/gpu/test_meter.py" if day.dry else "tests/gpu"  # all skip without a GPU
        flags = [chosen, "-q", "-p", "no:warnings", "-p", "no:cacheprovider"]
        flags += ["-n", "0" if day.dry else str(min(8, day.options.threads))]
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *flags], **_OF_THIS_CHECKOUT, capture_output=True
        )
        return {"exit_status": ended.returncode, "output": ended.stdout[-6000:]}

    yield "tests/gpu", run


def sizes(day: Day) -> Measurements:
    """NVDEC alone, videos of one width, of another, and of both in turns: what it costs to change a decoder's size."""
    for width in (EVEN, UNEVEN):
        source = day.source("dpc", width=width)
        yield f"{width}×256", partial(_timed, nvdec_alone, day, source, day.nvdec_options)
    both = joined([Dataset(day.data(width)) for width in (EVEN, UNEVEN)])
    source = replace(day.source("dpc"), dataset=both, rows=both.select())
    yield "both", partial(_timed, nvdec_alone, day, source, day.nvdec_options)


MODELS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "bf16, channels first": {"channels_last": False},
    "bf16, cudnn.benchmark": {"benchmark": True},
    "tf32": {"precision": "float32", "tf32": True},
    "float32": {"precision": "float32"},
}


def objective(name: str, day: Day) -> Measurements:
    """At the paper's batch: what the cores decode, the loader on each backend, and both with the model."""
    source = day.source(name, objectives.get(name).recipe.batch_size)
    on = {"gpu": day.nvdec_options, "hybrid": replace(day.options, name="hybrid")}
    for way in ("threads", "processes")[: 1 if day.dry else 2]:
        options = replace(on["hybrid"], decode_with=way)
        yield f"decode and crop, {way}", partial(_timed, decode_alone, day, source, options)
    yield "nvdec", partial(_timed, nvdec_alone, day, source, on["gpu"])
    for backend, options in on.items():
        yield f"loader {backend}", partial(_timed, loader_alone, day, source, options)
    for backend, options in on.items():
        yield f"together {backend}, bf16", partial(_together, day, name, source, options)


def model(name: str, day: Day) -> Measurements:
    """The model alone at the paper's batch, under each option. DALI is not needed."""
    source = day.source(name, objectives.get(name).recipe.batch_size)
    for key, options in MODELS.items():
        yield key, partial(_model, day, name, source, **options)


def peers(day: Day) -> Measurements:
    """Other libraries on the same clips: DALI's decoder and SPDL's on NVDEC, beside ours; and SPDL on the CPU."""
    for name in day.methods[:2]:
        source = day.source(name)
        yield f"{name}, ours on NVDEC", partial(_timed, nvdec_alone, day, source, day.nvdec_options)
        yield f"{name}, DALI on NVDEC", partial(_timed, dali_nvdec, day, source)
        for threads in (7, 14) if not day.dry else ():
            key = f"{name}, SPDL on NVDEC, {threads} threads"
            yield key, lambda s=source, t=threads: spdl_nvdec(s, t, day.batches)(0)
        yield f"{name}, decode and crop", partial(_timed, decode_alone, day, source)
        yield f"{name}, SPDL on the CPU", lambda s=source: spdl(s, day.options.threads, day.batches)(0)


def run(name: str, seconds: float, day: Day) -> Measurements:
    """train.py for so many seconds: on the rendered shards; where a method has settings of its own, on shards made for it;
    and on these with two cores left to the thread that trains.

    Means of all lines of metrics but the first; the GPU's use is that of the second half.
    """

    def train(data: Path, *more: str) -> Figures:
        with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
            output = Path(folder) / "run"
            flags = ["--objective", name, "--data", str(data), "--output", str(output), *more]
            if day.dry:
                flags += ["--small", "--steps", "3", "--batch-size", "2", "--padding", "repeat_last"]
                flags += ["--width", "0.0625", "--device", "cpu", "--log-every", "1"]
            else:
                flags += ["--steps", "1000000", "--mixed-precision", "bf16", "--log-every", "10"]
            process = subprocess.Popen(
                [sys.executable, "train.py", *flags],
                **_OF_THIS_CHECKOUT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            said, monitor = "", GpuMonitor()
            with suppress(subprocess.TimeoutExpired):
                said, _ = process.communicate(timeout=seconds / 2)  # it starts, and finds its pace
            if process.poll() is None:
                with monitor, suppress(subprocess.TimeoutExpired):
                    said, _ = process.communicate(timeout=seconds / 2)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                said, _ = process.communicate()
            metrics = output / "metrics.jsonl"
            lines = read_metrics(metrics) if metrics.exists() else []
        if len(lines) < 2:
            raise RuntimeError(f"train.py wrote {len(lines)} lines of metrics: {said[-600:]}")
        names = ("clips_per_s", "wait_share", "data_ms", "step_ms")
        means = {key: float(np.mean([line[key] for line in lines[1:]])) for key in names}
        ends = {"steps": lines[-1]["step"], "first": lines[0], "last": lines[-1]}
        of_gpu = monitor.figures()
        del of_gpu["beside_torch_gib"]  # train.py's torch is another process's
        return means | of_gpu | ends

    yield "train.py", lambda: train(day.data())
    own = objectives.get(name).shards != ShardSettings()
    if own:
        yield "train.py, shards --for it", lambda: train(day.data_for(name))
    if not day.dry:
        fewer = ("--threads", str(max(1, day.options.threads - 2)))
        yield "the same, two cores left", lambda: train(day.data_for(name) if own else day.data(), *fewer)


def compiled(day: Day) -> Measurements:
    """The model under torch.compile, whose first step takes long."""
    for name in objectives.available() if not day.dry else ["pace"]:
        source = day.source(name, objectives.get(name).recipe.batch_size)
        yield name, partial(_model, day, name, source, compiled=True)


_OF_THIS_CHECKOUT: dict[str, Any] = {
    "cwd": ROOT,
    "env": os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    "text": True,
}


def _timed(make: Callable[..., Part], day: Day, source: Source, options: Options | None = None) -> Figures:
    return make(source, options or day.options, day.batches)(0)


def _model(
    day: Day,
    name: str,
    source: Source,
    *,
    precision: str = "bfloat16",
    channels_last: bool = True,
    benchmark: bool = False,
    tf32: bool = False,
    compiled: bool = False,
) -> Figures:
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    method = day.model(name)
    if compiled:
        method.compile(backend="eager" if day.dry else "inductor")
    step = training_step(method, precision, day.device, channels_last=channels_last)
    batch = random_batch(source.spec, source.batch_size, day.device)
    if not day.dry:
        torch.cuda.reset_peak_memory_stats()
        step(batch)
    figures = model_alone(step, batch, source, day.options, day.batches)(0)
    return figures | {"peak_gib": 0.0 if day.dry else torch.cuda.max_memory_allocated() / 2**30}


def _together(day: Day, name: str, source: Source, options: Options) -> Figures:
    torch.backends.cudnn.benchmark = False
    step = training_step(day.model(name), "bfloat16", day.device)
    return together(step, source, options, day.batches)(0)


@dataclass(frozen=True)
class Stage:
    """measurements: gives each of the stage's by name.
    limit: seconds that the stage may take. least: seconds that are worth beginning it with."""

    name: str
    measurements: Callable[[Day], Measurements]
    limit: float
    least: float = 20


METHODS = sorted(objectives.available(), key=lambda name: name not in ("dpc", "vdim"))  # those two first
STAGES = [
    Stage("machine", machine, 90),
    Stage("tests", tests, 200, 60),
    Stage("sizes", sizes, 90),
    *(Stage(f"objective {name}", partial(objective, name), 120, 40) for name in METHODS[:2]),
    *(Stage(f"run {name}", partial(run, name, 30), 150, 40) for name in METHODS),
    *(Stage(f"objective {name}", partial(objective, name), 120, 40) for name in METHODS[2:]),
    Stage("peers", peers, 90),
    *(Stage(f"model {name}", partial(model, name), 120) for name in METHODS),
    Stage("compiled", compiled, 300, 60),
]
