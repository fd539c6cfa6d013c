"""What a result says: its head, from where and when the figures are; and the loader's figures as a table and as a chart.

The head has the date, the command, and what a reader must know of the machine to compare figures.
"""

import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = (
    "torch",
    "torchvision",
    "torchcodec",
    "spdl-io",
    "PyNvVideoCodec",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "accelerate",
    "av",
    "numpy",
    "pyarrow",
)
COLOURS = {"ours": "#1b6ca8", "part": "#9cc3e0", "bare": "#c9c9c9", "peer": "#d9822b", "model": "#7a9e55"}
PARTS = {
    "decode and crop": "decode",
    "augmentation": "augment",
    "read and trim": "trim",
    "read, trim and NVDEC": "nvdec",
    "crop and augmentation": "graph",
}
CUT = ("augmentation alone", "read and trim alone")  # may be so much faster that no other bar could be read


def origin(command: str, argv: Sequence[str]) -> dict[str, Any]:
    """The head of a result. command: the script's path in the checkout; argv: its flags."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join([command, *argv]),
        "machine": describe(),
    }


def describe() -> dict[str, Any]:
    """CPU, cores, GPU, memory, load, and the versions of those of PACKAGES that are installed."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    torch = sys.modules.get("torch")  # not imported for this alone
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {one.name: one.version for one in distributions() if one.name in PACKAGES},
    }


class Row(NamedTuple):
    """kind: of COLOURS; none where there is no bar."""

    name: str
    clips_per_s: float
    cpu_ms_per_clip: float | None = None
    note: str = ""
    kind: str = ""


def rows(block: dict[str, Any]) -> list[Row]:
    """What a block has to show, from top to bottom."""

    def row(name: str, figures: dict[str, Any], kind: str = "", note: str = "", key: str = "") -> Row:
        return Row(name, figures[f"{key}clips_per_s"], figures.get(f"{key}cpu_ms_per_clip"), note, kind)

    loader, parts, ceiling = block["loader"], block["parts"], block["ceiling"]
    decoded = f"{loader['frames_decoded_per_frame_used']:.2f} frames decoded a frame used"
    found = [row("loader alone", loader, "ours", decoded)]
    for peer in block.get("peers", {}).values():
        if "left_out" not in peer:
            decoding = f"; decode and crop {peer['decode_ratio']:.2f}" if "decode_ratio" in peer else ""
            note = f"our loader is {peer['ratio']:.2f} times as fast{decoding}"
            found.append(row(peer["title"], peer, "peer", note))
    found += [
        row(f"{name} alone", parts, "part", key=f"{key}_")
        for name, key in PARTS.items()
        if f"{key}_clips_per_s" in parts
    ]
    if parts.get("copy"):
        found.append(row("copy to the GPU alone", parts["copy"]))
    note = f"loader at {ceiling['of_ceiling']:.2f} of it"
    found.append(row("libavcodec alone", ceiling, "bare", note, "decode_"))
    if "model" in block:
        waits = f"waits for data {100 * block['together']['wait_share']:.1f} % of the time"
        found.append(row("model alone", block["model"], "model"))
        found.append(row("training", block["together"], "model", waits))
    for figures in block.get("sweep", []):
        if "left_out" not in figures:
            flags = [
                f"{k}={v}" for k, v in figures.items() if isinstance(v, int | str)
            ]  # its figures are floats
            found.append(row(f"sweep {' '.join(flags)}", figures))
    return found


def table(name: str, block: dict[str, Any]) -> str:
    """A block of the result as lines of text."""
    lines = [f"{name}: {summary(block)}", f"  {'':42}{'clips/s':>9}{'CPU ms/clip':>13}"]
    for row in rows(block):
        cpu = "" if row.cpu_ms_per_clip is None else f"{row.cpu_ms_per_clip:.4g}"
        lines.append(f"  {row.name:42}{row.clips_per_s:9.4g}{cpu:>13}  {row.note}".rstrip())
    lines.append(f"  {'loader / what its parts allow':42}{block['parts']['of_parts']:9.2f}")
    for one in (*block.get("peers", {}).values(), *block.get("sweep", [])):
        if "left_out" in one:
            lines.append(f"  left out: {one['left_out']}")
    if tuned := block.get("tuned"):
        lines.append(
            f"  tuned: --device {tuned['device']} --threads {tuned['threads']} --prefetch {tuned['prefetch']}"
            f", noted in {tuned['file']} where train.py finds it"
        )
    memory, loader = block["memory"], block["loader"]
    held = {
        "host": memory["peak_rss_gib"],
        "torch on the GPU": memory["peak_cuda_gib"],
        "all on the GPU": loader.get("device_gib"),
        "of it beside torch": loader.get("beside_torch_gib"),
    }
    lines.append(
        "  memory, GiB: " + ", ".join(f"{name} {gib:.1f}" for name, gib in held.items() if gib is not None)
    )
    return "\n".join(lines)


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Write the chart of a result, as tools/bench_loader.py makes it, to `path` (.png, .svg or .pdf)."""
    from matplotlib.figure import Figure

    blocks: dict[str, dict[str, Any]] = result["objectives"]
    shown = {name: [row for row in rows(block) if row.kind] for name, block in blocks.items()}
    heights = [len(one) + 1.2 for one in shown.values()]
    figure = Figure(figsize=(8, 0.3 * sum(heights) + 1), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, (name, one) in zip(panels, shown.items(), strict=True):
        limit = max(row.clips_per_s for row in one if row.name not in CUT)
        bars = panel.barh(
            [row.name for row in one],
            [min(row.clips_per_s, limit) for row in one],
            color=[COLOURS[row.kind] for row in one],
        )
        labels = [f"{row.clips_per_s:.3g}" + (" (bar cut)" if row.clips_per_s > limit else "") for row in one]
        panel.bar_label(bars, labels, padding=3, fontsize=8)
        panel.invert_yaxis()
        panel.set_title(f"{name}: {summary(blocks[name])}", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.set_xlim(0, limit * 1.15)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("clips a second", fontsize=8)
    machine = result["machine"]
    gpu = machine["gpu"] or "no GPU"
    figure.suptitle(f"{result['date']}, {machine['cpu']}, {machine['cores']} cores, {gpu}", fontsize=9)
    figure.savefig(path, dpi=150)


def summary(block: dict[str, Any]) -> str:
    """What was timed, in a line."""
    views, settings = block["views"], block["settings"]
    return (
        f"{views['views']} × {views['frames']} frames of {views['size']}² from {block['data']['name']}, batch "
        f"{settings['batch_size']}, {settings['threads']} threads, --device {block['backend']}"
    )
