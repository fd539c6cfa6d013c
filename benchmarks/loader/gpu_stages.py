"""What benchmarks/gpu_day.py measures, stage by stage, in order of worth. docs/guides/gpu.md says how to read it."""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import objectives
from benchmarks import render
from benchmarks.loader import nvdec_peers
from benchmarks.loader.nvdec import nvdec_alone
from benchmarks.loader.parts import Way, decode_alone, graph_alone, loader_alone, trim_alone
from benchmarks.loader.rounds import Figures, Part
from benchmarks.loader.source import Source
from benchmarks.loader.spdl_peer import spdl
from benchmarks.loader.training import model_alone, random_batch, together, training_step
from benchmarks.machine import describe
from pipelines.backends import available, choose_backend
from shards import Dataset
from shards.atomic import made_once
from shards.documents import write_json

ROOT = Path(__file__).parents[2]
EVEN, UNEVEN = 336, 340  # pixels of width; the second makes NVDEC open a decoder for every video
PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "av",
    "spdl-io",
    "PyNvVideoCodec",
)


class Notes:
    """What a stage found: key → figures, written to a file after each. A key that is there is not measured again."""

    def __init__(self, path: Path, found: dict[str, Any]) -> None:
        self._path, self.found = path, found

    def measure(self, key: str, do: Callable[[], Figures]) -> None:
        """Measure, unless it was. What is raised is noted in place of figures."""
        if key in self.found:
            return
        self.found[key] = "under way"
        write_json(self._path, self.found)
        try:
            self.found[key] = do()
        except Exception as error:  # whatever one measurement meets, the others go on
            self.found[key] = {"error": f"{type(error).__name__}: {str(error)[-800:]}"}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write_json(self._path, self.found)


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
    def looks(self) -> tuple[str, ...]:
        """Objectives whose clips the decoding stages decode."""
        return ("dpc",) if self.dry else ("dpc", "pace", "vdim")

    @property
    def way(self) -> Way:
        cores = len(os.sched_getaffinity(0))
        return Way("gpu", cores, 1 if self.dry else 2, self.device, min(8, cores), on_cpu_dali=self.dry)

    def data(self, width: int) -> Path:
        """Rendered on first use: 64 videos of ten seconds."""
        videos, frames, codec = ("2", "24", "vp9") if self.dry else ("64", "300", "h264")
        flags = ("--videos", videos, "--frames", frames, "--codec", codec, "--width", str(width))
        workers = ("--workers", str(len(os.sched_getaffinity(0))))
        path = self.folder / f"{width}x256-{codec}-{frames}"
        return made_once(path, lambda out: render.render_in_a_process(out, *flags, *workers))

    def config(self, name: str) -> Any:
        cls = objectives.get(name)
        if not self.dry:
            return cls.Config()
        config = replace(cls.small(), width=0.0625)
        # the few frames of a dry run are fewer than a DPC clip's
        return replace(config, padding="repeat_last") if hasattr(config, "padding") else config

    def source(self, name: str, batch_size: int, width: int = EVEN) -> Source:
        """An objective's clips; rows are repeated where a batch has more."""
        dataset = Dataset(self.data(width))
        size = 2 if self.dry else batch_size
        rows = np.resize(dataset.select(), max(len(dataset), 4 * size))
        return Source(dataset, rows, objectives.get(name).view_spec(self.config(name)), size, seed=0)


def machine(notes: Notes, day: Day) -> None:
    def facts() -> Figures:
        libraries = {}
        for name in ("libnvcuvid.so.1", "libcuda.so.1"):
            try:
                ctypes.CDLL(name)
                libraries[name] = "loads"
            except OSError as error:
                libraries[name] = str(error)
        asked = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,clocks.max.video",
            "--format=csv,noheader",
        ]
        smi = ""
        with suppress(OSError):
            smi = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return describe(*PACKAGES) | {"gpu": gpu, "nvidia_smi": smi, "libraries": libraries}

    def backends() -> Figures:
        dataset = Dataset(day.data(EVEN))
        return {"available": available(dataset), "auto": choose_backend("auto", dataset)}

    notes.measure("facts", facts)
    notes.measure("backends", backends)


