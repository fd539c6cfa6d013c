"""The figures as bars: a panel an objective, what was measured in one run side by side."""

from pathlib import Path
from typing import Any

COLOURS = {
    "ours": "#1b6ca8",
    "part": "#9cc3e0",
    "ceiling": "#c9c9c9",
    "peer": "#d9822b",
    "model": "#7a9e55",
}
PARTS = {
    "decode and crop": "decode",
    "augmentation": "augment",
    "read and trim": "trim",
    "NVDEC": "nvdec",
    "NVDEC and augmentation": "graph",
}
CUT = ("augmentation alone", "read and trim alone")  # may be so much faster that nothing else could be seen


def bars(block: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What a block has to show: (name, clips/s, kind), from top to bottom."""
    parts = block["parts"]
    shown = [("loader alone", block["loader"]["clips_per_s"], "ours")]
    for peer in block.get("peers", {}).values():
        if peer.get("clips_per_s"):
            shown.append((peer["title"], peer["clips_per_s"], "peer"))
    shown += [
        (f"{name} alone", parts[f"{key}_clips_per_s"], "part")
        for name, key in PARTS.items()
        if f"{key}_clips_per_s" in parts
    ]
    if block["ceiling"]:
        shown.append(("libavcodec alone", block["ceiling"]["decode_clips_per_s"], "ceiling"))
    for name, key in (("model alone", "model"), ("training", "together")):
        if block.get(key):
            shown.append((name, block[key]["clips_per_s"], "model"))
    return shown


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Write the chart of a result, as tools/bench_loader.py makes it, to `path` (.png, .svg or .pdf)."""
    from matplotlib.figure import Figure

    blocks: dict[str, dict[str, Any]] = result["objectives"]
    shown = {name: bars(block) for name, block in blocks.items()}
    heights = [len(one) + 1.2 for one in shown.values()]
    figure = Figure(figsize=(8, 0.3 * sum(heights) + 1), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, (name, one) in zip(panels, shown.items(), strict=True):
        names, rates, kinds = zip(*one, strict=True)
        limit = max(clips for part, clips, _ in one if part not in CUT)
        bar = panel.barh(
            names, [min(clips, limit) for clips in rates], color=[COLOURS[kind] for kind in kinds]
        )
        labels = [f"{clips:.3g}" + (" (bar cut)" if clips > limit else "") for clips in rates]
        panel.bar_label(bar, labels, padding=3, fontsize=8)
        panel.invert_yaxis()
        panel.set_title(f"{name}: {describe(blocks[name])}", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.set_xlim(0, limit * 1.15)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("clips a second", fontsize=8)
    machine = result["machine"]
    figure.suptitle(
        f"{result['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)


def describe(block: dict[str, Any]) -> str:
    """What was looked at, in a line."""
    views, settings = block["views"], block["settings"]
    return (
        f"{views['views']} × {views['frames']} frames of {views['size']}² from {block['data']['name']}, batch "
        f"{settings['batch_size']}, {settings['threads']} threads, --device {block['backend']}"
    )
