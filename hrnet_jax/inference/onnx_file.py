"""Predicts label maps with an ONNX file of `export_model`, through ONNX Runtime."""

import importlib
import json
import math
import os
from typing import Any

import numpy as np

from hrnet_jax.inference import multi_scale
from hrnet_jax.runtime import storage

# Where ONNX Runtime computes: the first of these that its installation has. TensorRT is left out,
# because it compiles for minutes.
PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "CPUExecutionProvider")


class OnnxFile:
    """A network in an ONNX file of `export_model`.

    Attributes:
        path: the file.
        about: its metadata: "classes", "step", "model", "dtype", "size", ...
        batch_size: images per call; None if any number.
        size: (height, width) of the images; None if any size.
        runtime: version of ONNX Runtime and the device it uses, for reports.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens the file.

        Raises:
            FileNotFoundError: if it does not exist.
            ValueError: if it is no ONNX file, or not one of `export_model`, or ONNX Runtime is not
                installed.
        """
        try:
            onnxruntime: Any = importlib.import_module("onnxruntime")
        except ModuleNotFoundError as error:
            raise ValueError(
                "ONNX files need ONNX Runtime, which is not installed: pip install onnxruntime"
            ) from error
        self.path = os.fspath(path)
        data = storage.read_bytes(self.path)
        try:
            self._session = onnxruntime.InferenceSession(
                data, providers=[p for p in PROVIDERS if p in onnxruntime.get_available_providers()]
            )
        except Exception as error:
            # ONNX Runtime's errors have no common class of their own.
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise ValueError(f"{self.path}: ONNX Runtime cannot load it: {error}") from error
        found = self._session.get_modelmeta().custom_metadata_map
        if "hrnet_jax" not in found:
            raise ValueError(
                f"{self.path} names no classes: it was not written by export_model of this package"
            )
        self.about: dict[str, Any] = json.loads(found["hrnet_jax"])
        batch_size, height, width, _ = self._session.get_inputs()[0].shape
        self.batch_size = batch_size if isinstance(batch_size, int) else None
        self.size = (height, width) if isinstance(height, int) else None
        names = [output.name for output in self._session.get_outputs()]
        self._output = next(n for n in ("labels", "probabilities", "logits") if n in names)
        provider = self._session.get_providers()[0]
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}, {provider}"

    def predict_labels(self, images: np.ndarray) -> np.ndarray:
        """Train ids of uint8 images [N, H, W, 3]: uint8 [N, H, W] (int32 for over 255 classes).

        Any N is possible: a file of a fixed batch size is called several times.

        Raises:
            ValueError: for images of another size than the file's.
        """
        if self.size is not None and images.shape[1:3] != self.size:
            raise ValueError(
                f"{self.path} takes images of {self.size[0]}x{self.size[1]}, not of"
                f" {images.shape[1]}x{images.shape[2]}"
            )
        count, step = len(images), self.batch_size or len(images)
        padding = math.ceil(count / step) * step - count
        images = np.pad(images, [(0, padding), (0, 0), (0, 0), (0, 0)])
        parts = [self._labels(images[i : i + step]) for i in range(0, len(images), step)]
        return np.concatenate(parts)[:count]

    def _labels(self, images: np.ndarray) -> np.ndarray:
        (values,) = self._session.run([self._output], {"image": images})
        if self._output == "labels":
            return values
        if self._output == "logits":
            align_corners = self.about["model"]["align_corners"]
            values = multi_scale.full_size_logits(values, images.shape[1:3], align_corners)
        return np.asarray(multi_scale.labels_of(values))
