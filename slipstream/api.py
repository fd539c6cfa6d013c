"""What `import slipstream` offers in Python; see docs/guides/python.md."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download

import objectives
from objectives import Objective, load
from pipelines import loader
from pipelines.backends import Device, settings_for
from pipelines.sampler import TrainSampler
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, InputError

__all__ = ["Dataset", "HubModel", "InputError", "Jitter", "Loader", "Objective", "ViewSpec", "load"]


class Loader(loader.Loader):
    """Endless shuffled batches of a data set's videos, decoded, cropped and coloured, for a training loop of your own.

    data: a folder or URL that tools/make_shards.py made, or an open Dataset. spec: how videos are looked at, a ViewSpec,
    or a method's name for its own. batch_size: videos of this process. split: only rows of this split.
    seed: of all random choices. device: where the views go; by default this process's GPU where there is one.
    backend: what decodes, see pipelines.backends. threads: that decode, by default as many as there are cores.
    prefetch: batches made ahead. rank, world: this process and how many there are, by default as torchrun and accelerate
    launch say.

    A batch is a dict: views (B, V, C, T, H, W) float32, normalised as the spec says; label (B,) int64, −1 where there is
    none; key, B strings; row (B,) int64; epoch, from 0; and more, see pipelines.loader.Loader.
    state_dict() and load_state_dict() hold the place, so that a loop resumes where it stopped. Close it, or use `with`.
    Raises InputError for data, splits or settings that cannot be had.
    """

    def __init__(
        self,
        data: str | Path | Dataset,
        spec: ViewSpec | str,
        batch_size: int,
        *,
        split: str | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        backend: Device = "auto",
        threads: int | None = None,
        prefetch: int = 2,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        if isinstance(spec, str):
            method = objectives.get(spec)
            spec = method.view_spec(method.Config())
        dataset = data if isinstance(data, Dataset) else Dataset(data)
        rows = dataset.select(split=split, min_frames=spec.span if spec.padding == "error" else 1)
        rank = _environment("RANK", 0) if rank is None else rank
        world = _environment("WORLD_SIZE", 1) if world is None else world
        sampler = TrainSampler(dataset, rows, spec, batch_size, seed=seed, rank=rank, world=world)
        if device is None and torch.cuda.is_available():
            device = torch.device("cuda", _environment("LOCAL_RANK", 0))
        settings = settings_for(backend, dataset, threads=threads)
        super().__init__(dataset, sampler, settings, prefetch=prefetch, device=device)
        self.steps_per_epoch = sampler.epoch_clips // (batch_size * world)


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


class HubModel(PyTorchModelHubMixin):
    """A model in the form of the Hugging Face hub: HubModel.from_pretrained(folder or name) → Objective.

    The folder is one of tools/export.py --to hf. Raises InputError where it does not hold an objective.
    """

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Objective:  # type: ignore[override]
        if Path(model_id).is_dir():
            return load(model_id)
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        files = ["config.json", "model.safetensors"]
        chosen = {name: options[name] for name in known if name in options}
        return load(snapshot_download(model_id, allow_patterns=files, **chosen))
