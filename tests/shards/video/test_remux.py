"""--copy keeps encoded frames that are as asked, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
from independent import decode, render

from shards.build.process_video import Processing, Task, process_video
from shards.video.encode import Encoding
from shards.video.transcode import Clip, transcode

ASKED = Encoding(gop=8, short_side=64)


def copy(source: Path, asked: Encoding) -> Clip | None:
    """The clip that keeps the source's encoded frames; None where they had to be encoded again."""
    clip = transcode(source, asked, copy=True)
    return clip if "copied" in clip.seen else None


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    source = render(tmp_path_factory.mktemp("clip") / "in.avi", frames=30, rate=Fraction(30000, 1001))
    return transcode(source, ASKED)


def _remuxed(clip: Clip, path: Path, change: Callable[[av.Packet, int], None] | None = None) -> Path:
    """The clip in another container, with sound, its packets changed on the way."""
    (path.parent / "clip.mp4").write_bytes(clip.data)
    with av.open(str(path.parent / "clip.mp4")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("aac", rate=8000)
        for n, packet in enumerate(source.demux(video=0)):
            if packet.size:
                if change is not None:
                    change(packet, n)
                packet.stream = stream
                target.mux(packet)
        silence = av.AudioFrame(layout="mono", samples=1024)
        silence.rate = 8000
        target.mux(sound.encode(silence))
        target.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.ts"])
def test_what_conforms_keeps_its_encoded_frames(clip: Clip, tmp_path: Path, name: str) -> None:
    source = _remuxed(clip, tmp_path / name)
    copied = copy(source, ASKED)
    assert copied is not None and copied.seen["copied"] is True
    before, after = decode(clip.data), decode(copied.data)
    assert (after.frames, after.levels, after.keys, after.tags) == (
        30,
        before.levels,
        before.keys,
        before.tags,
    )
    assert after.times == [n / after.rate for n in range(30)] and after.streams == ["video"]
    assert (copied.num_frames, copied.width, copied.height) == (30, 96, 64)
    assert copied.fps == float(after.rate) == pytest.approx(30000 / 1001)
    assert copy(source, ASKED).data == copied.data


@pytest.mark.parametrize("codec", ["hevc", "vp9", "mjpeg"])
def test_every_codec_can_be_copied(tmp_path: Path, codec: str) -> None:
    asked = Encoding(codec=codec, gop=8)
    clip = transcode(render(tmp_path / "in.avi", frames=20), asked)
    (tmp_path / "in.mp4").write_bytes(clip.data)
    copied = copy(tmp_path / "in.mp4", asked)
    assert copied is not None and decode(copied.data) == decode(clip.data)


@pytest.mark.parametrize(
    "asked",
    [
        Encoding(gop=7, short_side=64),
        Encoding(gop=8, short_side=48),
        Encoding(gop=8, short_side=64, fps=30),
        Encoding(codec="hevc", gop=8, short_side=64),
        Encoding(codec="mjpeg", short_side=64),
    ],
)
def test_other_settings_encode_anew(clip: Clip, tmp_path: Path, asked: Encoding) -> None:
    source = _remuxed(clip, tmp_path / "in.mp4")
    assert copy(source, asked) is None
    made = process_video(Task(source, Processing(asked, copy=True), tmp_path))
    assert isinstance(made, Clip) and "copied" not in made.seen
    assert made.data.read_bytes() == transcode(source, asked).data


def test_unsteady_times_turned_pictures_and_b_frames_encode_anew(clip: Clip, tmp_path: Path) -> None:
    def late(packet: av.Packet, n: int) -> None:
        if n >= 20:
            packet.pts += packet.duration
            packet.dts += packet.duration

    assert copy(_remuxed(clip, tmp_path / "vfr.mkv", late), ASKED) is None
    options = {"b_strategy": "0", "g": "8", "sc_threshold": "0", "codec": "libx264"}
    flat = {"b-pyramid": "none"}
    three = render(tmp_path / "3.mp4", frames=30, bf="3", **flat, **options)
    assert copy(three, ASKED) is None and copy(three, replace(ASKED, b_frames=3)) is not None
    pyramid = render(tmp_path / "p.mp4", frames=30, bf="3", **options)
    assert decode(pyramid.read_bytes()).b_frames and copy(pyramid, replace(ASKED, b_frames=3)) is None
    leading = render(
        tmp_path / "o.mp4", frames=30, bf="2", **flat, **options, **{"x264-params": "open-gop=1"}
    )
    assert copy(leading, ASKED) is None
    hevc = {"x265-params": "bframes=2:b-pyramid=0:keyint=8:log-level=none"}
    other = render(tmp_path / "h.mp4", frames=30, codec="libx265", **hevc)
    assert decode(other.read_bytes()).b_frames and copy(other, replace(ASKED, codec="hevc")) is None
    open_ended = render(tmp_path / "long.mp4", frames=30, codec="libx264", bf="0", g="250")
    assert copy(open_ended, ASKED) is None and copy(open_ended, Encoding(gop=30, short_side=64)) is not None


def test_a_damaged_stream_is_not_copied(clip: Clip, tmp_path: Path) -> None:
    source = _remuxed(clip, tmp_path / "in.mp4")
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for position, size in packets[12:16]:
        data[position + 5 : position + size] = bytes(size - 5)
    source.write_bytes(data)
    made = process_video(Task(source, Processing(ASKED, copy=True), tmp_path))
    assert not (isinstance(made, Clip) and made.seen.get("copied"))
