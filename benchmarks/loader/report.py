"""The figures as a table for the terminal."""

from typing import Any

from .chart import PARTS, describe


def table(name: str, block: dict[str, Any]) -> str:
    """A block of the result as lines of text."""
    lines = [f"{name}: {describe(block)}", f"  {'':34}{'clips/s':>9}{'CPU ms/clip':>13}"]

    def row(what: str, figures: dict[str, Any] | None, note: str = "", key: str = "") -> None:
        clips = (figures or {}).get(f"{key}clips_per_s")
        if clips is None:
            return
        cpu = (figures or {}).get(f"{key}cpu_ms_per_clip")
        lines.append(f"  {what:34}{clips:9.4g}{'' if cpu is None else f'{cpu:.4g}':>13}  {note}".rstrip())

    loader, parts = block["loader"], block["parts"]
    decoded = f"{loader['frames_decoded_per_frame_used']:.2f} frames decoded a frame used"
    row("loader alone", loader, decoded)
    for what, key in PARTS.items():
        row(f"  {what} alone", parts, key=f"{key}_")
    row("  copy to the GPU alone", parts.get("copy"))
    if parts["of_parts"]:
        lines.append(f"  {'  loader / what its parts allow':34}{parts['of_parts']:9.2f}")
    ceiling = block["ceiling"]
    row(
        "  libavcodec alone",
        ceiling,
        f"loader at {ceiling['of_ceiling']:.2f} of it" if ceiling else "",
        "decode_",
    )
    row("model alone", block.get("model"))
    if both := block.get("together"):
        row("training", both, f"waits for data {100 * both['wait_share']:.1f} % of the time")
    for peer in block.get("peers", {}).values():
        if "left_out" in peer:
            lines.append(f"  left out: {peer['left_out']}")
        else:
            decoding = f"; decode and crop {peer['decode_ratio']:.2f}" if "decode_ratio" in peer else ""
            row(peer["title"], peer, f"our loader is {peer['ratio']:.2f} times as fast{decoding}")
    for figures in block.get("sweep", []):
        flags = " ".join(
            f"{k}={figures[k]}"
            for k in ("device", "threads", "nvdec_threads", "pipelines", "prefetch", "batch_size")
            if k in figures
        )
        if "left_out" in figures:
            lines.append(f"  sweep {flags}: left out: {figures['left_out']}")
        else:
            row(f"sweep {flags}", figures)
    if tuned := block.get("tuned"):
        lines.append(
            f"  tuned: --device {tuned['device']} --threads {tuned['threads']} --prefetch {tuned['prefetch']}, noted in "
            f"{tuned['file']} where train.py finds it"
            + (f"; --cpu-share {tuned['cpu_share']:g}" if "cpu_share" in tuned else "")
        )
    memory = block["memory"]
    cuda = "" if memory["peak_cuda_gib"] is None else f", torch on the GPU {memory['peak_cuda_gib']:.1f} GiB"
    if loader.get("device_gib") is not None:
        cuda += (
            f", all on the GPU {loader['device_gib']:.1f} GiB, {loader['beside_torch_gib']:.1f} beside torch"
        )
    if memory["dali_pool_gib"] is not None:
        cuda += f" (DALI's pool {memory['dali_pool_gib']:.1f})"
    lines.append(f"  memory: host {memory['peak_rss_gib']:.1f} GiB{cuda}")
    return "\n".join(lines)
