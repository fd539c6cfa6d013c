"""What a classifier says of windows, computed by all processes together."""

from dataclasses import replace

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray

from evaluation.classifier import Classifier
from evaluation.features import Features, Machine
from pipelines.eval_clips import EvalClips, EvalSampler
from pipelines.views import ViewSpec
from shards import Dataset, InputError


def predict(
    classifier: Classifier,
    dataset: Dataset,
    windows: EvalClips,
    spec: ViewSpec,
    machine: Machine,
    *,
    by_feature: bool = False,
) -> Features:
    """Each window's probabilities; by_feature: each video's, from the mean of its windows' features.

    All processes call it together, and each gets all of them. Raises InputError where no video can be decoded.
    """
    accelerator = machine.accelerator
    sampler = machine.my_batches(EvalSampler(dataset, windows, spec, machine.batch_size))
    classifier.eval()
    found: list[tuple[NDArray, NDArray]] = []
    with machine.loader(dataset, sampler) as loader:
        for batch in loader:
            if len(batch["index"]):
                with torch.inference_mode(), accelerator.autocast():
                    feature = classifier.represent(batch["views"])
                    said = feature if by_feature else classifier.head(feature).double().softmax(1)
                found.append((batch["index"].numpy(), said.double().cpu().numpy()))
    everyones = gather_object([(found, loader.failed)])
    pairs = [pair for pairs, _ in everyones for pair in pairs]
    rows_failed = {row: why for _, failed in everyones for row, why in failed.items()}
    failed = {dataset.keys([row])[0]: why for row, why in rows_failed.items()}
    if not pairs:
        first = next(iter(failed.items()), "nothing selected")
        raise InputError(f"{dataset.path}: none of the videos can be decoded ({first})")
    index, x = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    order = np.argsort(index)
    index, x = index[order], x[order]
    said_of = Features(x, windows.row[index], windows.start[index], failed)
    if not by_feature:
        return said_of
    videos = said_of.by_video()
    with torch.inference_mode():
        feature = torch.from_numpy(videos.x).float().to(accelerator.device)
        return replace(videos, x=classifier.head(feature).double().softmax(1).cpu().numpy())
