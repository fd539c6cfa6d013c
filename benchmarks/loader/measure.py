"""One objective's block of the result: its parts, the loader, the model and the peers, timed in turns."""

import resource
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

import objectives
from pipelines.backends import choose_backend
from shards import Dataset
from training import speed

from .ceiling import ceiling, decoded_per_used
from .parts import (
    Way,
    allowed,
    augment_alone,
    copy_alone,
    decode_alone,
    graph_alone,
    loader_alone,
    trim_alone,
)
from .peers import Peer, dali_peer, dataloader_peers, spdl_peers
from .rounds import Figures, Part, in_turns, medians, ratio
from .source import Source
from .sweep import autotune, parse_axes, sweep
from .training import Step, model_alone, together, training_step
from .utilisation import dali_pool_gib


class Settings(Protocol):
    """What is asked for: see tools/bench_loader.py."""

    objective: str
    split: str | None
    batch_size: int
    batches: int
    rounds: int
    device: str
    precision: str
    threads: int
    nvdec_threads: int
    decode_with: str
    prefetch: int
    seed: int
    model: bool
    against: tuple[str, ...]
    workers: tuple[int, ...]
    sweep: tuple[str, ...]
    autotune: bool


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
    in_processes = settings.decode_with == "processes"
    way = Way(
        backend,
        settings.threads,
        settings.prefetch,
        device,
        settings.nvdec_threads,
        processes=in_processes,
    )
    with replace(way, prefetch=0).loader(
        source, 0
    ) as loader:  # complains at once about data that cannot be loaded
        batch = next(loader)
    step = training_step(objective, settings.precision, device) if settings.model else None
    with ExitStack() as stack:
        parts = _parts(source, way, step, batch, settings, stack)
        peers = _peers(source, way, batch, settings, stack)
        parts |= {name: peer.part for name, peer in peers.items() if peer.part is not None}
        samples = settings.batches * settings.batch_size
        rounds = in_turns(parts, settings.rounds, samples, settings.objective)
    pool = dali_pool_gib() if way.kind.on_gpu else None
    block = _block(rounds, source, way, settings)
    if peers:
        block["peers"] = {
            name: {"title": peer.title} | peer.known | _beside(rounds, name) for name, peer in peers.items()
        }
    if axes:
        block["sweep"] = sweep(source, way, axes, settings.rounds, settings.batches)
    if settings.autotune:
        block |= _autotuned(source, way, step, settings)
    return {
        "data": {"name": dataset.name, "videos": len(rows), "settings": dataset.info["settings"]},
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},  # type: ignore[call-overload]
        "config": asdict(config),
        "backend": backend,
        "views": {"views": spec.views, "frames": spec.frames, "size": spec.size},
        **block,
        "memory": {
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "peak_cuda_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
            "dali_pool_gib": pool,
        },
    }


def _parts(
    source: Source,
    way: Way,
    step: Step | None,
    batch: dict[str, Any],
    settings: Settings,
    stack: ExitStack,
) -> dict[str, Part]:
    batches = settings.batches
    parts: dict[str, Part] = {"loader": loader_alone(source, way, batches)}
    if "decode" in way.kind.timed or "spdl" in settings.against:
        parts["decode"] = decode_alone(source, way, batches, stack)
    if "augment" in way.kind.timed:
        parts["augment"] = augment_alone(source, way, batches, stack)
    else:
        from .nvdec import nvdec_alone

        parts["trim"] = trim_alone(source, way, batches, stack)
        parts["nvdec"] = nvdec_alone(source, way, batches)
        parts["graph"] = graph_alone(source, way, batches, stack)
    parts["ceiling"] = ceiling(source, way.threads, batches)
    if way.device.type == "cuda":
        parts["copy"] = copy_alone(source, way, batches)
    if step:
        parts["model"] = model_alone(step, batch, source, way, batches)
        parts["together"] = together(step, source, way, batches)
    return parts


def _peers(
    source: Source, way: Way, batch: dict[str, Any], settings: Settings, stack: ExitStack
) -> dict[str, Peer]:
    found: dict[str, Peer] = {}
    if "dataloader" in settings.against:
        found |= dataloader_peers(source, way, batch["views"], settings.batches, settings.workers, stack)
    if "spdl" in settings.against:
        found |= spdl_peers(source, way, settings.batches)
    if "dali-readers" in settings.against:
        found |= dali_peer(source, way, settings.batches, tqdm.write)
    return found


def _beside(rounds: dict[str, list[Figures]], name: str) -> Figures:
    """A peer's figures; ratio: our loader's clips/s to its own; decode_ratio: those of our decode-and-crop."""
    if name not in rounds:
        return {}
    found = medians(rounds[name]) | {"ratio": ratio(rounds["loader"], rounds[name])}
    if "decode" in rounds:
        found["decode_ratio"] = ratio(rounds["decode"], rounds[name])
    return found


def _block(rounds: dict[str, list[Figures]], source: Source, way: Way, settings: Settings) -> dict[str, Any]:
    found = {name: medians(figures) for name, figures in rounds.items()}
    batches, loader, top = settings.batches * settings.rounds, found["loader"], found["ceiling"]
    loader["frames_per_s"] = loader["clips_per_s"] * source.spec.views * source.spec.frames
    by_ffmpeg = decoded_per_used(source, batches, as_file=False)
    loader["frames_decoded_per_frame_used"] = (
        by_ffmpeg if "decode" in way.kind.timed else decoded_per_used(source, batches, as_file=True)
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
        "ceiling": {f"decode_{key}": value for key, value in top.items()}
        | {
            "frames_decoded_per_frame_used": by_ffmpeg,
            "of_ceiling": ratio(rounds["loader"], rounds["ceiling"]),
        },
        "rounds": {name: [figures["clips_per_s"] for figures in turns] for name, turns in rounds.items()},
    }


def _in_series(rounds: dict[str, list[Figures]]) -> list[Figures]:
    """What decoding and augmentation allow one after the other; on the GPU one graph does both."""
    if "graph" in rounds:
        return rounds["graph"]
    pairs = zip(rounds["decode"], rounds["augment"], strict=True)
    return [{"clips_per_s": allowed(one["clips_per_s"], other["clips_per_s"])} for one, other in pairs]


def _autotuned(source: Source, way: Way, step: Step | None, settings: Settings) -> dict[str, Any]:
    best, tried = autotune(source, way, step, settings.rounds, settings.batches, tqdm.write)
    rate = next(one["clips_per_s"] for one in reversed(tried) if all(one[k] == v for k, v in best.items()))
    file = speed.note_tuned(
        settings.objective,
        source.spec,
        best,
        data=source.dataset.name,
        clips_per_s=rate,
        with_model=step is not None,
    )
    return {"tuned": best | {"file": str(file), "tried": tried}}