def tests(notes: Notes, day: Day) -> None:
    def run() -> Figures:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "tests/gpu",
            "-q",
            "-p",
            "no:warnings",
            "-p",
            "no:cacheprovider",
        ]
        ended = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
        return {"exit_status": ended.returncode, "output": ended.stdout[-6000:]}

    notes.measure("tests/gpu", run)


def sizes(notes: Notes, day: Day) -> None:
    """Raw NVDEC, trimmed files: what one decoder for every video costs."""
    for width in (EVEN, UNEVEN):
        notes.measure(f"{width}×256", lambda width=width: _nvdec(day, "dpc", day.way, width=width))


def trimmed(notes: Notes, day: Day) -> None:
    """Raw NVDEC: whole files against trimmed ones; and what trimming takes of the CPU."""
    for name in day.looks:
        for cut in (False, True):
            key = f"{name}, {'trimmed' if cut else 'whole'} files"
            notes.measure(key, lambda name=name, cut=cut: _nvdec(day, name, day.way, trimmed=cut))
        notes.measure(f"{name}, read and trim", lambda name=name: _stacked(day, name, trim_alone))


def pipelines(notes: Notes, day: Day) -> None:
    """The whole graph of the backend, NVDEC and augmentation, for pipelines × decoder threads of each."""
    for threads in (1, 2) if day.dry else (8, 14, 4, 28):
        for count in (2, 1):
            way = replace(day.way, pipelines=count, nvdec_threads=threads)
            notes.measure(
                f"{count} pipelines × {threads} threads",
                lambda way=way: _stacked(day, "dpc", graph_alone, way),
            )


def hybrid(notes: Notes, day: Day) -> None:
    """What this machine's cores decode, alone and in the loader; cpu_share: for --cpu-share."""
    for name in day.looks:
        source = day.source(name, 32)
        notes.measure(
            f"{name}, decode and crop", lambda s=source: decode_alone(s, day.way, day.batches, ExitStack())(0)
        )
        for backend in ("hybrid", "gpu"):
            way = replace(day.way, backend=backend)
            notes.measure(
                f"{name}, loader {backend}", lambda s=source, w=way: loader_alone(s, w, day.batches)(0)
            )
        on_cpu, on_gpu = (_rate(notes, f"{name}, loader {backend}") for backend in ("hybrid", "gpu"))
        if on_cpu and on_gpu:
            notes.measure(f"{name}, cpu_share", lambda a=on_cpu, b=on_gpu: {"cpu_share": a / (a + b)})


MODELS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "bf16, channels first": {"channels_last": False},
    "bf16, cudnn.benchmark": {"benchmark": True},
    "tf32": {"precision": "float32", "tf32": True},
    "float32": {"precision": "float32"},
}


def objective(name: str, notes: Notes, day: Day) -> None:
    """At the paper's batch: the loader on each backend, the model under each option, and both together."""
    source = day.source(name, objectives.get(name).recipe.batch_size)
    ways = [replace(day.way, backend=backend) for backend in ("gpu", "hybrid")]
    for way in ways:
        notes.measure(f"loader {way.backend}", lambda w=way: loader_alone(source, w, day.batches)(0))
    for key, options in MODELS.items():
        notes.measure(f"model {key}", lambda o=options: _model(name, source, day, **o))
    for way in ways:
        notes.measure(f"together {way.backend}, bf16", lambda w=way: _together(name, source, w, day))


def peers(notes: Notes, day: Day) -> None:
    """Other libraries on the same clips: SPDL on the CPU, SPDL and PyNvVideoCodec on NVDEC."""
    for name in day.looks[:2]:
        source = day.source(name, 32)
        notes.measure(f"{name}, SPDL on the CPU", lambda s=source: spdl(s, day.way.threads, day.batches)(0))
        notes.measure(
            f"{name}, decode and crop", lambda s=source: decode_alone(s, day.way, day.batches, ExitStack())(0)
        )
        others = {"SPDL": nvdec_peers.spdl_nvdec, "PyNvVideoCodec": nvdec_peers.pynvvideocodec}
        for title, peer in others.items() if not day.dry else ():
            for threads in (7, 14):
                key = f"{name}, {title} on NVDEC, {threads} threads"
                notes.measure(key, lambda p=peer, s=source, t=threads: p(s, t, day.batches)(0))


