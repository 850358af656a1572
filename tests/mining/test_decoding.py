"""What streams say of their pixels and times is obeyed, and what they lost is not made up."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.bitstream
import cv2
import numpy as np
import pytest
from videos import path_of

from solo_infoaug.dictionary.tools import describe
from solo_infoaug.errors import VideoError
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.video import Video
from solo_infoaug.mining.windows import windows

Images = list[np.ndarray]


def _write(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    gop: int = 250,
    tune: Callable[[Any], None] = lambda stream: None,
    muxer: Mapping[str, str] | None = None,
    **options: str,
) -> Path:
    """A video at 25 frames a second; `times` are the frames' times in frames."""
    with av.open(str(path), "w", options=dict(muxer or {})) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.gop_size = pix_fmt, gop
        tune(stream)
        for place, image in enumerate(frames):
            layout = "rgba" if image.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(image, format=layout)
            frame.pts = place if times is None else times[place]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _numbers(path: Path, *stretch: float) -> list[int]:
    with Video(path) as video:
        return [frame.number for frame in video.frames(*stretch)]


def _far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.fixture(scope="module")
def frames(scene) -> Images:
    return scene[0]


# --- time


def _late(folder: Path, frames: Images) -> Path:
    return _write(folder / "late.mkv", frames, times=range(250, 250 + len(frames)))


def _joined(folder: Path, frames: Images) -> Path:
    """Two transport streams, one behind the other: time starts anew.

    They say so, as recorders do. Else FFmpeg compares their packets' counters, which are the same
    by chance, and takes what lies before the joint for damaged.
    """
    muxer = {"mpegts_flags": "initial_discontinuity"}
    parts = [_write(folder / f"{n}.ts", frames[n::2], muxer=muxer).read_bytes() for n in range(2)]
    (folder / "joined.ts").write_bytes(b"".join(parts))
    return folder / "joined.ts"


def _paused(folder: Path, frames: Images) -> Path:
    """A recording that was stopped for a minute."""
    times = [place + 1500 * (place >= 32) for place in range(len(frames))]
    return _write(folder / "paused.mkv", frames, times=times)


def _negative(folder: Path, frames: Images) -> Path:
    path = folder / "negative.mkv"
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p"
        for place, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = place - 20
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _bare(folder: Path, frames: Images) -> Path:
    """No container, so that packets have no times and nothing says how long it lasts."""
    return _write(folder / "bare.h264", frames)


@pytest.mark.parametrize("make", [_late, _joined, _paused, _negative, _bare])
def test_stretches_that_meet_share_no_frame_and_lose_none(
    tmp_path: Path, frames: Images, make: Callable[[Path, Images], Path]
) -> None:
    path = make(tmp_path, frames)
    assert _numbers(path) == list(range(64))
    for cut in (0.25, 0.5):
        head, tail = _numbers(path, 0.0, cut), _numbers(path, cut, 1.0)
        assert head + tail == list(range(64))
        assert abs(len(head) - 64 * cut) <= 2


def test_duration_is_measured(tmp_path: Path, frames: Images) -> None:
    for make in (_late, _joined, _paused, _bare):
        with Video(make(tmp_path, frames)) as video:
            assert video.duration == pytest.approx(64 / 25, abs=0.13)


def test_a_jump_in_time_is_a_gap(tmp_path: Path, frames: Images) -> None:
    for make in (_joined, _paused):
        with Video(make(tmp_path, frames)) as video:
            assert [frame.number for frame in video.frames() if frame.gap] == [32]
            assert video.record["time_jumps"] == 1


def test_a_gap_begins_a_shot_and_steps_do_not_lose_it(tmp_path: Path, frames: Images) -> None:
    path = _paused(tmp_path, [frames[0]] * 64)
    with Video(path) as video:
        found = list(windows(video.frames(), MineConfig(min_frames=8, window=64, stride=64)))
    assert [(window.numbers[0], len(window)) for window in found] == [(0, 32), (32, 32)]
    with Video(path) as video:
        assert [frame.number for frame in video.frames(step=3) if frame.gap] == [33]


def test_a_variable_rate_is_named(tmp_path: Path, frames: Images) -> None:
    path = _write(tmp_path / "v.mkv", frames, times=np.cumsum([1, 1, 4, 2] * 16).tolist())
    with Video(path) as video:
        assert [frame.number for frame in video.frames() if frame.gap] == []
        assert video.record["frame_interval"] == pytest.approx([0.04, 0.16], abs=0.002)


