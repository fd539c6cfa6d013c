"""What suits a method's view spec: `make_shards --for`, and the stride that goes with it.

Sizes are the smallest multiples of 16 from which the paper's views are cut without scaling up (VDIM's random boxes:
nearly), rates those at which the paper looks, key frames as close as the clip's length makes worth their bytes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.encode import Encoding
from shards.errors import InputError
from shards.schema import read_description

Method = Literal["dpc", "memdpc", "tcp", "pace", "vdim"]


@dataclass(frozen=True)
class Preset:
    """short_side, gop, fps: of shards.encode.Encoding. rate: frames a second that the method looks at, where it leaves
    others out; None where it takes them as they come."""

    short_side: int
    gop: int
    fps: float | None = None
    rate: float | None = None

    def stride(self, encoding: Encoding) -> int | None:
        """Every so-manieth stored frame is one that the method looks at; None where the preset leaves that open."""
        if self.rate is None or encoding.fps is None:
            return None
        return max(1, round(encoding.fps / self.rate))


_BLOCKS = Preset(160, 10, fps=10, rate=10)  # 7/8 of 144 is less than the 128 of a view
PRESETS: dict[Method, Preset] = {
    "dpc": _BLOCKS,
    "memdpc": _BLOCKS,
    "tcp": Preset(256, 16),
    "pace": Preset(128, 16),
    "vdim": Preset(192, 16),
}


def stride_of(data: Path) -> int | None:
    """The stride that a data set was made for, as its dataset.json says; None where it says nothing or is not here."""
    try:
        stride: int | None = read_description(data)["settings"].get("stride")
    except InputError:  # whoever opens the data set says so
        return None
    return stride
