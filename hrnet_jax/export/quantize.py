"""Quantizes an ONNX graph to int8 with ONNX Runtime, by the values that it sees on given images.

Static quantization in the QDQ form, which all runtimes read: weights int8 with a scale per channel,
activations int8 with a scale per tensor, from their smallest and largest value on the images.
"""

import importlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hrnet_jax.data.images.read import read_image
from hrnet_jax.export import onnx_graph
from hrnet_jax.inference import file_job
from hrnet_jax.runtime.progress import progress_bar

# What is computed in int8. Other kinds of nodes stay in float32.
OPERATORS = ("Conv", "Add", "Relu", "Resize", "Concat", "MatMul")


def find_images(
    given: Sequence[str | os.PathLike],
    size: tuple[int, int] | None,
    image_range: tuple[float, float] | None = None,
) -> list[Path]:
    """The images to calibrate with, each read once.

    Args:
        given: image files and folders, which are searched at any depth.
        size: (height, width) that the graph takes; None for any.
        image_range: of the network's classes, for images of more than 8 bits.

    Raises:
        FileNotFoundError, ValueError: for no images, a path that does not exist or cannot be read
            as an image, or an image of another size; the message names it.
    """
    if not given:
        raise ValueError(
            "int8 needs images to calibrate with, like those to be predicted: name a folder or"
            " files (--calibration=FOLDER); 50 to 200 are enough"
        )
    inputs, failures = file_job.list_inputs(given)
    if failures:
        raise failures[0]
    if videos := [i.path for i in inputs if i.is_video]:
        raise ValueError(f"{videos[0]} is a video; name images to calibrate with")
    paths = [i.path for i in inputs]
    for path in progress_bar(paths, total=len(paths), unit="image", desc="checking images"):
        found = read_image(path, image_range).shape[:2]
        if size is not None and found != size:
            raise ValueError(
                f"{path} has {found[0]}x{found[1]} pixels, but the file is exported for"
                f" {size[0]}x{size[1]}: name images of that size, or leave out --size"
            )
    return paths


def quantize(
    proto: Any,
    path: Path,
    images: Sequence[Path],
    image_range: tuple[float, float] | None = None,
) -> None:
    """Writes `proto`, of `onnx_graph.build` in float32, as int8 to `path`.

    Args:
        proto: onnx.ModelProto.
        path: the file to write.
        images: of `find_images`.
        image_range: as for `find_images`.
    """
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    batch_size = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    bar = progress_bar(images, total=len(images), unit="image", desc="calibrating")

    class Reader(quantization.CalibrationDataReader):
        """The images, one by one; ONNX Runtime takes None as the end."""

        def __init__(self) -> None:
            self._batches = _batches(bar, batch_size, image_range)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises simplifying a graph that is simple
    try:
        quantization.quantize_static(
            proto,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=[n.name for n in proto.graph.node if onnx_graph.stays_float(n.name)],
        )
    finally:
        logger.setLevel(level)


def _batches(
    paths: Iterable[Path], batch_size: int, image_range: tuple[float, float] | None
) -> Iterator[dict[str, np.ndarray]]:
    """Each image as a batch, repeated where the graph's batch size is fixed."""
    for path in paths:
        yield {"image": np.repeat(read_image(path, image_range)[None], batch_size, axis=0)}