def test_times_that_a_container_does_not_have_are_no_variable_rate(
    tmp_path: Path, frames: Images
) -> None:
    """AVI has no presentation times; with B-frames FFmpeg guesses them, and not in order."""
    with Video(_write(tmp_path / "b.avi", frames, bf="3")) as video:
        assert [frame.number for frame in video.frames()] == list(range(64))
        record = video.record
    assert record["times_out_of_order"] > 0
    assert "frame_interval" not in record
    assert record["duration"] == pytest.approx(64 / 25, abs=0.13)


# --- damage


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4"])
def test_no_frame_that_is_kept_is_damaged(tmp_path: Path, frames: Images, codec: str) -> None:
    long = (frames + frames[::-1]) * 2
    whole = _write(tmp_path / "whole.mkv", long, codec, gop=25, bf="2", b="2M")
    with Video(whole) as video:
        truth = {frame.number: frame.image() for frame in video.frames()}
        assert (video.damaged, video.left_out) == (0, 0)
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    rng = np.random.default_rng(3)
    damaged = tmp_path / "damaged.mkv"
    with av.open(str(whole)) as source, av.open(str(damaged), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for place, packet in enumerate(source.demux(video=0)):
            if not packet.size:
                continue
            data = bytearray(bytes(packet))
            if place in (60, 61, 150):
                for at in rng.integers(len(data) // 4, len(data), 12):
                    data[at] ^= 0xFF
            fresh = av.Packet(bytes(data))
            fresh.pts, fresh.dts, fresh.time_base = packet.pts, packet.dts, packet.time_base
            fresh.stream, fresh.is_keyframe = stream, packet.is_keyframe
            target.mux(fresh)
    with Video(damaged) as video:
        kept = list(video.frames())
        assert video.damaged >= 1
        assert video.left_out == len(truth) - len(kept)
    assert len(packets) == 256
    assert 0.5 * len(truth) < len(kept) < len(truth)
    assert all(_far(frame.image(), truth[frame.number]) < 0.1 for frame in kept)
    gaps = [frame.number for frame in kept if frame.gap]
    missing = sorted(set(truth) - {frame.number for frame in kept})
    assert gaps == [n + 1 for n in missing if n + 1 not in missing and n + 1 < len(truth)]


def test_a_stream_that_is_cut_off_ends_before_its_last_half_frame(
    tmp_path: Path, frames: Images
) -> None:
    data = _write(tmp_path / "whole.ts", frames).read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[: int(0.85 * len(data))])
    with Video(tmp_path / "whole.ts") as video:
        truth = [frame.image() for frame in video.frames()]
    with Video(tmp_path / "cut.ts") as video:
        kept = list(video.frames())
        assert video.damaged >= 1
        assert video.left_out >= 1
    assert len(kept) > 20
    assert all(_far(frame.image(), truth[frame.number]) < 0.1 for frame in kept)


def _flipped(data: bytes, places: Sequence[float]) -> bytes:
    """Bytes inverted at these fractions of a file."""
    content = bytearray(data)
    for place in places:
        content[int(place * len(content))] ^= 0xFF
    return bytes(content)


def test_background_has_no_twin_by_damage(tmp_path: Path, frames: Images) -> None:
    """Patches are judged by where the objects are in the frame that the patch is of."""
    whole = _write(tmp_path / "whole.ts", frames, crf="18")
    data = whole.read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[: int(0.7 * len(data))])
    (tmp_path / "flipped.ts").write_bytes(_flipped(data, [0.75]))
    boxes = np.stack(
        [
            np.array(start) + path_of(len(frames), seed)
            for start, seed in (((24.0, 40.0), 10), ((152.0, 40.0), 11))
        ]
    )  # [2, T, 2]: where the objects of `two_objects` begin
    for path in (whole, tmp_path / "cut.ts", tmp_path / "flipped.ts"):
        # In the last window of the whole video three outlines have twins too, two pixels outside
        # of the object, unless motion is far above the noise
        config = MineConfig(
            temporal_crops=1, **({"motion_over_noise": 12.0} if path == whole else {})
        )
        found = mine(path, tmp_path / f"{path.stem}-twins", config, progress=False)
        rows = found.patches[found.anchors.numpy()]
        begin = boxes[:, rows["frame"]]
        centre = np.stack([rows["x"], rows["y"]], axis=-1)
        inside = ((centre >= begin) & (centre < begin + 80)).all(-1).any(0)
        assert len(rows) > 30
        assert inside.all()
        damaged = path != whole
        (source,) = describe(found)["sources"]
        assert (source["damaged_packets"] > 0) == damaged == (source["frames_left_out"] > 0)


