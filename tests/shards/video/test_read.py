"""How much of a file came, against what its container announces."""

from collections.abc import Callable
from pathlib import Path

import av
import pytest
from independent import decode, render

from shards import InputError
from shards.build.process_video import Processing
from shards.video.encode import Encoding
from shards.video.read import Rejected
from shards.video.transcode import transcode


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("in.avi", "ffv1"), ("in.mkv", "mpeg4"), ("in.flv", "flv1"), ("in.webm", "libvpx")]
)
def test_half_a_file_is_damaged_and_kept_only_when_asked(tmp_path: Path, name: str, codec: str) -> None:
    source = _cut(render(tmp_path / name, frames=100, codec=codec), 0.5)
    with pytest.raises(Rejected) as caught:
        transcode(source, Encoding())
    assert caught.value.reason == "damaged" and "announced" in caught.value.detail
    kept = transcode(source, Encoding(), keep_damaged=0.2)
    assert 0.2 <= kept.seen["decoded_fraction"] < 0.8
    assert kept.seen["decoded_fraction"] == pytest.approx(kept.num_frames / 100, abs=0.03)


def test_a_file_that_lacks_little_is_kept_with_its_share(tmp_path: Path) -> None:
    clip = transcode(_cut(render(tmp_path / "in.avi", frames=100, codec="ffv1"), 0.95), Encoding())
    assert 0.9 <= clip.seen["decoded_fraction"] < 1 and clip.num_frames < 100
    whole = transcode(render(tmp_path / "in.mkv", frames=50), Encoding())
    assert whole.seen["decoded_fraction"] == pytest.approx(1, abs=0.02)


def _rewritten(source: Path, target: Path, change: Callable[[av.Packet], None]) -> Path:
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                change(packet)
                packet.stream = stream
                new.mux(packet)
    return target


def test_frames_before_the_start_of_a_clip_cut_without_encoding_do_not_count(tmp_path: Path) -> None:
    source = render(tmp_path / "in.mp4", frames=60, codec="libx264", bf="0", g="250")
    with av.open(str(source)) as container:
        tick = next(packet.duration for packet in container.demux(video=0))

    def earlier(packet: av.Packet) -> None:
        packet.pts -= 40 * tick
        packet.dts -= 40 * tick

    cut = _rewritten(source, tmp_path / "cut.mp4", earlier)
    with av.open(str(cut)) as container:
        assert container.streams.video[0].frames == 60
    clip = transcode(cut, Encoding())
    assert clip.num_frames == 20 and clip.seen["decoded_fraction"] == 1


def test_sound_that_outlasts_the_picture_is_no_damage(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.flv"), "w") as container:
        video = container.add_stream("flv1", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=8000)
        for _ in range(25):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(video.encode(None))
        for n in range(40):  # 5 s
            silence = av.AudioFrame(layout="mono", samples=1024)
            silence.rate, silence.pts = 8000, 1024 * n
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    clip = transcode(tmp_path / "in.flv", Encoding())
    assert clip.num_frames == 25 == decode(clip.data).frames
    with pytest.raises(Rejected, match="damaged"):
        transcode(_cut(tmp_path / "in.flv", 0.5), Encoding())


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_senseless_share_names_its_flag(share: float) -> None:
    with pytest.raises(InputError, match="--keep-damaged"):
        Processing(keep_damaged=share)


def test_a_video_too_short_for_the_rate_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="no_frames"):
        transcode(render(tmp_path / "in.avi", frames=1), Encoding(fps=0.5))
