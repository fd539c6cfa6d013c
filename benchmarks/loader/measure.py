"""One objective's block of the result: its parts, the loader, the model and the peers, timed in turns."""

import resource
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

import objectives
from benchmarks.loader.decoders import decoded_per_used, libavcodec, spdl
from benchmarks.loader.parts import (
    Options,
    Step,
    augment_alone,
    copy_alone,
    decode_alone,
    graph_alone,
    loader_alone,
    model_alone,
    nvdec_alone,
    together,
    training_step,
    trim_alone,
)
from benchmarks.loader.rounds import Figures, Part, Source, in_turns, medians, ratio
from benchmarks.loader.sweep import autotune, parse_axes, sweep
from pipelines.backends import BACKENDS, DecodeWith, choose_backend, in_processes
from shards import Dataset, InputError, at_least
from training import speed


@dataclass(frozen=True)
class Settings:
    """What is timed. The objective's own flags follow further down."""

    objective: str = "vdim"
    """The method whose views and model are timed; several with commas, or all."""
    data: Path | None = None
    """A data set made by tools/make_shards.py, or a folder of videos; `rendered`: 48 videos of 10 s, 336×256, rendered on first use; the
    demo set by default."""
    split: str | None = None
    """Use only the rows of this split."""
    json: Path | None = None
    """Write the figures here."""
    chart: Path | None = None
    """Draw them here (.png, .svg, .pdf)."""
    batch_size: int = 0
    """Clips a batch."""
    batches: int = 3
    """Batches timed in each round of each part, after those that are not."""
    rounds: int = 3
    """Rounds; the parts take turns in each, and figures are medians over them."""
    device: Literal["auto", "gpu", "hybrid", "cpu"] = "auto"
    """Where videos are decoded and augmented."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the model's arithmetic (autocast)."""
    threads: int | None = None
    """Decoding threads, SPDL's too; as many as there are cores, or eight with NVDEC, by default."""
    decode_with: DecodeWith = "auto"
    """Where the CPU decodes. auto is train.py's choice: processes where there are four cores or more."""
    prefetch: int = 2
    """Batches made ahead."""
    model: bool = True
    """Time the model too, alone and on the loader's batches; --no-model is for the loader alone."""
    against: tuple[Literal["dataloader", "dali-readers", "spdl"], ...] = ()
    """Peers on the same data: PyTorch's DataLoader with torchcodec and torchvision v2; DALI's own readers and random
    operators (needs NVDEC, or VP9 or MJPEG videos); SPDL, which decodes and crops our samples."""
    workers: tuple[int, ...] = ()
    """Numbers of DataLoader workers to choose the best of; 0, 1, 2, 4 … up to the cores by default."""
    sweep: tuple[str, ...] = ()
    """The loader alone for each combination: threads=1,2,4 prefetch=1,2,4 batch_size=8,16 device=cpu,hybrid,gpu
    pipelines=1,2 clips_per_decode=1,2 cache=none,host,gpu."""
    autotune: bool = False
    """Find the device, threads and prefetch that suit this machine, and note them for train.py."""
    small: bool = False
    """The objective's CPU-sized settings as defaults: on where there is neither --data nor a GPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "batches", "rounds", "threads")
        at_least(self, 0, "prefetch")
        if self.workers and min(self.workers) < 0:
            raise InputError(f"--workers {min(self.workers)}: must be at least 0")


def measure(settings: Settings, config: Any, dataset: Dataset) -> dict[str, Any]:
    """The block of settings.objective. Raises InputError for what this machine or the data set cannot do."""
    axes = parse_axes(settings.sweep)
    backend = choose_backend(settings.device, dataset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    objective = objectives.get(settings.objective)(config).to(device)
    spec = objective.view_spec(config)
    rows = dataset.select(split=settings.split, min_frames=spec.span if spec.padding == "error" else 1)
    source = Source(dataset, rows, spec, settings.batch_size, settings.seed)
    options = Options(
        backend,
        threads=settings.threads or BACKENDS[backend].threads(speed.cores()),
        prefetch=settings.prefetch,
        device=device,
        decode_with="processes" if in_processes(settings.decode_with, speed.cores()) else "threads",
    )
    # complains at once about data that cannot be loaded
    with replace(options, prefetch=0).loader(source, 0) as loader:
        batch = next(loader)
    step = training_step(objective, settings.precision, device) if settings.model else None
    with ExitStack() as stack:
        parts = _parts(source, options, step, batch, settings)
        peers = _peers(source, options, batch, settings, stack)
        parts |= {name: part for name, (_, part) in peers.items() if part is not None}
        samples = settings.batches * settings.batch_size
        rounds = in_turns(parts, settings.rounds, samples, settings.objective)
    block = _block(rounds, source, options, settings)
    if peers:
        block["peers"] = {name: known | _compared(rounds, name) for name, (known, _) in peers.items()}
    if axes:
        block["sweep"] = sweep(source, options, axes, settings.rounds, settings.batches)
    if settings.autotune:
        block |= _autotuned(source, options, step, settings)
    return {
        "data": {"name": dataset.name, "videos": len(rows), "settings": dataset.info["settings"]},
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "config": asdict(config),
        "backend": backend,
        "views": {"views": spec.views, "frames": spec.frames, "size": spec.size},
        **block,
        "memory": {
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "peak_cuda_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        },
    }


def _parts(
    source: Source,
    options: Options,
    step: Step | None,
    batch: dict[str, Any],
    settings: Settings,
) -> dict[str, Part]:
    batches = settings.batches
    parts: dict[str, Part] = {"loader": loader_alone(source, options, batches)}
    if "decode" in options.kind.timed or "spdl" in settings.against:
        parts["decode"] = decode_alone(source, options, batches)
    if "augment" in options.kind.timed:
        parts["augment"] = augment_alone(source, options, batches)
    else:
        parts["trim"] = trim_alone(source, options, batches)
        parts["nvdec"] = nvdec_alone(source, options, batches)
        parts["graph"] = graph_alone(source, options, batches)
    parts["ceiling"] = libavcodec(source, options.threads, batches)
    if options.device.type == "cuda":
        parts["copy"] = copy_alone(source, options, batches)
    if step:
        parts["model"] = model_alone(step, batch, source, options, batches)
        parts["together"] = together(step, source, options, batches)
    return parts


def _peers(
    source: Source, options: Options, batch: dict[str, Any], settings: Settings, stack: ExitStack
) -> dict[str, tuple[Figures, Part | None]]:
    """Name → (its title and what is known before it is timed, its part; None where it cannot run)."""
    found: dict[str, tuple[Figures, Part | None]] = {}
    batches, threads = settings.batches, options.threads
    if "dataloader" in settings.against:
        from benchmarks.loader.dataloader_peer import dataloader_peers  # torchvision takes two seconds

        found |= dataloader_peers(source, options, batch["views"], batches, settings.workers, stack)
    if "spdl" in settings.against:
        tuned_title, title = f"SPDL tuned, uint8 crops, workers: {threads}", "SPDL, one window a clip"
        found["spdl"] = {"title": tuned_title, "workers": threads}, spdl(source, threads, batches)
        found["spdl-window"] = (
            {"title": title, "workers": threads},
            spdl(source, threads, batches, tuned=False),
        )
    if "dali-readers" in settings.against:
        from benchmarks.loader.dali_readers_peer import dali_readers  # the only one that needs DALI

        known: Figures = {"title": "DALI's readers and random operators"}
        try:
            found["dali-readers"] = known, dali_readers(source, options, batches)
        except InputError as error:
            tqdm.write(str(error))
            found["dali-readers"] = known | {"left_out": str(error)}, None
    return found


def _compared(rounds: dict[str, list[Figures]], name: str) -> Figures:
    """A peer's figures; ratio: our loader's clips/s to its own; decode_ratio: those of our decode-and-crop."""
    if name not in rounds:
        return {}
    found = medians(rounds[name]) | {"ratio": ratio(rounds["loader"], rounds[name])}
    if "decode" in rounds:
        found["decode_ratio"] = ratio(rounds["decode"], rounds[name])
    return found


def _block(
    rounds: dict[str, list[Figures]], source: Source, options: Options, settings: Settings
) -> dict[str, Any]:
    found = {name: medians(figures) for name, figures in rounds.items()}
    batches, loader = settings.batches * settings.rounds, found["loader"]
    loader["frames_per_s"] = loader["clips_per_s"] * source.spec.views * source.spec.frames
    by_ffmpeg = decoded_per_used(source, batches, as_file=False)
    loader["frames_decoded_per_frame_used"] = (
        by_ffmpeg if "decode" in options.kind.timed else decoded_per_used(source, batches, as_file=True)
    )
    parts: dict[str, Any] = {
        f"{name}_{key}": value
        for name in ("decode", "augment", "trim", "nvdec", "graph")
        for key, value in found.get(name, {}).items()
    }
    parts["of_parts"] = ratio(rounds["loader"], _in_series(rounds))
    parts["copy"] = found.get("copy")
    return {
        "loader": loader,
        **{name: found[name] for name in ("model", "together") if name in found},
        "parts": parts,
        "ceiling": {f"decode_{key}": value for key, value in found["ceiling"].items()}
        | {
            "frames_decoded_per_frame_used": by_ffmpeg,
            "of_ceiling": ratio(rounds["loader"], rounds["ceiling"]),
        },
        "rounds": {name: [figures["clips_per_s"] for figures in turns] for name, turns in rounds.items()},
    }


def _in_series(rounds: dict[str, list[Figures]]) -> list[Figures]:
    """What decoding and augmentation allow one after the other, 1 / (1/decode + 1/augment)."""
    names = ("nvdec", "graph") if "nvdec" in rounds else ("decode", "augment")
    pairs = zip(*(rounds[name] for name in names), strict=True)
    return [{"clips_per_s": 1 / (1 / a["clips_per_s"] + 1 / b["clips_per_s"])} for a, b in pairs]


def _autotuned(source: Source, options: Options, step: Step | None, settings: Settings) -> dict[str, Any]:
    best, tried = autotune(source, options, step, settings.rounds, settings.batches)
    rate = next(one["clips_per_s"] for one in reversed(tried) if best.items() <= one.items())
    measured = {"data": source.dataset.name, "clips_per_s": rate, "with_model": step is not None}
    file = speed.note_tuned(settings.objective, source.spec, best | measured)
    return {"tuned": best | {"file": str(file), "tried": tried}}