def test_a_video_without_a_whole_frame_is_explained(tmp_path: Path, frames: Images) -> None:
    """All frames refer to the only keyframe: where that is damaged, none is what was recorded."""
    data = _write(tmp_path / "whole.ts", frames, crf="18").read_bytes()
    (tmp_path / "rotten.ts").write_bytes(_flipped(data, [0.05, 0.1, 0.4]))
    message = r"rotten\.ts: no frame is whole; 64 frames were left out: \d+ damaged packets"
    with pytest.raises(VideoError, match=message):
        mine(tmp_path / "rotten.ts", tmp_path / "twins", progress=False)


def test_motion_jpeg_loses_single_frames(tmp_path: Path, frames: Images) -> None:
    path = _write(tmp_path / "m.avi", frames, "mjpeg", "yuvj420p")
    data = path.read_bytes()
    start = data.index(b"\xff\xd8", len(data) // 2)
    # From the middle of a picture to its end there is nothing any more
    end = data.index(b"\xff\xd9", start)
    middle = (start + end) // 2
    path.write_bytes(data[:middle] + bytes(end + 2 - middle) + data[end + 2 :])
    with Video(path) as video:
        kept = [frame.number for frame in video.frames()]
        assert (video.damaged, video.left_out) == (1, 0)
    assert len(kept) == 63


# --- which stream


def _with_cover(path: Path, frames: Images) -> None:
    data = _write(path, frames).read_bytes()
    picture = cv2.imencode(".png", frames[0])[1].tobytes()

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content) + 8) + kind + content

    cover = box(b"ilst", box(b"covr", box(b"data", struct.pack(">II", 14, 0) + picture)))
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    extra = box(b"udta", box(b"meta", bytes(4) + handler + cover))
    at = data.index(b"moov") - 4  # it lies behind the frames: no offset changes
    size = struct.unpack(">I", data[at : at + 4])[0]
    path.write_bytes(data[:at] + struct.pack(">I", size + len(extra)) + data[at + 4 :] + extra)


def test_a_cover_picture_is_not_the_video(tmp_path: Path, frames: Images) -> None:
    _with_cover(tmp_path / "cover.mp4", frames)
    assert len(_numbers(tmp_path / "cover.mp4")) == 64
    with Video(tmp_path / "cover.mp4") as video:
        assert video.record["cover_pictures"] == 1


def test_other_video_streams_are_named(tmp_path: Path, frames: Images) -> None:
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 160, 256, "yuv420p"
        for image in frames:
            for stream in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    with Video(tmp_path / "two.mkv") as video:
        assert sum(1 for _ in video.frames()) == 64
        assert video.record["other_video_streams"] == 1


# --- pixels