def run(name: str, seconds: float, notes: Notes, day: Day) -> None:
    """train.py for so many seconds, all of its loop; its lines of metrics are summed up without the first."""

    def train() -> Figures:
        with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
            output = Path(folder) / "run"
            flags = ["--data", day.data(EVEN), "--output", output, "--log-every", "1" if day.dry else "20"]
            flags += (
                ["--small", "--steps", "3", "--batch-size", "2", "--padding", "repeat_last"]
                if day.dry
                else ["--steps", "1000000"]
            )
            flags += ["--device", "cpu"] if day.dry else ["--mixed-precision", "bf16"]
            command = [sys.executable, "train.py", "--objective", name, *map(str, flags)]
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                said, _ = process.communicate()
            written = output / "metrics.jsonl"
            lines = (
                [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
            )
        if len(lines) < 2:
            raise RuntimeError(f"train.py wrote {len(lines)} lines of metrics: {said[-600:]}")
        names = ("clips_per_s", "wait_share", "data_ms", "step_ms")
        means = {key: float(np.mean([line[key] for line in lines[1:]])) for key in names}
        return means | {"steps": lines[-1]["step"], "first": lines[0], "last": lines[-1]}

    notes.measure("train.py", train)


def compiled(notes: Notes, day: Day) -> None:
    """The model under torch.compile, whose first step takes long."""
    for name in objectives.available() if not day.dry else ["pace"]:
        source = day.source(name, objectives.get(name).recipe.batch_size)
        notes.measure(name, lambda n=name, s=source: _model(n, s, day, compiled=True))


def _nvdec(day: Day, name: str, way: Way, *, width: int = EVEN, trimmed: bool = True) -> Figures:
    return nvdec_alone(day.source(name, 32, width), way, day.batches, trimmed=trimmed)(0)


def _stacked(day: Day, name: str, make: Callable[..., Part], way: Way | None = None) -> Figures:
    with ExitStack() as stack:
        return make(day.source(name, 32), way or day.way, day.batches, stack)(0)


def _model(
    name: str,
    source: Source,
    day: Day,
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
    torch.manual_seed(0)
    method = objectives.get(name)(day.config(name)).to(day.device)
    if compiled:
        method.compile(backend="eager" if day.dry else "inductor")
    step = training_step(method, precision, day.device, channels_last=channels_last)
    batch = random_batch(source.spec, source.batch_size, day.device)
    if not day.dry:
        torch.cuda.reset_peak_memory_stats()
        step(batch)
    figures = model_alone(step, batch, source, day.way, day.batches)(0)
    return figures | {"peak_gib": 0.0 if day.dry else torch.cuda.max_memory_allocated() / 2**30}


def _together(name: str, source: Source, way: Way, day: Day) -> Figures:
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(0)
    method = objectives.get(name)(day.config(name)).to(day.device)
    return together(training_step(method, "bfloat16", day.device), source, way, day.batches)(0)


def _rate(notes: Notes, key: str) -> float | None:
    found = notes.found[key]
    return found.get("clips_per_s") if isinstance(found, dict) else None


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Stage:
    """limit: seconds that it may take. least: seconds that are worth beginning it with."""

    name: str
    do: Callable[[Notes, Day], None]
    limit: float
    least: float = 20


STAGES = [
    Stage("machine", machine, 90),
    Stage("tests", tests, 150, 60),
    Stage("sizes", sizes, 90),
    Stage("trimmed", trimmed, 90),
    Stage("pipelines", pipelines, 150),
    Stage("hybrid", hybrid, 120),
    *(Stage(f"objective {name}", partial(objective, name), 120, 40) for name in objectives.available()),
    Stage("peers", peers, 90),
    *(Stage(f"run {name}", partial(run, name, 150), 200, 190) for name in ("dpc", "vdim")),
    Stage("compiled", compiled, 300, 60),
]
