"""Clips of the report, playing: nearest neighbours of test videos, and what addresses the slots of a memory."""

import html
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from evaluation import pictures
from evaluation.arrays import check_numbers, read_arrays
from evaluation.memory import CLIPS
from shards import Dataset, InputError, demo
from shards.cache import cache_folder
from shards.documents import short

QUERIES = 6
MEMORY = {
    **{"usage": "real K", "norm": "real K", "slot": "whole N"},
    **{"key": "text N C", "start": "whole N C", "share": "real N C"},
}


class Gallery:
    """The videos of a result. Raises InputError where they are no longer there, or one of `keys` is not among them."""

    def __init__(self, result: dict[str, Any], keys: Iterable[str]) -> None:
        where = result["settings"].get("data")
        # the demo set is shown where it is there; a report renders none
        self.dataset = Dataset(where if where and where != "None" else cache_folder() / demo.VERSION)
        if self.dataset.fingerprint != result["data"]["fingerprint"]:
            raise InputError(f"{self.dataset.path}: is not the data set that was evaluated")
        self.row = {key: row for row, key in enumerate(self.dataset.column("key").tolist())}
        self.label = self.dataset.column("label")
        if unknown := [key for key in keys if key not in self.row]:
            raise InputError(f"{self.dataset.path}: has no video {short(unknown[0])}")

    def class_of(self, key: str) -> str:
        return str(self.dataset.classes[self.label[self.row[key]]])

    def figure(
        self, key: str, kind: str, caption: str, alt: str, window: tuple[int, int] | None = None
    ) -> str:
        """A clip and what is said of it; nothing where it cannot be decoded. window: its first frame and how many."""
        uri = pictures.clip(self.dataset, self.row[key], window)
        if not uri:
            return ""
        image = f'<img class="{kind}" alt="{html.escape(f"Clip {key}, {alt}")}" src="{uri}">'
        return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def neighbours(result: dict[str, Any]) -> str:
    """Queries and their nearest three, spread over the classes."""
    try:
        gallery = Gallery(result, chain(result["nearest"], *result["nearest"].values()))
    except InputError as error:
        return f"<p>No clips of neighbours: {html.escape(str(error))}</p>"
    queries = list(result["nearest"])
    shown = []
    for query in queries[:: max(1, len(queries) // QUERIES)][:QUERIES]:
        figures = [
            gallery.figure(
                query, "query", f"query {gallery.class_of(query)}", f"{gallery.class_of(query)}: the query"
            )
        ]
        for place, key in enumerate(result["nearest"][query], 1):
            name = gallery.class_of(key)
            kind = "right" if name == gallery.class_of(query) else "wrong"
            figures.append(gallery.figure(key, kind, f"{place}. {name}", f"{name}: neighbour {place}"))
        shown.append(f'<div class="row">{"".join(figures)}</div>')
    return (
        "<h3>Nearest neighbours</h3><p class=soft>A test video (blue) and its three nearest training videos: green of "
        f'the same class, red of another.</p><div class="neighbours">{"".join(shown)}</div>'
    )


def slots(folder: Path, result: dict[str, Any]) -> str:
    """The memory's most used slots, and the clips that address each most (MemDPC, Fig. 8)."""
    path = folder / "memory.npz"
    memory = read_arrays(path, MEMORY, "evaluate again")
    k = len(memory["usage"])
    check_numbers(path, memory["slot"], k, "evaluate again")
    drawn = pictures.memory(memory["usage"], memory["norm"], memory["slot"])
    shares = [f"{100 * memory['usage'][slot]:.1f} % (slot {slot})" for slot in memory["slot"]]
    said = f"Use and norm of {k} slots of the memory; the most used make up {', '.join(shares)}"
    parts = [
        f'<h3>The memory</h3><img class="plot" alt="{html.escape(said)}" src="{drawn}">',
        f"<p class=soft>The {len(memory['slot'])} slots that make up most of what is predicted, and the {CLIPS} training "
        f"clips whose prediction takes most from each. Were all {k} used alike, each would have {100 / k:.2g} %.</p>",
    ]
    try:
        gallery = Gallery(result, memory["key"].ravel().tolist())
    except InputError as error:
        return "".join([*parts, f"<p>No clips of slots: {html.escape(str(error))}</p>"])
    span = result.get("windows", {"span": 1})["span"]
    rows = []
    for number, slot in enumerate(memory["slot"].tolist()):
        used = f"slot {slot}<br><small>{100 * memory['usage'][slot]:.1f} % of all predictions</small>"
        figures = [f"<div>{used}</div>"]
        for key, start, share in zip(
            *(memory[name][number].tolist() for name in ("key", "start", "share")), strict=True
        ):
            name = gallery.class_of(key)
            caption, alt = (
                f"{100 * share:.0f} % · {name}",
                f"{name}: takes {100 * share:.0f} % of its prediction from slot {slot}",
            )
            figures.append(gallery.figure(key, "", caption, alt, (start, span)))
        rows.append(f'<div class="row">{"".join(figures)}</div>')
    return "".join([*parts, f'<div class="neighbours">{"".join(rows)}</div>'])
