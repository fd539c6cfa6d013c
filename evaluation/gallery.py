"""Clips of the report, playing: nearest neighbours of test videos, and what addresses the slots of a memory."""

import html
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import pictures
from evaluation.memory import CLIPS
from shards import Dataset, InputError, demo

QUERIES = 6


class Gallery:
    """The videos of a result. Raises InputError where they are no longer there."""

    def __init__(self, result: dict[str, Any]) -> None:
        where = result["settings"]["data"]
        self.dataset = Dataset(where if where and where != "None" else demo.ensure())
        if self.dataset.fingerprint != result["data"]["fingerprint"]:
            raise InputError(f"{self.dataset.path}: is not the data set that was evaluated")
        self.row = {key: row for row, key in enumerate(self.dataset.column("key").tolist())}
        self.label = self.dataset.column("label")

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
        gallery = Gallery(result)
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
    with np.load(folder / "memory.npz") as found:
        memory = {name: found[name] for name in found.files}
    k = len(memory["usage"])
    drawn = pictures.memory(memory["usage"], memory["norm"], memory["slot"])
    shares = [f"{100 * memory['usage'][slot]:.1f} % (slot {slot})" for slot in memory["slot"]]
    said = f"Use and norm of {k} slots of the memory; the most used make up {', '.join(shares)}"
    parts = [
        f'<h3>The memory</h3><img class="plot" alt="{html.escape(said)}" src="{drawn}">',
        f"<p class=soft>The {len(memory['slot'])} slots that make up most of what is predicted, and the {CLIPS} training "
        f"clips whose prediction takes most from each. Were all {k} used alike, each would have {100 / k:.2g} %.</p>",
    ]
    try:
        gallery = Gallery(result)
    except InputError as error:
        return "".join([*parts, f"<p>No clips of slots: {html.escape(str(error))}</p>"])
    span = result["windows"]["span"]
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
