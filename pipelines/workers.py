"""Processes that make views in memory which they share with the loader's process.

Threads of one process take turns at Python's lock: two of them make three quarters of what two processes make of Pace's
clips (docs/notes/cpu-loader.md). A process costs some 150 MB and a second to start. It ends with the one that started it. This
module imports neither torch nor DALI.
"""

import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from functools import lru_cache
from itertools import count
from math import prod
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.decode import decode_views, keep_freed_memory
from pipelines.sampling import ViewParams
from pipelines.transforms.numpy import NumpyTransform
from pipelines.views import ViewSpec
from shards.tar import Excerpt
from shards.video.mp4 import DecodeError

_KNOWN = 16  # regions of memory that a process keeps in view
_numbers = count()


class Maker:
    """Makes what a clip's video becomes on the CPU. pixels: as they are decoded, for a GPU to finish; else views.

    shape, dtype: of what a clip becomes.
    """

    def __init__(self, spec: ViewSpec, *, pixels: bool) -> None:
        self._spec = spec
        self._transform = None if pixels else NumpyTransform(spec)
        self.dtype = np.dtype(np.uint8 if pixels else np.float32)
        decoded = spec.views * spec.decoded, spec.planes, spec.size, spec.size
        self.shape = decoded if pixels else (spec.views * spec.frames, spec.size**2, spec.channels)

    def __call__(self, video: bytes | Excerpt, params: ViewParams, out: NDArray[Any]) -> None:
        """out: of the sample's clips, (clips, …) as `CpuDecodeBackend.buffer` lends it. Raises DecodeError."""
        spec = self._spec
        place = None if self._transform else out.reshape(-1, *out.shape[2:])
        pixels = decode_views(video, params, spec.size, spec.modality, place)
        if self._transform:
            self.finish(pixels, params, out)

    def finish(self, pixels: NDArray[np.uint8], params: ViewParams, out: NDArray[Any]) -> None:
        """The same of pixels (F, size, size, P) that are decoded already."""
        frames = out.reshape(-1, *out.shape[2:])
        if self._transform is None:
            frames[:] = pixels.transpose(0, 3, 1, 2)
        else:
            self._transform(pixels, params, frames)


class Region:
    """Memory that processes can share: an array of this shape. path: where another process of this user opens it."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.number, bytes_ = next(_numbers), prod(shape) * np.dtype(dtype).itemsize
        self.descriptor = os.memfd_create("slipstream", os.MFD_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        os.ftruncate(self.descriptor, bytes_)
        self.array = np.frombuffer(mmap.mmap(self.descriptor, bytes_), dtype).reshape(shape)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(_KNOWN)
def _opened(number: int, path: str) -> mmap.mmap:
    """The memory of another process's region. The number tells it from one that had the same path before."""
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


class Worker:
    """A process that works for one thread at a time."""

    def __init__(self, spec: ViewSpec, *, pixels: bool) -> None:
        self._spec, self._pixels = spec, pixels
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    @property
    def process(self) -> int | None:
        """Its number; None before the first clip."""
        return self._process.pid if self._process else None

    def make(self, video: bytes | Excerpt, params: ViewParams, region: Region, out: NDArray[Any]) -> None:
        """As Maker, of a part of a region.

        Raises DecodeError too for a video on which two processes crash; MemoryError where memory runs out, which is not
        the video's fault, and RuntimeError for any other end of the processes.
        """
        error: Exception | None = None
        offset = out.__array_interface__["data"][0] - region.array.__array_interface__["data"][0]
        place = region.number, region.path, offset, out.shape, out.dtype.str
        for _ in range(2):
            try:
                if self._process is None:
                    self._start()
                self._connection.send((video, params, place))
                error = self._connection.recv()
                break
            except (EOFError, ConnectionError):
                code = self.end()
                cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                error = _fault(code)(f"the process that decodes it ended twice: {cause}")
        if error:
            raise error

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).parents[__name__.count(".")])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        code = f"from {__name__} import serve; serve({theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())
        self._connection.send((self._spec, self._pixels))

    def end(self) -> int:
        """End the process; returns its exit status, negative for a signal."""
        if self._process is None:
            return 0
        self._connection.close()
        process, self._process = self._process, None
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def serve(descriptor: int) -> None:
    """What a worker process does: clips in, views out, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the loader's to handle
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    keep_freed_memory()
    connection = Connection(descriptor)
    try:
        spec, pixels = connection.recv()
        maker = Maker(spec, pixels=pixels)
        while True:
            video, params, (number, path, offset, shape, dtype) = connection.recv()
            out = np.frombuffer(_opened(number, path), dtype, prod(shape), offset).reshape(shape)
            connection.send(_attempt(maker, video, params, out))
            del out
    except (EOFError, OSError):
        return


def _end_with(parent: int) -> None:
    """End this process with its parent, also amid a long video."""
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(parent)], [], [])
    os._exit(1)


_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


def _attempt(maker: Maker, video: bytes | Excerpt, params: ViewParams, out: NDArray[Any]) -> Exception | None:
    """What went wrong, in a form that can be sent; None where nothing did."""
    try:
        maker(video, params, out)
    except DecodeError as error:
        return DecodeError(str(error))
    except MemoryError as error:
        return MemoryError(f"a decoding process: {error or 'out of memory'}")
    except Exception:
        return RuntimeError(traceback.format_exc())
    return None


def _fault(code: int) -> type[Exception]:
    """Whose fault a process's end is. SIGKILL is as a rule the system's, when memory runs out."""
    if code == -signal.SIGKILL:
        return MemoryError
    return DecodeError if -code in _CRASHES else RuntimeError
