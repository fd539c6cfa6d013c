"""From a visit to what the graph is given: bytes, pixels or frames; and another video where one cannot be had."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cache import Cache, Resident
from pipelines.damage import DecodeError
from pipelines.decode import decode_views
from pipelines.graph import Placement, Way
from pipelines.order import Order, in_share
from pipelines.sampling import ViewParams, sample_clip_params
from pipelines.schedule import Visits
from pipelines.views import ViewSpec
from shards import DamagedError, Dataset, InputError

log = logging.getLogger(__name__)
_MAKE_FLOW = "make it again with tools/make_shards.py --flow tvl1"
Paint = Callable[[ViewParams, NDArray[np.uint8]], None]
"""Makes the views of a sample of its pixels, in the place that the batch has for them."""
_ATTEMPTS = 64  # unreadable videos in a row before the data set, not the video, is to blame


@dataclass(frozen=True)
class Sample:
    """One video of a batch. slot: see Visits. index: in the run's list of rows. draw: of its clips' views.

    material: what Graph.run takes on this way; None if the sample is painted already. paint: its place
    in the batch, should it go the way cpu.
    """

    slot: int
    index: int
    params: ViewParams
    way: Way
    material: Any
    paint: Paint | None = None


class Reader:
    """Reads and, on the CPU, decodes the videos of a run. Threads may share it.

    clips: clips of a video, params apart and decoded together. placement: of the videos that no cache keeps.
    cpu_share: of the samples, decoded on the CPU where the placement is gpu. decoder: see graph.define.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: NDArray[np.int64],
        spec: ViewSpec,
        order: Order,
        *,
        clips: int,
        placement: Placement,
        cpu_share: float,
        decoder: str,
        cache: Cache | None,
    ) -> None:
        self.dataset, self.rows, self.spec, self._order = dataset, rows, spec, order
        self.component = component_of(spec)
        self._clips, self._placement, self._cpu_share, self._cache = clips, placement, cpu_share, cache
        self.on_cpu: Way = "cpu" if "cpu" in (placement, decoder) else "hybrid"
        names = ("num_frames", "width", "height")
        self._shape = {name: dataset.column(name)[rows] for name in names}
        self._bad: set[tuple[int, int]] = set()  # epoch and row that need not be tried again
        self._noted = set(dataset.quarantined().tolist())  # rows in quarantine
        self._last = ""  # of them, and why
        self._bad_lock = threading.Lock()

    def draw(self, indices: NDArray[np.int64], epoch: int) -> ViewParams:
        shape = (column[indices] for column in self._shape.values())
        return sample_clip_params(
            self.spec, self.rows[indices], *shape, seed=self._order.seed, epoch=epoch, clips=self._clips
        )

    def read(
        self, slot: int, index: int, params: ViewParams, visits: Visits, paint: Paint | None = None
    ) -> Sample:
        """The material of one slot, stepping over videos that cannot be read; painted at once on the way cpu."""
        for attempt in range(_ATTEMPTS):
            if (visits.epoch, int(self.rows[index])) not in self._bad:
                try:
                    way, material = self._material(slot, index, params)
                    if paint is not None and way == "cpu":
                        paint(params, material)
                        material = None
                    return Sample(slot, index, params, way, material, paint)
                except (DecodeError, DamagedError) as error:
                    self.note_bad(visits.epoch, index, str(error))
            index = self._order.replacement(visits.epoch, slot, attempt, visits.whole)
            params = self.draw(np.array([index]), visits.epoch).sample(0)
        raise InputError(
            f"{self.dataset.path}: {_ATTEMPTS} videos in a row cannot be decoded ({self._last}): "
            "the data set is damaged; restore it and go on with --resume (tools/check_shards.py says what is lost)"
        )

    def _material(self, slot: int, index: int, params: ViewParams) -> tuple[Way, Any]:
        def video() -> bytes:
            return self.dataset.read(int(self.rows[index]), self.component)

        kept = self._cache.get(index, video) if self._cache else None
        if isinstance(kept, Resident):
            return "memory", kept
        if kept is not None:
            return self.on_cpu, kept.cut(params, self.spec.size, self.spec.modality)
        if self._placement == "gpu" and not in_share(slot, self._cpu_share):
            return "gpu", np.frombuffer(video(), np.uint8)
        return self.on_cpu, decode_views(video(), params, self.spec.size, self.spec.modality)

    def note_bad(self, epoch: int, index: int, reason: str) -> None:
        """A video cannot be used, now and in this epoch: say so once, and put it into quarantine."""
        row = int(self.rows[index])
        with self._bad_lock:
            self._bad.add((epoch, row))
            self._last = f"{self.keys(index)[0]}: {reason}"
            known = row in self._noted
            self._noted.add(row)
        if not known:
            log.warning("%s cannot be decoded and is replaced: %s", self.keys(index)[0], reason)
            self.dataset.quarantine(row, reason)

    def forget(self) -> None:
        """Try videos that could not be used once more."""
        self._bad.clear()

    def keys(self, *indices: int) -> list[str]:
        return self.dataset.keys(self.rows[list(indices)])


def component_of(spec: ViewSpec) -> str:
    """The part of a row that the spec looks at."""
    return "flow.mp4" if spec.modality == "flow" else "mp4"


def check_flow(dataset: Dataset, rows: NDArray[np.int64]) -> None:
    """Raise InputError where a row has no flow."""
    try:
        lacking = np.isnan(dataset.column("flow.mp4_offset")[rows].astype(np.float64))
    except InputError as error:
        raise InputError(
            f"{dataset.path}: the method looks at flow, and the data set has none; {_MAKE_FLOW}"
        ) from error
    if lacking.any():
        first = dataset.keys(rows[[int(lacking.argmax())]])[0]
        raise InputError(
            f"{dataset.path}: {lacking.sum()} of {len(lacking)} videos have no flow ({first} is the first); "
            + _MAKE_FLOW
        )