@pytest.mark.parametrize(("shape", "width"), [(Fraction(2), 512), (Fraction(1, 2), 128)])
def test_pixels_that_are_not_square(
    tmp_path: Path, frames: Images, shape: Fraction, width: int
) -> None:
    def tune(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = shape

    path = _write(tmp_path / "wide.mp4", frames, tune=tune)
    with Video(path) as video:
        frame = next(video.frames())
        assert video.record["pixel_shape"] == f"{shape.numerator}:{shape.denominator}"
    assert frame.size == (160, width)
    expected = cv2.resize(frames[0], (width, 160), interpolation=cv2.INTER_AREA)
    assert _far(frame.image(), expected) < 16


def test_a_pixel_shape_out_of_all_bounds_is_not_believed(tmp_path: Path, frames: Images) -> None:
    def tune(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(1, 90)

    with Video(_write(tmp_path / "a.mp4", frames[:3], tune=tune)) as video:
        assert next(video.frames()).size == (160, 256)
        assert video.record["pixel_shape"] == "1:90 (not believed: taken as square)"


# Display matrices (a, b, c, d) of FFmpeg's display.h, and what numpy makes of the stored picture
_MATRICES: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (-1, 0, 0, -1): lambda image: image[::-1, ::-1],
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, 1, 0): lambda image: np.rot90(image),
    (0, 1, 1, 0): lambda image: image.swapaxes(0, 1),
    (0, -1, -1, 0): lambda image: image[::-1, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", list(_MATRICES))
def test_turned_and_mirrored_pictures(
    tmp_path: Path, frames: Images, matrix: tuple[int, int, int, int]
) -> None:
    path = _write(tmp_path / "turned.mp4", frames[:3])
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    expected = _MATRICES[matrix](frames[0])
    with Video(path) as video:
        frame = next(video.frames())
        said = video.record.get("orientation")
    assert frame.size == expected.shape[:2]
    assert _far(frame.image(), expected) < 12
    assert (said is None) == (matrix == (1, 0, 0, 1))


def test_interlaced_fields_are_not_one_picture(tmp_path: Path, frames: Images) -> None:
    woven = []
    for place in range(0, 64, 2):
        image = frames[place].copy()
        image[1::2] = frames[place + 1][1::2]
        woven.append(image)
    path = _write(tmp_path / "i.mp4", woven, **{"x264-params": "tff=1", "crf": "12"})
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Video(path) as video:
        shown = list(video.frames())
        assert video.record["interlaced"] == "deinterlaced by bwdif"
    assert [frame.number for frame in shown] == list(range(32))
    better = [
        _far(frame.image(), frames[2 * place]) < _far(raw, frames[2 * place])
        for place, (frame, raw) in enumerate(zip(shown, stored, strict=True))
    ]
    assert np.mean(better) > 0.9


def test_what_is_transparent_is_black(tmp_path: Path, frames: Images) -> None:
    images = [np.dstack([image, np.zeros(image.shape[:2], np.uint8)]) for image in frames[:3]]
    for image in images:
        image[:, :128, 3] = 255
    path = _write(tmp_path / "alpha.mkv", images, "ffv1", "bgra")
    with Video(path) as video:
        frame = next(video.frames())
        assert video.record["transparency"] == "over black"
    for layout in ("rgb24", "bgr24", "gray"):
        assert (frame.image(layout=layout)[:, 128:] == 0).all()
    assert (frame.image()[:, :128] == images[0][:, :128, :3]).all()


def test_colour_is_in_the_record_and_the_matrix_obeyed(tmp_path: Path, frames: Images) -> None:
    def tune(stream: Any) -> None:
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, 16, 9

    green = np.zeros((64, 64, 3), np.uint8)
    green[..., 1] = 200
    green[::2, ::2] = 90
    frame = av.VideoFrame.from_ndarray(green, format="rgb24")
    encoded = frame.reformat(format="yuv444p", dst_colorspace="ITU709")
    path = tmp_path / "709.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.colorspace = 1
        container.mux(stream.encode(encoded))
        container.mux(stream.encode())
    with Video(path) as video:
        assert _far(next(video.frames()).image(), green) < 3
        assert video.record["colour"]["matrix"] == 1
    with Video(_write(tmp_path / "hdr.mkv", frames[:2], "ffv1", "yuv420p10le", tune=tune)) as video:
        list(video.frames())
        record = video.record
    assert record["colour"] == {
        "primaries": 9,
        "transfer": 16,
        "matrix": 9,
        "range": record["colour"]["range"],
    }
    assert record["high_dynamic_range"] == "PQ, not tone-mapped"
    assert record["pixel_format"] == "yuv420p10le"


def test_a_size_that_changes_is_named(tmp_path: Path, frames: Images) -> None:
    small = [np.ascontiguousarray(image[:96, :128]) for image in frames]
    parts = [
        _write(tmp_path / f"{n}.ts", part).read_bytes() for n, part in ((1, frames), (2, small))
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    with Video(tmp_path / "both.ts") as video:
        found = list(windows(video.frames(), MineConfig(min_frames=32, window=64, stride=64)))
        assert video.record["sizes"] == ["256x160", "128x96"]
    assert [window.size for window in found] == [(160, 256), (96, 128)]


def test_black_frames_before_a_scene_are_in_none_of_its_windows(
    tmp_path: Path, frames: Images
) -> None:
    """The cut detector knows no cut this early; all tracks would be lost in the second frame."""
    black = [np.zeros_like(frames[0])] * 3
    with Video(_write(tmp_path / "b.mp4", black + frames[:40])) as video:
        (window,) = windows(video.frames(), MineConfig(min_frames=32, window=64, stride=64))
    assert (window.numbers[0], len(window)) == (3, 40)


def test_gif_frames_cover_what_they_leave_out(tmp_path: Path, frames: Images) -> None:
    from PIL import Image

    images = [Image.fromarray(image).quantize(64) for image in frames[:8]]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=40)
    with Video(tmp_path / "a.gif") as video:
        shown = [frame.image() for frame in video.frames()]
    assert len(shown) == 8
    assert all(
        _far(one, np.asarray(image.convert("RGB"))) < 1
        for one, image in zip(shown, images, strict=True)
    )


# --- what changes while it plays


def _parts(folder: Path, frames: Images, *filters: str, bf: str = "0") -> Path:
    """One H.264 stream after the other, each with what a filter writes into its packets."""
    joined = b""
    for place, what in enumerate(filters):
        path = _write(folder / f"{place}.h264", frames[:12], bf=bf)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            for packet in container.demux(stream):
                # A filter writes into the first packet that it sees
                tuned = av.bitstream.BitStreamFilterContext(f"h264_metadata={what}", stream)
                joined += b"".join(map(bytes, tuned.filter(packet) if packet.size else []))
    (folder / "parts.h264").write_bytes(joined)
    return folder / "parts.h264"


@pytest.mark.parametrize("bf", ["0", "3"])
def test_the_pixel_shape_is_that_of_each_frame(tmp_path: Path, frames: Images, bf: str) -> None:
    """With B-frames, frames come out after the header of the next part was read."""
    shapes = [f"sample_aspect_ratio={shape}" for shape in ("12/11", "16/11", "1/1")]
    with Video(_parts(tmp_path, frames, *shapes, bf=bf)) as video:
        found = list(video.frames())
        assert video.record["pixel_shape"] == "12:11, 16:11, 1:1"
    # 256 columns of 160 rows: 256 · 12/11 = 279.3, 256 · 16/11 = 372.4
    sizes = [(160, 279)] * 12 + [(160, 372)] * 12 + [(160, 256)] * 12
    assert [frame.size for frame in found] == sizes
    assert [frame.number for frame in found if frame.gap] == [12, 24]


def test_pixel_shapes_of_two_videos_that_are_read_by_turns(tmp_path: Path, frames: Images) -> None:
    """What PyAV keeps for a packet must not be shared with another reader's packets."""
    shapes = [f"sample_aspect_ratio={shape}" for shape in ("12/11", "16/11", "1/1")]
    path = _parts(tmp_path, frames, *shapes, bf="3")
    sizes = [(160, 279)] * 12 + [(160, 372)] * 12 + [(160, 256)] * 12
    for lead in range(24):
        with Video(path) as video, Video(path) as other:
            ahead = other.frames()
            for _ in range(lead):
                next(ahead)
            found = []
            for frame in video.frames():
                found.append(frame.size)
                next(ahead, None)
        assert found == sizes


def test_a_container_that_contradicts_its_stream_is_right(tmp_path: Path, frames: Images) -> None:
    def tune(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(12, 11)

    path = _write(tmp_path / "boxed.mp4", frames[:12], tune=tune)
    data = bytearray(path.read_bytes())
    at = data.index(b"pasp") + 4
    assert struct.unpack(">2I", data[at : at + 8]) == (12, 11)
    data[at : at + 8] = struct.pack(">2I", 2, 1)
    path.write_bytes(data)
    with Video(path) as video:
        assert {frame.size for frame in video.frames()} == {(160, 512)}
        assert video.record["pixel_shape"] == "2:1"


def test_a_turn_begins_a_shot_though_the_size_stays(tmp_path: Path, frames: Images) -> None:
    turns = [f"display_orientation=insert:rotate={angle}" for angle in (0, 180)]
    with Video(_parts(tmp_path, frames, *turns)) as video:
        found = list(video.frames())
        assert video.record["orientation"] == "as stored, turned by 180 degrees"
    assert [frame.number for frame in found if frame.gap] == [12]
    assert _far(found[3].image(), frames[3]) < 12
    assert _far(found[15].image(), frames[3][::-1, ::-1]) < 12


def test_colours_are_those_of_each_frame(tmp_path: Path, frames: Images) -> None:
    """The same numbers, said to be of another range, are another picture: 16 is black, or not."""
    ranges = [f"video_full_range_flag={full}:matrix_coefficients=6" for full in (0, 1)]
    with Video(_parts(tmp_path, frames, *ranges)) as video:
        found = list(video.frames())
        said = [video.record["colour"], *video.record["other_colours"]]
    assert [(one["range"], one["matrix"]) for one in said] == [("limited", 6), ("full", 6)]
    # 219 steps from 16 for 255 from 0
    narrow, full = (found[place].image(layout="gray").astype(float) for place in (3, 15))
    assert np.abs((full - 16) * 255 / 219 - narrow).mean() < 1.5


def test_formats_and_sizes_are_all_named(tmp_path: Path, frames: Images) -> None:
    parts = [_write(tmp_path / "0.ts", frames[:12], "mpeg2video", "yuv420p")]
    small = [cv2.resize(image, (192, 128)) for image in frames[:12]]
    parts.append(_write(tmp_path / "1.ts", small, "mpeg2video", "yuv422p"))
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with Video(tmp_path / "both.ts") as video:
        assert {frame.size for frame in video.frames()} == {(160, 256), (128, 192)}
        assert video.record["sizes"] == ["256x160", "192x128"]
        assert video.record["pixel_format"] == "yuv420p, yuv422p"
