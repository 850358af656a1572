"""Windows: cut to the frame, overlapping, and none that holds nothing new."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.frame import Frame
from solo_infoaug.mining.samples import sample_clips
from solo_infoaug.mining.video import Video
from solo_infoaug.mining.windows import Window, windows


def _picture(value: int, height: int = 32, width: int = 48) -> np.ndarray:
    rng = np.random.default_rng(value)
    blocks = rng.integers(0, 255, (height // 8, width // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return blocks.astype(np.uint8)


def _frames(images: Sequence[np.ndarray], gaps: Sequence[int] = ()) -> Iterator[Frame]:
    for number, image in enumerate(images):
        yield Frame(number, av.VideoFrame.from_ndarray(image, format="rgb24"), number in gaps)


def _scenes(*lengths: int) -> list[np.ndarray]:
    return [image for value, count in enumerate(lengths) for image in [_picture(value)] * count]


def _windows(frames: Iterator[Frame], colour: bool = False, **settings: int) -> list[Window]:
    return list(windows(frames, MineConfig(k=1, **settings), colour))


def _spans(found: Sequence[Window]) -> list[tuple[int, int]]:
    """First frame of each window, and the one behind its last."""
    for window in found:
        assert window.numbers == list(range(window.numbers[0], window.numbers[0] + len(window)))
    return [(window.numbers[0], window.numbers[-1] + 1) for window in found]


def test_cuts_are_found_to_the_frame() -> None:
    found = _windows(_frames(_scenes(20, 33, 15)), min_frames=8, window=40, stride=40)
    assert _spans(found) == [(0, 20), (20, 53), (53, 68)]
    assert [window.shot for window in found] == [0, 1, 2]


def test_windows_overlap_and_end_with_the_shot() -> None:
    found = _windows(_frames(_scenes(60)), min_frames=16, window=24, stride=12)
    assert _spans(found) == [(0, 24), (12, 36), (24, 48), (36, 60)]
    found = _windows(_frames(_scenes(55)), min_frames=16, window=24, stride=12)
    assert _spans(found) == [(0, 24), (12, 36), (24, 48), (36, 55)]
    # 15 frames are left from the fourth on: too few
    found = _windows(_frames(_scenes(51)), min_frames=16, window=24, stride=12)
    assert _spans(found) == [(0, 24), (12, 36), (24, 48)]


@pytest.mark.parametrize("count", [24, 25, 28])
def test_no_window_holds_nothing_new(count: int) -> None:
    """Windows of 8 that begin every 4 frames: the last one begins where there is a new frame."""
    found = _spans(_windows(_frames(_scenes(count)), min_frames=4, window=8, stride=4))
    ends = [end for _, end in found]
    assert ends == sorted(set(ends))
    assert ends[-1] == count
    whole = [(start, start + 8) for start in range(0, count - 7, 4)]
    assert found[: len(whole)] == whole
    assert len(found) == len(whole) + (count % 4 > 0)


def test_short_shots_are_skipped_and_counted() -> None:
    found = _windows(_frames(_scenes(20, 12, 20)), min_frames=16, window=16, stride=16)
    assert _spans(found) == [(0, 16), (32, 48)]
    assert [window.shot for window in found] == [0, 2]


def test_keyframes_are_those_frames_and_windows_share_them() -> None:
    ramp = [np.full((32, 48, 3), 2 * t, np.uint8) for t in range(60)]
    for image, t in zip(ramp, itertools.count()):
        image[:8] = _picture(0)[:8] // 2 + t  # something to see, and no cut
    found = _windows(_frames(ramp), min_frames=10, window=24, stride=12)
    assert _spans(found) == [(0, 24), (12, 36), (24, 48), (36, 60)]
    for window in found:
        assert sorted(window.keyframes) == list(range(0, 24, 3))
        assert window.seed == 12
        assert window.size == (32, 48)
        for place, image in window.keyframes.items():
            assert np.array_equal(image, ramp[window.numbers[place]])
    for one, two in itertools.pairwise(found):
        assert {one.numbers[place] for place in one.keyframes if place >= 12} == {
            two.numbers[place] for place in two.keyframes if place < 12
        }


def test_keyframes_are_converted_once_and_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converted: list[int] = []
    real = Frame.image

    def image(self: Frame, size: object = None, layout: str = "rgb24") -> np.ndarray:
        if size is None:
            converted.append(self.number)
        return real(self, size, layout)

    monkeypatch.setattr(Frame, "image", image)
    one, two = _windows(_frames(_scenes(36)), min_frames=10, window=24, stride=12)
    assert one.size == (32, 48)
    assert converted == []
    for window, number in ((one, 12), (one, 21), (two, 21), (one, 12), (two, 24)):
        place = window.numbers.index(number)
        assert np.array_equal(window.keyframes[place], _picture(0))
    assert converted == [12, 21, 24]


@pytest.mark.parametrize(("length", "count"), [(24, 4), (24, 17), (64, 43), (5, 5), (8, 7)])
def test_the_seed_is_a_keyframe_near_the_middle(length: int, count: int) -> None:
    (window,) = _windows(_frames(_scenes(count)), min_frames=4, window=length, stride=length)
    assert len(window) == count
    assert window.seed in window.keyframes
    assert 0 <= count // 2 - window.seed < max(1, length // 8)


def test_a_gap_is_a_cut_though_the_picture_stays() -> None:
    found = _windows(_frames(_scenes(40), gaps=(22,)), min_frames=8, window=24, stride=24)
    assert _spans(found) == [(0, 22), (22, 40)]
    assert [window.shot for window in found] == [0, 1]


def test_a_gap_at_the_very_beginning_is_none() -> None:
    (window,) = _windows(_frames(_scenes(20), gaps=(0,)), min_frames=8, window=24, stride=24)
    assert (window.shot, len(window)) == (0, 20)


def test_a_change_of_the_size_is_a_cut() -> None:
    images = [_picture(0, 96, 144)] * 20 + [_picture(0, 128, 160)] * 20
    found = _windows(_frames(images), min_frames=8, window=24, stride=24, track_size=64)
    assert _spans(found) == [(0, 20), (20, 40)]
    assert [window.size for window in found] == [(96, 144), (128, 160)]
    assert [window.small[0].shape for window in found] == [(64, 96), (64, 80)]
    assert found[1].scale.tolist() == [2.0, 2.0]


def test_colour_and_grey() -> None:
    images = _scenes(10)
    (grey,) = _windows(_frames(images), min_frames=4, window=16, stride=16)
    (colour,) = _windows(_frames(images), min_frames=4, window=16, stride=16, colour=True)
    assert {image.shape for image in grey.small} == {(32, 48)}
    assert {image.shape for image in colour.small} == {(32, 48, 3)}
    assert np.array_equal(colour.small[3], images[3])
    for one, two in zip(grey.grey, colour.grey, strict=True):
        assert np.abs(one.astype(int) - two.astype(int)).max() <= 2


def test_decoded_frames_are_let_go() -> None:
    """However long a shot is, the decoded frames held are a window's keyframes and a few more."""
    decoded: list[weakref.ref[Frame]] = []

    def noted() -> Iterator[Frame]:
        for frame in _frames(_scenes(100)):
            decoded.append(weakref.ref(frame))
            yield frame

    held = [
        sum(reference() is not None for reference in decoded)
        for _ in windows(noted(), MineConfig(min_frames=16, window=24, stride=12))
    ]
    assert len(held) == 8
    assert max(held) <= 8 + 6


