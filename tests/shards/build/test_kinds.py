"""What is no video by default: pictures, drawn text, what is encrypted; and damage inside of frames."""

from pathlib import Path

import av
import numpy as np
import pytest
from independent import make_shards, render, said
from PIL import Image

from shards import Dataset
from shards.build.pool import Reject
from shards.build.process_video import Processing, Task, process_video
from shards.video.encode import Encoding
from shards.video.read import Rejected
from shards.video.transcode import Clip, transcode

TEXT = "Hello world, this is a text.\n" * 80
ANSI = "\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1H text\n" * 50


def _pictures(count: int, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), np.uint8)) for _ in range(count)
    ]


def _stills(folder: Path) -> list[Path]:
    folder.mkdir()
    (picture,) = _pictures(1)
    for kind in ("gif", "png", "jpeg", "webp", "bmp", "tiff", "ico", "avif"):
        picture.save(folder / f"{kind}.video", format=kind)  # what it is decides, not its name
    for name, text in (("readme.nfo", TEXT), ("poem.asc", TEXT), ("art.ans", ANSI)):
        (folder / name).write_text(text)
    return sorted(folder.iterdir())


def test_pictures_and_drawn_text_are_named_rejects_unless_asked_for(tmp_path: Path) -> None:
    for path in _stills(tmp_path / "in"):
        result = process_video(Task(path, Processing(copy=True), tmp_path / "scratch"))
        assert isinstance(result, Reject) and result.reason == "still_picture", (path.name, result)
        kept = process_video(Task(path, Processing(keep_stills=True), tmp_path / "scratch"))
        assert isinstance(kept, Clip) and kept.num_frames >= 1, (path.name, kept)


@pytest.mark.parametrize("kind", ["gif", "png", "avif"])
def test_animated_ones_are_videos(tmp_path: Path, kind: str) -> None:
    first, *others = _pictures(5)
    first.save(tmp_path / f"in.{kind}", save_all=True, append_images=others, duration=40)
    assert transcode(tmp_path / f"in.{kind}", Encoding()).num_frames == 5


def test_a_video_of_one_frame_is_a_video(tmp_path: Path) -> None:
    assert transcode(render(tmp_path / "in.mp4", frames=1), Encoding()).num_frames == 1


def test_the_flag_is_part_of_the_settings(tmp_path: Path) -> None:
    render(tmp_path / "in" / "1.mp4", frames=4)
    _pictures(1)[0].save(tmp_path / "in" / "2.gif")
    settings = ("--workers", 1, "--codec", "mjpeg")
    result = make_shards(tmp_path / "in", "--out", tmp_path / "out", *settings)
    assert result.returncode == 0 and "1 still_picture: a picture or drawn text" in result.stdout
    result = make_shards(tmp_path / "in", "--out", tmp_path / "out", "--keep-stills", *settings)
    assert result.returncode == 2 and "--keep-stills" in said(result)[0]
    result = make_shards(tmp_path / "in", "--out", tmp_path / "kept", "--keep-stills", *settings)
    assert result.returncode == 0 and len(Dataset(tmp_path / "kept")) == 2


def test_an_encrypted_video_is_named_so(tmp_path: Path) -> None:
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    with av.open(str(tmp_path / "in.mp4"), "w", options=key) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame(96, 64, "yuv420p")))
        container.mux(stream.encode(None))
    for keep in (0.9, 0.0):
        with pytest.raises(Rejected) as caught:
            transcode(tmp_path / "in.mp4", Encoding(), keep_damaged=keep)
        assert caught.value.reason == "encrypted"


def _flipped(path: Path, share: float, seed: int) -> Path:
    """The file with `share` of the bytes of its coded frames changed; header and index stay whole."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 64]
    places = np.concatenate([np.arange(pos + 32, pos + size) for pos, size in spans[1:]])
    generator = np.random.default_rng(seed)
    for place in generator.choice(places, max(1, round(len(places) * share)), replace=False):
        data[place] ^= int(generator.integers(1, 256))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [("in.mp4", "libx264"), ("in.avi", "mpeg4"), ("in.ts", "mpeg2video"), ("in.mkv", "libx264")],
)
def test_frames_that_the_decoder_made_up_do_not_count(tmp_path: Path, name: str, codec: str) -> None:
    for seed in range(6):
        source = _flipped(render(tmp_path / name, frames=100, codec=codec, g="25"), 0.01, seed)
        with pytest.raises(Rejected) as caught:
            transcode(source, Encoding())
        assert caught.value.reason == "damaged" and "frames decode of" in caught.value.detail
        assert transcode(source, Encoding(), keep_damaged=0).num_frames > 0


def test_what_is_predicted_from_a_damaged_frame_counts_as_damaged(tmp_path: Path) -> None:
    source = render(tmp_path / "in.mkv", frames=100, codec="libx264", g="25", bf="0", sc_threshold="0")
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = packets[60]  # its GOP is 50 to 74
    data[position + 20 : position + size] = bytes(0xA5 for _ in range(size - 20))
    source.write_bytes(data)
    with pytest.raises(Rejected, match="damage shows in 15 of them"):
        transcode(source, Encoding())
    clip = transcode(source, Encoding(), keep_damaged=0.8)
    assert clip.num_frames == 100 and clip.seen["decoded_fraction"] == pytest.approx(0.85, abs=0.02)
    again = transcode(source, Encoding(gop=25, b_frames=0), keep_damaged=0.8, copy=True)
    assert "copied" not in again.seen
