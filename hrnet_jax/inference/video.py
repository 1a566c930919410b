"""Reads and writes frames of video files; needs PyAV, which includes its own codecs."""

import contextlib
import os
import struct
import types
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from hrnet_jax.data.images.orientation import upright
from hrnet_jax.runtime import storage

# Of the containers that PyAV reads, those that usually hold videos. A .gif is an animation.
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".hevc"),
    *(".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mkv", ".mov"),
    *(".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm"),
    *(".rmvb", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m"),
)
# Visually lossless for flat colors over a street; all players support H.264. Frames that refer to
# later ones would be stored out of order: then MP4 states a wrong length if times are irregular.
_CODEC, _QUALITY = "libx264", {"crf": "18", "bf": "0"}
# The first four numbers of a display matrix, as signs -> EXIF orientation: (a, b, c, d) takes
# (x, y) to (a x + c y, b x + d y).
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        image: uint8 RGB [H, W, 3], upright.
        time: when it is shown, in units of the video's time base, from the video's beginning.
        duration: how long, in the same units.
    """

    image: np.ndarray
    time: int
    duration: int


def _av() -> types.ModuleType:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ValueError("videos need PyAV, which is not installed: pip install av") from error
    return av


class VideoReader:
    """The frames of a video, in order; use it as a context manager.

    Attributes:
        num_frames: as stated in the file, which may be slightly wrong; None if it is not stated.
        rate: frames per second, on average.
        time_base: the unit of time, in seconds.

    Raises:
        ValueError: naming the file, if it is not a readable video, now or during iteration.
    """

    def __init__(self, path: str | os.PathLike):
        self._path, self._errors = path, _av().error.FFmpegError
        self._copy = contextlib.ExitStack()
        file = self._copy.enter_context(storage.local(path))
        try:
            self._container = _av().open(str(file))
        except self._errors as error:
            raise ValueError(f"{path}: cannot be read as a video: {error}") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{path}: contains no video")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self.num_frames: int | None = stream.frames or None
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.time_base = Fraction(stream.time_base or 1 / self.rate)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *error) -> None:
        self._container.close()
        self._copy.close()

    def __iter__(self) -> Iterator[Frame]:
        usual = max(1, round(1 / (self.rate * self.time_base)))
        start = round(Fraction(self._container.start_time or 0, 1_000_000) / self.time_base)
        last, duration = -usual, usual
        try:
            for frame in self._container.decode(video=0):
                # Some containers state no times, and damaged ones state earlier ones again.
                stated = last + duration if frame.pts is None else frame.pts - start
                last, duration = max(stated, last + 1, 0), frame.duration or usual
                image = frame.to_ndarray(format="rgb24")
                turn = _orientation(frame)
                yield Frame(image if turn == 1 else upright(image, turn), last, duration)
        except self._errors as error:
            raise ValueError(f"{self._path}: damaged video: {error}") from error


def _orientation(frame: Any) -> int:
    """The EXIF orientation that corresponds to the display matrix of a frame."""
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is None:
        return 1
    a, b, _, c, d = struct.unpack("<5i", bytes(matrix)[:20])
    largest = max(map(abs, (a, b, c, d))) or 1
    # By other angles than right ones, the nearest of those is taken.
    return _ORIENTATIONS.get(tuple(round(v / largest) for v in (a, b, c, d)), 1)


class VideoWriter:
    """Writes frames of one size as an H.264 video; use it as a context manager.

    Each frame keeps its time. Odd sizes lose their last row or column, since the format stores
    color for pairs of pixels.
    """

    def __init__(self, path: str | os.PathLike, rate: Fraction, time_base: Fraction | None = None):
        """Opens the file.

        Args:
            path: of the file.
            rate: frames per second, on average.
            time_base: the unit of the frames' times in seconds; 1 / rate by default.
        """
        self._container = _av().open(str(path), "w")
        self._stream = self._container.add_stream(_CODEC, rate=rate, options=dict(_QUALITY))
        self._stream.pix_fmt = "yuv420p"
        self._time_base = time_base or 1 / Fraction(rate)
        self._stream.codec_context.time_base = self._stream.time_base = self._time_base
        self._durations: dict[int, int] = {}
        self._sized = False

    def add(self, frame: Frame) -> None:
        height, width = (2 * (s // 2) for s in frame.image.shape[:2])
        if not self._sized:
            self._stream.height, self._stream.width = height, width
            self._sized = True
        even = np.ascontiguousarray(frame.image[:height, :width])
        video_frame = _av().VideoFrame.from_ndarray(even, format="rgb24")
        video_frame.pts, video_frame.time_base = frame.time, self._time_base
        self._durations[frame.time] = frame.duration
        self._write(self._stream.encode(video_frame))

    def _write(self, packets: Any) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, *rest) -> None:
        if kind is None and self._sized:
            self._write(self._stream.encode())
        self._container.close()