def _expected(
    shots: Sequence[tuple[int, int]], length: int, stride: int, least: int
) -> list[tuple[int, int, int]]:
    """(shot, first, end) of each window, from where the shots begin and end."""
    found = []
    spacing = max(1, length // 8)
    stride = max(spacing, stride // spacing * spacing)
    for number, (begin, end) in enumerate(shots):
        seen = begin
        for first in range(begin, end, stride):
            last = min(first + length, end)
            if last - first >= least and last > seen:
                found.append((number, first, last))
                seen = last
    return found


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(9, 45), min_size=1, max_size=4),
    gap=st.one_of(st.none(), st.integers(1, 60)),
    length=st.sampled_from([5, 8, 16, 24]),
    stride=st.integers(1, 24),
    least=st.integers(4, 16),
)
def test_any_pattern_of_cuts(
    lengths: list[int], gap: int | None, length: int, stride: int, least: int
) -> None:
    stride, least = min(stride, length), min(least, length)
    bounds = {0, *itertools.accumulate(lengths)}
    total = sum(lengths)
    gaps = []
    # The detector needs 8 frames between two cuts
    if gap is not None and gap < total and min(abs(gap - bound) for bound in bounds) > 8:
        bounds.add(gap)
        gaps.append(gap)
    shots = list(itertools.pairwise(sorted(bounds)))
    frames = _frames(_scenes(*lengths), gaps)
    found = _windows(frames, min_frames=least, window=length, stride=stride)
    spans = _spans(found)
    assert [(window.shot, *span) for window, span in zip(found, spans, strict=True)] == _expected(
        shots, length, stride, least
    )
    covered = {frame for first, end in spans for frame in range(first, end)}
    for begin, end in shots:
        missed = set(range(begin, end)) - covered
        # Those at the very end, too few for a window
        assert missed == set(range(end - len(missed), end))
        assert len(missed) < least
    assert all(window.seed in window.keyframes for window in found)


def test_real_clip_with_cuts() -> None:
    bikes = sample_clips()[1]
    with Video(bikes) as video:
        found = _windows(video.frames(), min_frames=20, window=96, stride=96)
    assert _spans(found) == [(0, 30), (30, 76), (76, 137), (137, 187), (187, 242)]
