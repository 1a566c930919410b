"""From the bytes of one sample to its pixels; every error names the file.

Plain eager functions: the pipeline calls them from its threads, evaluation and the audit directly.
"""

import io
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from PIL import Image

from hrnet_jax.data.images import png
from hrnet_jax.data.images.headers import check_label_header, parse_header, read_header
from hrnet_jax.data.sources.source import IGNORE_LABEL, UNKNOWN_LABEL, Sample, Source, Window
from hrnet_jax.runtime import storage


def decode_image(data: bytes, name: str, rows: int | None = None) -> np.ndarray:
    """PNG or JPEG -> uint8 RGB [H, W, 3]; grey is repeated, alpha dropped.

    Args:
        data: the file's bytes.
        name: what errors call it.
        rows: how many are needed, from the top; more may come.

    Raises:
        ValueError: naming the file, if its header or content is not sound.
    """
    header = parse_header(data, name)
    if header.format == "jpeg":
        return _decoded(tf.io.decode_jpeg, data, 3, name)
    if png.is_plain(data, header):
        pixels = png.decode_rows(data, header, name, rows or header.height)
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, -1)
    return _decoded(tf.io.decode_png, data, 3, name)


def decode_label(data: bytes, name: str, rows: int | None = None) -> np.ndarray:
    """PNG -> the raw ids, uint8 [H, W].

    Palette PNGs give their indices; TensorFlow would give the luminance of the palette's colours.

    Args:
        data: the file's bytes.
        name: what errors call it.
        rows: how many are needed, from the top; more may come.

    Raises:
        ValueError: naming the file, if its pixels cannot be ids or the content is not sound.
    """
    header = parse_header(data, name)
    check_label_header(header, name)
    if png.is_plain(data, header):
        return png.decode_rows(data, header, name, rows or header.height)
    if header.kind == "grey":
        return _decoded(tf.io.decode_png, data, 1, name)[..., 0]
    try:
        return np.array(Image.open(io.BytesIO(data)))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error


@dataclass(frozen=True)
class EncodedSample:
    """A sample of encoded files, see `source.Sample`.

    Attributes:
        image_data: a PNG or JPEG file.
        label_data: a PNG file, or None.
        image_name: what errors call the image.
        label_name: what errors call the label.
    """

    image_data: bytes
    label_data: bytes | None
    image_name: str
    label_name: str

    @property
    def size(self) -> tuple[int, int]:
        return parse_header(self.image_data, self.image_name).size

    def image(self, window: Window | None = None) -> np.ndarray:
        if window is None:
            return decode_image(self.image_data, self.image_name)
        return decode_image(self.image_data, self.image_name, window[0].stop)[window]

    def label(self, window: Window | None = None) -> np.ndarray:
        if (size := parse_header(self.label_data, self.label_name).size) != self.size:
            raise ValueError(
                f"label {self.label_name} is {size[0]}x{size[1]} but its image {self.image_name} "
                f"is {self.size[0]}x{self.size[1]}"
            )
        if window is None:
            return decode_label(self.label_data, self.label_name)
        return decode_label(self.label_data, self.label_name, window[0].stop)[window]


def open_sample(source: Source, index: int) -> Sample:
    """Reads what is needed to decode one sample.

    Raises:
        OSError: naming the file, if it cannot be read (FileNotFoundError if it is gone).
        ValueError: naming the record, if it is not sound.
    """
    if source.records is not None:
        return source.records.open(index)
    label = storage.read_bytes(source.label_paths[index]) if source.label_paths else None
    image = storage.read_bytes(source.image_paths[index])
    return EncodedSample(image, label, source.image_name(index), source.label_name(index))


def image_size(source: Source, index: int) -> tuple[int, int]:
    """(height, width) of one image without decoding it, and of a file by its header only.

    Raises:
        OSError, ValueError: naming the file.
    """
    if source.records is not None:
        return source.records.open(index).size
    return read_header(source.image_paths[index]).size


def read_label(source: Source, index: int) -> np.ndarray:
    """The raw ids of one label, uint8 [H, W], without reading its image where that can be avoided.

    Raises:
        OSError, ValueError: naming the file.
    """
    if source.records is not None:
        return source.records.open(index).label()
    return decode_label(storage.read_bytes(source.label_paths[index]), source.label_paths[index])


def count_ids(label: np.ndarray) -> np.ndarray:
    """How many pixels of a label uint8 [H, W] have each raw id, int64 [256].

    By Pillow, which takes 3 ms for 2 Mpixels where `np.bincount` takes 15.
    """
    return np.array(Image.fromarray(label).histogram(), np.int64)


def read_sample(source: Source, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Image uint8 [H, W, 3] and train ids uint8 [H, W] (None if the split has no labels).

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    sample = open_sample(source, index)
    label = to_train_ids(sample.label(), source, index) if source.has_labels else None
    return sample.image(), label


def to_train_ids(label: np.ndarray, source: Source, index: int) -> np.ndarray:
    """Raw ids of a sample, or of a part of it, -> train ids.

    Raises:
        ValueError: naming the file and the ids that belong to no class.
    """
    # bytes.translate takes 1.6 ms for 2 Mpixels where indexing the table takes 6 ms.
    translated = label.tobytes().translate(source.lookup().tobytes())
    train_ids = np.frombuffer(translated, np.uint8).reshape(label.shape)
    if (unknown := train_ids == UNKNOWN_LABEL).any():
        raise ValueError(
            f"label {source.label_name(index)} holds the ids {np.unique(label[unknown]).tolist()}, "
            f"which the class list does not know; known: {known_ids(source)}"
        )
    return train_ids


def known_ids(source: Source) -> str:
    """The ids that labels may hold, as errors list them."""
    table = source.lookup()
    ignored, known = table == IGNORE_LABEL, table < UNKNOWN_LABEL
    return f"{np.flatnonzero(known).tolist()}, ignored: {np.flatnonzero(ignored).tolist()}"


def _decoded(decode, data: bytes, channels: int, name: str) -> np.ndarray:
    try:
        return decode(data, channels=channels).numpy()
    except tf.errors.OpError as error:
        raise ValueError(f"{name} is damaged: {error.message}") from error
