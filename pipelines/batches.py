"""From the samples of a batch to the batch: run the graphs, and find out which video one of them refuses."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from pipelines.damage import DecodeError
from pipelines.decode import decode_views
from pipelines.graph import Graph, Way
from pipelines.reading import Reader, Sample
from pipelines.schedule import Visits


class Batches:
    """Makes a loader's batches, one after the other.

    make_graph: the graph of a way. everyone: map over the pool's threads. clips: of a sample.
    """

    def __init__(
        self,
        reader: Reader,
        make_graph: Callable[[Way], Graph],
        everyone: Callable[[Callable[[Sample], str], list[Sample]], Iterable[str]],
        *,
        clips: int,
        device: torch.device | None,
    ) -> None:
        self._reader, self._make_graph, self._everyone = reader, make_graph, everyone
        self._clips, self._device = clips, device
        self._labels = reader.dataset.column("label")[reader.rows].astype(np.int64)
        self._graphs: dict[Way, Graph] = {}

    def make(
        self, samples: list[Sample], visits: Visits, painted: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """The batch of these samples, a clip a row: see Loader. painted: views, as far as they are painted."""
        views = None
        while views is None:
            try:
                views = self._views(samples, painted)
            except RuntimeError as error:
                samples = self._without_culprits(samples, visits, error)
        batch_params = [params for sample in samples for params in sample.params.clips(self._clips)]
        index = np.repeat([sample.index for sample in samples], self._clips)
        rows = self._reader.rows[index]
        paces = [params.pace for params in batch_params if params.pace is not None]
        return {
            "views": views if self._device is None else views.to(self._device, non_blocking=True),
            "label": torch.from_numpy(self._labels[index]),
            "row": torch.from_numpy(rows),
            "key": self._reader.dataset.keys(rows),
            "epoch": visits.epoch,
            "params": batch_params,
            **({"pace": torch.from_numpy(np.stack(paces))} if paces else {}),
        }

    def close(self) -> None:
        """Let go of the graphs."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()

    def _views(self, samples: list[Sample], painted: torch.Tensor | None) -> torch.Tensor:
        """Views of all samples, in their order, whichever way each goes."""
        ways: dict[Way, list[int]] = {}
        for place, sample in enumerate(samples):
            ways.setdefault(sample.way, []).append(place)
        made: dict[Way, torch.Tensor] = {}
        for way, places in ways.items():
            if way == "cpu" and painted is not None:
                by_sample = painted.unflatten(0, (-1, self._clips))
                made[way] = painted if len(ways) == 1 else by_sample[places].flatten(0, 1)
            else:
                made[way] = self._run(way, [samples[place] for place in places])
        if len(made) == 1:
            return next(iter(made.values()))
        one = next(iter(made.values()))
        _, V, C, T, H, W = one.shape
        out = one.new_empty(len(samples), self._clips, V, T, H, W, C)
        for way, places in ways.items():
            out[places] = made[way].permute(0, 1, 3, 4, 5, 2).unflatten(0, (-1, self._clips))
        return out.flatten(0, 1).permute(0, 1, 5, 2, 3, 4)

    def _run(self, way: Way, samples: list[Sample]) -> torch.Tensor:
        graph = self._graphs.get(way) or self._graphs.setdefault(way, self._make_graph(way))
        try:
            return graph.run([sample.params for sample in samples], [sample.material for sample in samples])
        except RuntimeError:
            del self._graphs[way]  # DALI's pipeline is dead after a failure
            raise

    def _without_culprits(self, samples: list[Sample], visits: Visits, error: RuntimeError) -> list[Sample]:
        """NVDEC fails a whole batch for one bad video and does not say which."""
        suspects = [sample for sample in samples if sample.way == "gpu"]
        if not suspects:
            raise error
        reasons = list(self._everyone(self._trouble, suspects))
        if not any(reasons):
            reasons = [self._refusal(sample) for sample in suspects]
            if all(reasons) or not any(reasons):
                keys = ", ".join(self._reader.keys(*(sample.index for sample in suspects)))
                raise RuntimeError(
                    f"{self._reader.dataset.path}: DALI fails on a batch in which FFmpeg finds nothing wrong ({keys}); "
                    "--device hybrid or cpu decodes with FFmpeg"
                ) from error
        reason_of = {sample.slot: reason for sample, reason in zip(suspects, reasons, strict=True)}
        return [
            self._replaced(sample, visits, reason) if (reason := reason_of.get(sample.slot)) else sample
            for sample in samples
        ]

    def _replaced(self, sample: Sample, visits: Visits, reason: str) -> Sample:
        self._reader.note_bad(visits.epoch, sample.index, reason)
        return self._reader.read(sample.slot, sample.index, sample.params, visits, sample.paint)

    def _trouble(self, sample: Sample) -> str:
        """What FFmpeg says of a video, nothing where it decodes."""
        spec = self._reader.spec
        try:
            decode_views(sample.material.tobytes(), sample.params, spec.size, spec.modality)
        except DecodeError as error:
            return str(error)
        return ""

    def _refusal(self, sample: Sample) -> str:
        """What DALI says of a video on its own, nothing where it decodes."""
        try:
            self._run("gpu", [sample])
        except RuntimeError as error:
            return "DALI: " + " ".join(str(error).rpartition("encountered:")[2].split())
        return ""
