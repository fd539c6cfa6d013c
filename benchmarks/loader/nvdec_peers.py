"""Other ways to NVDEC, on the files that ours decodes: SPDL and PyNvVideoCodec. Nothing is made of their frames but RGB."""

import importlib.util
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from shards import InputError

from .nvdec import encoded
from .rounds import Figures, Part, rate
from .source import Source
from .spdl_peer import check_spdl


def spdl_nvdec(source: Source, threads: int, batches: int) -> Part:
    """SPDL's decoder, one a thread, which it keeps. Raises InputError where SPDL cannot be loaded."""
    check_spdl()
    import spdl.io

    config = spdl.io.cuda_config(device_index=torch.cuda.current_device())

    def decode(file: Path) -> None:
        spdl.io.decode_packets_nvdec(spdl.io.demux_video(str(file)), device_config=config)

    return _in_threads(decode, source, threads, batches)


def pynvvideocodec(source: Source, threads: int, batches: int) -> Part:
    """One SimpleDecoder a thread, given file after file. Raises InputError where it is not installed."""
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        raise InputError("PyNvVideoCodec is not installed; pip install PyNvVideoCodec")
    import PyNvVideoCodec as nvc

    kept, gpu = threading.local(), torch.cuda.current_device()

    def decode(file: Path) -> None:
        if not hasattr(kept, "decoder"):
            kept.decoder = nvc.SimpleDecoder(
                str(file), gpu_id=gpu, use_device_memory=True, output_color_type=nvc.OutputColorType.RGB
            )
        else:
            kept.decoder.reconfigure_decoder(str(file))
        kept.decoder.get_batch_frames(len(kept.decoder))

    return _in_threads(decode, source, threads, batches)


def _in_threads(decode: Callable[[Path], None], source: Source, threads: int, batches: int) -> Part:
    def part(first: int) -> Figures:
        with (
            tempfile.TemporaryDirectory(prefix="bench-nvdec-") as folder,
            ThreadPoolExecutor(threads) as pool,
        ):
            files = []
            for number, sample in enumerate(source.samples(first, 1)):
                files.append(Path(folder) / f"{number}.mp4")
                files[-1].write_bytes(encoded(source, sample)[0])
            list(pool.map(decode, files))
            return rate(
                lambda: list(pool.map(decode, files)), batches, len(files), torch.device("cuda"), watched=True
            )

    return part
