"""Reads and writes frames of video files; needs PyAV, which includes its own codecs."""

import contextlib
import os
import types
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from hrnet_jax.runtime import storage

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
# Visually lossless for flat colors over a street; all players support H.264.
_CODEC, _QUALITY = "libx264", {"crf": "18"}


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
        rate: frames per second.

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
        self.rate = Fraction(stream.average_rate or 25)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *error) -> None:
        self._container.close()
        self._copy.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 RGB [H, W, 3] each."""
        try:
            for frame in self._container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
        except self._errors as error:
            raise ValueError(f"{self._path}: damaged video: {error}") from error


class VideoWriter:
    """Writes uint8 RGB frames [H, W, 3] of one size as an H.264 video; use it as a context manager.

    Odd sizes lose their last row or column, since the format stores color for pairs of pixels.
    """

    def __init__(self, path: str | os.PathLike, rate: Fraction):
        self._container = _av().open(str(path), "w")
        self._stream = self._container.add_stream(_CODEC, rate=rate, options=dict(_QUALITY))
        self._stream.pix_fmt = "yuv420p"
        self._sized = False

    def add(self, frame: np.ndarray) -> None:
        height, width = (2 * (s // 2) for s in frame.shape[:2])
        if not self._sized:
            self._stream.height, self._stream.width = height, width
            self._sized = True
        even = np.ascontiguousarray(frame[:height, :width])
        encoded = self._stream.encode(_av().VideoFrame.from_ndarray(even, format="rgb24"))
        self._container.mux(encoded)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, *rest) -> None:
        if kind is None and self._sized:
            self._container.mux(self._stream.encode())
        self._container.close()
