"""Decoding on NVDEC, by PyNvVideoCodec: an mp4 file's bytes and frame numbers → 4:2:0 frames in the GPU's memory.

Each thread that decodes has a decoder and a CUDA stream of its own, kept from one video to the next: to open one takes as
long as ten clips. While NVDEC works, Python's lock is free. Frames are taken as NVDEC gives them (NV12); DALI crops
them and makes them RGB.
"""

import os
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.backends.base import is_device_fault
from shards.video.mp4 import DecodeError

_AT_ONCE = 128  # frames that lie in NVDEC's memory together; few trimmed files have more


class Nvdec:
    """Decodes on one GPU, from any number of threads. device: its number."""

    def __init__(self, device: int) -> None:
        self._device, self._kept = device, threading.local()

    def __call__(self, file: bytes, numbers: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """Luma (F, H, W, 1) and chroma (F, H/2, W/2, 2), uint8, of the frames of these ascending numbers, each once.

        They are there when this returns, for any stream. Raises DecodeError for a file that NVDEC does not decode, or
        without one of the frames; RuntimeError where the GPU is in trouble.
        """
        with torch.cuda.device(self._device):
            session = getattr(self._kept, "session", None) or _Session(self._device)
            self._kept.session = None  # after a failure it is of no use
            try:
                planes = session.decode(file, numbers)
            except DecodeError:
                raise
            except Exception as error:  # PyNvVideoCodec's have no common class
                words = " ".join(str(error).split())
                if is_device_fault(error):
                    raise RuntimeError(f"NVDEC: {words}") from error
                raise DecodeError(f"NVDEC: {words}") from error
            self._kept.session = session
            return planes


class _Session:
    """A thread's decoder, stream, and a file in memory: PyNvVideoCodec opens files by name."""

    def __init__(self, device: int) -> None:
        self._device, self._stream = device, torch.cuda.Stream()
        self._file = os.memfd_create("slipstream-nvdec", os.MFD_CLOEXEC)
        self._decoder: Any = None

    def __del__(self) -> None:
        os.close(self._file)

    def decode(self, file: bytes, numbers: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        self._open(file)
        places = {int(number): place for place, number in enumerate(numbers)}
        first, end, planes = 0, int(numbers[-1]) + 1, None
        with torch.cuda.stream(self._stream):
            while first < end:
                frames = self._decoder.get_batch_frames(min(_AT_ONCE, end - first))
                if not frames:
                    raise DecodeError(f"NVDEC: frame {first} of {end} does not decode")
                planes = planes or _Planes(torch.from_dlpack(frames[0]), len(numbers), self._stream)
                for number, frame in enumerate(frames, first):
                    if number in places:
                        planes.take(frame.GetPtrToPlane(0), places[number])
                first += len(frames)
        assert planes
        self._stream.record_event().synchronize()  # the next frames are written where these lie
        return planes.luma, planes.chroma

    def _open(self, file: bytes) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, file, 0)
        name = f"/proc/self/fd/{self._file}"
        if self._decoder is None:
            import PyNvVideoCodec

            self._decoder = PyNvVideoCodec.SimpleDecoder(
                name,
                gpu_id=self._device,
                cuda_stream=self._stream.cuda_stream,
                use_device_memory=True,
                output_color_type=PyNvVideoCodec.OutputColorType.NATIVE,
            )
        else:
            self._decoder.reconfigure_decoder(name)


class _Planes:
    """Memory for frames of one size. like: one of them (3H/2, W), luma above interleaved chroma."""

    def __init__(self, like: Tensor, count: int, stream: torch.cuda.Stream) -> None:
        rows, width = like.shape if like.ndim == 2 else (0, 0)
        if like.dtype != torch.uint8 or not rows or rows % 3 or width % 2:
            raise DecodeError(
                f"NVDEC gives frames of {tuple(like.shape)} {like.dtype}, not of 8 bits in 4:2:0"
            )
        self._height, self._width, self._pitch = rows * 2 // 3, width, like.stride(0)
        self.luma = like.new_empty(count, self._height, width, 1)
        self.chroma = like.new_empty(count, self._height // 2, width // 2, 2)
        self._to = self.luma.data_ptr(), self.chroma.data_ptr()
        self._stream = stream.cuda_stream

    def take(self, address: int, place: int) -> None:
        """Copy the frame that lies at an address. With a torch tensor of each, threads waited for Python's lock."""
        height, pixels = self._height, self._height * self._width
        self._copy(self._to[0] + place * pixels, address, height)
        self._copy(self._to[1] + place * pixels // 2, address + height * self._pitch, height // 2)

    def _copy(self, to: int, address: int, rows: int) -> None:
        from cuda.bindings import runtime

        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        (error,) = runtime.cudaMemcpy2DAsync(
            to, self._width, address, self._pitch, self._width, rows, kind, self._stream
        )
        if error != runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"CUDA error: {error.name} while a frame was copied")
