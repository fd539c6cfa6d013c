"""One video in, one clip out: numbering, size, tags, GOPs, and what is rejected."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from independent import decode, render

from shards import InputError
from shards.video.encode import CRF, Encoding, Tune
from shards.video.pictures import fitted
from shards.video.read import REASONS, Rejected
from shards.video.transcode import transcode

CODECS = sorted(CRF)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rate", [25, Fraction(30000, 1001), Fraction(1000, 33)])
def test_frame_n_has_time_n_over_fps_and_all_frames_are_kept(
    tmp_path: Path, codec: str, rate: Fraction
) -> None:
    clip = transcode(
        render(tmp_path / "in.avi", frames=37, rate=rate, codec="ffv1"), Encoding(codec=codec, gop=12)
    )
    seen = decode(clip.data)
    assert (
        (seen.frames, seen.width, seen.height) == (clip.num_frames, clip.width, clip.height) == (37, 96, 64)
    )
    assert clip.fps == pytest.approx(float(rate))
    assert seen.times == [n / seen.rate for n in range(37)]
    assert [round(time * Fraction(clip.fps)) for time in seen.times] == list(range(37))
    assert np.all(np.diff(seen.levels) > 0)  # each source frame is 2 brighter than the one before
    assert seen.keys == (list(range(37)) if codec == "mjpeg" else [0, 12, 24, 36])
    assert seen.streams == ["video"] and seen.b_frames == (codec == "h264")


@pytest.mark.parametrize(
    ("gop", "b_frames", "referred_to"), [(16, 2, 6), (16, 0, 16), (7, 3, 3), (250, 5, 7)]
)
def test_no_frame_refers_to_b_frames(tmp_path: Path, gop: int, b_frames: int, referred_to: int) -> None:
    """Frames 0, b + 1, 2·(b + 1), … of each GOP are referred to, and its last."""
    clip = transcode(render(tmp_path / "in.avi", frames=37), Encoding(gop=gop, b_frames=b_frames))
    with av.open(io.BytesIO(clip.data)) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        numbers = [round(frame.time * clip.fps) for frame in container.decode(video=0)]
    assert len([n for n in numbers if n < gop]) == referred_to
    assert all(n % gop % (b_frames + 1) == 0 or (n + 1) % gop == 0 or n == 36 for n in numbers)


@pytest.mark.parametrize("codec", CODECS)
def test_a_frame_decodes_alone_from_its_key_frame(tmp_path: Path, codec: str) -> None:
    clip = transcode(render(tmp_path / "in.avi", frames=40), Encoding(codec=codec, gop=8))
    whole = decode(clip.data).levels
    with av.open(io.BytesIO(clip.data)) as container:
        stream = container.streams.video[0]
        for n in (35, 8, 23):
            container.seek(round(n / (clip.fps * stream.time_base)), stream=stream)
            frames = {round(f.time * clip.fps): f for f in container.decode(stream)}
            assert min(frames) >= n - 7
            assert frames[n].to_ndarray()[:64].mean() == pytest.approx(whole[n], abs=1e-6)


@pytest.mark.parametrize(("tune", "spent"), [("fastdecode", b"0"), ("none", b"1")])
def test_fastdecode_leaves_out_what_is_slow_to_decode(tmp_path: Path, tune: Tune, spent: bytes) -> None:
    clip = transcode(render(tmp_path / "in.avi", frames=3), Encoding(tune=tune))
    notes = clip.data[clip.data.index(b"x264 - core") :]  # x264 writes its settings into the first frame
    cabac, deblock = notes.index(b"cabac="), notes.index(b"deblock=")
    assert notes[cabac + 6 : cabac + 7] == spent and notes[deblock + 8 : deblock + 9] == spent


@pytest.mark.parametrize("codec", CODECS)
def test_tags_are_bt601_and_the_range_is_told(tmp_path: Path, codec: str) -> None:
    clip = transcode(render(tmp_path / "in.avi", frames=3), Encoding(codec=codec))
    # MJPEG decoders always report BT.470BG, number 5, the same matrix under another name
    expected = ("yuvj420p", 5, 2, 6, 6) if codec == "mjpeg" else ("yuv420p", 6, 1, 6, 6)
    assert decode(clip.data).tags == {expected}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tagged", [1, 6, 2])
def test_colours_survive_whatever_matrix_the_source_has(tmp_path: Path, codec: str, tagged: int) -> None:
    rgb = np.array([200, 60, 90])
    # Y'CbCr of that colour by the standards' own formulas, limited range
    kr, kb = (0.2126, 0.0722) if tagged == 1 else (0.299, 0.114)
    y = rgb @ [kr, 1 - kr - kb, kb] / 255
    cb, cr = (rgb[2] / 255 - y) / (2 - 2 * kb), (rgb[0] / 255 - y) / (2 - 2 * kr)
    values = [round(16 + 219 * y), round(128 + 224 * cb), round(128 + 224 * cr)]
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = tagged, 1
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane, value in zip(frame.planes, values, strict=True):
            plane.update(np.full((plane.height, plane.line_size), value, np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = transcode(tmp_path / "in.mp4", Encoding(codec=codec, crf=2))
    with av.open(io.BytesIO(clip.data)) as container:
        (frame,) = container.decode(video=0)
    planes = [float(np.frombuffer(p, np.uint8).reshape(p.height, -1)[:30, :30].mean()) for p in frame.planes]
    if codec == "mjpeg":
        y, cb, cr = planes[0] / 255, (planes[1] - 128) / 255, (planes[2] - 128) / 255
    else:
        y, cb, cr = (planes[0] - 16) / 219, (planes[1] - 128) / 224, (planes[2] - 128) / 224
    red, blue = y + 1.402 * cr, y + 1.772 * cb  # BT.601
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    np.testing.assert_allclose(255 * np.array([red, green, blue]), rgb, atol=4)


@pytest.mark.parametrize("fps", [10.0, 25.0, 60.0, 29.97])
def test_resampling_shows_the_last_frame_that_began_by_then(tmp_path: Path, fps: float) -> None:
    generator = np.random.default_rng(3)
    times = np.cumsum([5011, *generator.integers(20, 90, 39)])  # ms; starts late, and never steadily
    source = render(tmp_path / "in.mkv", frames=40, times=times.tolist(), codec="ffv1")
    clip = transcode(source, Encoding(fps=fps, crf=5))
    seen = decode(clip.data)
    assert seen.times == [n / seen.rate for n in range(clip.num_frames)] and clip.fps == pytest.approx(fps)
    assert clip.num_frames == pytest.approx((times[-1] - times[0] + 50) / 1000 * fps, abs=3)
    shown = np.round((np.array(seen.levels) - seen.levels[0]) / 2).astype(int)
    slots = np.floor((times - times[0]) / 1000 * fps + 0.5)  # each frame begins at the nearest step
    expected = np.searchsorted(slots, np.arange(clip.num_frames), side="right") - 1
    np.testing.assert_array_equal(shown, expected)


def test_variable_rate_without_fps_keeps_every_frame(tmp_path: Path) -> None:
    times = np.cumsum([0, *np.random.default_rng(4).integers(20, 90, 29)]).tolist()
    clip = transcode(render(tmp_path / "in.mkv", frames=30, times=times), Encoding())
    assert clip.num_frames == 30 == decode(clip.data).frames


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 1000))
def test_fitted_is_even_never_larger_and_keeps_the_aspect(width: int, height: int, short: int) -> None:
    new_width, new_height = fitted(width, height, short)
    assert new_width % 2 == new_height % 2 == 0
    assert new_width <= max(2, width) and new_height <= max(2, height)
    assert min(new_width, new_height) <= max(2, short)
    if min(width, height) >= short:
        assert min(new_width, new_height) == short // 2 * 2
    scale = min(1, short / min(width, height))
    bound = 2 + max(width, height) / short  # the aspect is kept to the rounding of either side
    assert abs(new_width - width * scale) <= bound and abs(new_height - height * scale) <= bound


@pytest.mark.parametrize("codec", CODECS)
def test_odd_sizes_become_even_and_large_ones_small(tmp_path: Path, codec: str) -> None:
    source = render(tmp_path / "in.mkv", frames=2, size=(127, 95), codec="ffv1")
    assert decode(transcode(source, Encoding(codec=codec, multiple=1)).data).width == 126
    small = decode(transcode(source, Encoding(codec=codec, short_side=48, multiple=1)).data)
    assert (small.width, small.height) == (64, 48)


@pytest.mark.parametrize(("degrees", "size"), [(90, (64, 96)), (-90, (64, 96)), (180, (96, 64))])
def test_rotation_tags_are_applied(tmp_path: Path, degrees: int, size: tuple[int, int]) -> None:
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(degrees)
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:20, :20] = 255  # the stored top left corner
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "in.mp4")) as container:
        turned = next(container.decode(video=0)).rotation
    clip = transcode(tmp_path / "in.mp4", Encoding())
    with av.open(io.BytesIO(clip.data)) as container:
        frame = next(container.decode(video=0))
    # the display matrix turns counter-clockwise, as np.rot90 does
    expected = np.rot90(picture[..., 0], turned // 90)
    assert (clip.width, clip.height) == size and frame.rotation == 0
    assert np.abs(frame.to_ndarray(format="gray").astype(int) - expected).mean() < 25


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", ["hflip", "vflip"])
def test_mirrored_pictures_are_shown_as_players_show_them(
    tmp_path: Path, degrees: int, mirrored: str
) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:20, :20] = 255  # the stored top left corner
    picture[40:, :12] = 120
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(degrees, **{mirrored: True})
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "in.mp4")) as container:
        matrix = np.frombuffer(bytes(next(container.decode(video=0)).side_data["DISPLAYMATRIX"]), np.int32)
    # where the matrix takes each pixel: (x, y) to (a x + c y, b x + d y), moved to begin at 0
    (a, b), (c, d) = np.sign(matrix[:2]), np.sign(matrix[3:5])
    y, x = np.mgrid[:64, :96]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    shown_x, shown_y = shown_x - shown_x.min(), shown_y - shown_y.min()
    expected = np.zeros((shown_y.max() + 1, shown_x.max() + 1))
    expected[shown_y, shown_x] = picture[..., 0]
    clip = transcode(tmp_path / "in.mp4", Encoding())
    with av.open(io.BytesIO(clip.data)) as container:
        frame = next(container.decode(video=0))
    assert (clip.height, clip.width) == expected.shape
    assert np.abs(frame.to_ndarray(format="gray").astype(int) - expected).mean() < 12


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (Fraction(8, 9), (640, 480)),
        (Fraction(32, 27), (720, 404)),
        (Fraction(1), (720, 480)),
        (Fraction(1, 100), (720, 480)),
    ],
)
def test_pixels_are_made_square(tmp_path: Path, aspect: Fraction, size: tuple[int, int]) -> None:
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 480, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        container.mux(stream.encode(av.VideoFrame(720, 480, "yuv420p")))
        container.mux(stream.encode(None))
    clip = transcode(tmp_path / "in.mp4", Encoding(short_side=480, multiple=1, preset="ultrafast"))
    assert (clip.width, clip.height) == size
    small = transcode(tmp_path / "in.mp4", Encoding(short_side=120, multiple=1, preset="ultrafast"))
    assert small.width / small.height == pytest.approx(size[0] / size[1], rel=0.02) and small.height == 120


def test_bytes_and_file_give_the_same_clip_twice(tmp_path: Path) -> None:
    source = render(tmp_path / "in.avi")
    for codec in CODECS:
        encoding = Encoding(codec=codec)
        assert transcode(source, encoding).data == transcode(source.read_bytes(), encoding).data


def test_half_a_matroska_file_is_damaged(tmp_path: Path) -> None:
    data = render(tmp_path / "in.mkv", frames=100, codec="mpeg4").read_bytes()
    with pytest.raises(Rejected) as caught:
        transcode(data[: len(data) // 2], Encoding())
    assert caught.value.reason == "damaged" and "announced" in caught.value.detail


def test_a_playlist_does_not_make_us_open_what_it_names(tmp_path: Path) -> None:
    render(tmp_path / "real.ts", codec="mpeg2video")
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\nreal.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(Rejected) as caught:
        transcode(playlist, Encoding())
    assert caught.value.reason in REASONS


def test_time_stamps_far_apart_do_not_fill_the_disk(tmp_path: Path) -> None:
    source = render(tmp_path / "in.mkv", frames=4, times=[0, 40, 80, 60_000])
    with pytest.raises(Rejected) as caught:
        transcode(source, Encoding(fps=60))
    assert caught.value.reason == "bad_times"


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ({"codec": "av1"}, "--codec"),
        ({"short_side": 8}, "--short-side"),
        ({"multiple": 0}, "--multiple 0"),
        ({"multiple": 3}, "--multiple 3"),
        ({"multiple": 128}, "--multiple 128"),
        ({"multiple": 64, "short_side": 48}, "--short-side 48: is less than --multiple 64"),
        ({"fps": 0.0}, "--fps"),
        ({"gop": 0}, "--gop"),
        ({"crf": 52}, "--crf"),
        ({"tune": "film"}, "--tune"),
        ({"b_frames": 16}, "--b-frames 16"),
        ({"b_frames": 1, "codec": "vp9"}, "--b-frames 1: of h264 only"),
        ({"codec": "mjpeg", "crf": 1}, "--crf"),
    ],
)
def test_settings_out_of_range_name_their_flag(setting: dict, flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        Encoding(**setting)
