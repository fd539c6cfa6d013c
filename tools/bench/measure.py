"""One objective's block of the result: its parts, the loader, the model and the peers, timed in turns."""

import resource
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from pipelines.graph import Placement, choose_placement
from tqdm import tqdm

import objectives
from pipelines import tuned
from shards import Dataset

from .ceiling import ceiling, formula
from .parts import Way, allowed, copy_alone, decode_alone, graph_alone, loader_alone
from .peers import Peer, dali_peer, dataloader_peers
from .rounds import Figures, Part, in_turns, medians, ratio
from .source import Source
from .sweep import autotune, parse_axes, sweep
from .training import Step, model_alone, together, training_step
from .utilisation import watched


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
    placement: Placement = choose_placement(settings.device)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    objective = objectives.get(settings.objective)(config).to(device)
    spec = objective.view_spec(config)
    rows = dataset.select(split=settings.split, min_frames=spec.span if spec.padding == "error" else 1)
    source = Source(dataset, rows, spec, settings.batch_size, settings.seed)
    way = Way(placement, settings.threads, settings.prefetch, device)
    with replace(way, prefetch=0).loader(
        source, 0
    ) as loader:  # complains at once about data that cannot be loaded
        batch = next(loader)
    step = training_step(objective, settings.precision, device) if settings.model else None
    with ExitStack() as stack:
        parts = _parts(source, way, step, batch, settings)
        peers = _peers(source, way, batch, settings, stack)
        parts |= {name: peer.part for name, peer in peers.items() if peer.part is not None}
        samples = settings.batches * settings.batch_size
        rounds = in_turns(parts, settings.rounds, samples, settings.objective)
    block = _block(rounds, source, placement, settings)
    if peers:
        block["peers"] = {
            name: {"title": peer.title} | peer.known | _beside(rounds["loader"], rounds.get(name))
            for name, peer in peers.items()
        }
    if axes:
        block["sweep"] = sweep(source, way, axes, settings.rounds, settings.batches)
    if settings.autotune:
        block |= _autotuned(source, way, step, settings)
    return {
        "data": {"name": dataset.name, "videos": len(rows), "settings": dataset.info["settings"]},
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},  # type: ignore[call-overload]
        "config": asdict(config),
        "placement": placement,
        "views": {"views": spec.views, "frames": spec.frames, "size": spec.size},
        **block,
        "memory": {
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "peak_cuda_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        },
    }


def _parts(
    source: Source, way: Way, step: Step | None, batch: dict[str, Any], settings: Settings
) -> dict[str, Part]:
    batches = settings.batches
    parts: dict[str, Part] = {
        "loader": watched(loader_alone(source, way, batches)),
        "decode": decode_alone(source, way, batches),
        "graph" if way.placement == "gpu" else "augment": graph_alone(source, way, batches),
        "ceiling": ceiling(source, way.threads, batches),
    }
    if way.device.type == "cuda":
        parts["copy"] = copy_alone(source, way, batches)
    if step:
        parts["model"] = model_alone(step, batch, source, way, batches)
        parts["together"] = watched(together(step, source, way, batches))
    return parts


def _peers(
    source: Source, way: Way, batch: dict[str, Any], settings: Settings, stack: ExitStack
) -> dict[str, Peer]:
    found: dict[str, Peer] = {}
    if "dataloader" in settings.against:
        found |= dataloader_peers(source, way, batch["views"], settings.batches, settings.workers, stack)
    if "dali-readers" in settings.against:
        found |= dali_peer(source, way, settings.batches, tqdm.write)
    return found


def _beside(ours: list[Figures], theirs: list[Figures] | None) -> Figures:
    return medians(theirs) | {"ratio": ratio(ours, theirs)} if theirs else {}


def _block(
    rounds: dict[str, list[Figures]], source: Source, placement: Placement, settings: Settings
) -> dict[str, Any]:
    found = {name: medians(figures) for name, figures in rounds.items()}
    gop = int(source.dataset.info["settings"].get("gop") or 1)
    batch_params = [params for _, params in source.samples(0, settings.batches * settings.rounds)]
    loader = found["loader"]
    loader["frames_per_s"] = loader["clips_per_s"] * source.spec.views * source.spec.frames
    loader["frames_decoded_per_frame_used"] = (  # NVDEC is handed whole files
        formula(batch_params, gop)
        if placement == "gpu"
        else found["ceiling"]["frames_decoded_per_frame_used"]
    )
    in_series = _in_series(rounds)
    parts: dict[str, Any] = {
        f"{name}_{key}": value
        for name in ("decode", "augment", "graph")
        for key, value in found.get(name, {}).items()
    }
    parts["of_parts"] = ratio(rounds["loader"], in_series)
    parts["copy"] = found.get("copy")
    top = {
        f"decode_{key}" if key.startswith(("clips", "cpu")) else key: v for key, v in found["ceiling"].items()
    }
    return {
        "loader": loader,
        **{name: found[name] for name in ("model", "together") if name in found},
        "parts": parts,
        "ceiling": top | {"of_ceiling": ratio(rounds["loader"], rounds["ceiling"])},
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
    file = tuned.record(
        settings.objective,
        source.spec,
        best,
        data=source.dataset.name,
        clips_per_s=rate,
        with_model=step is not None,
    )
    return {"tuned": best | {"file": str(file), "tried": tried}}
