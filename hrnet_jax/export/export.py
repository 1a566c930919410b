"""Writes a trained segmentation network as a file that runs without this package.

Image in, label map out: normalization, the network, upsampling to full size and the decision are
all inside. A file is kept only if its answer agrees with that of the network here.

Formats, by the file's suffix:
    .onnx       ONNX Runtime and other programs that read ONNX; batch open, size fixed or open;
                float32, float16 or int8.
    .stablehlo  `jax.export`: needs JAX only; batch open, size fixed; CPU, CUDA and TPU.
    .savedmodel TensorFlow SavedModel (a folder), for TensorFlow Serving; batch open, size fixed.
Class names, colors, label ids and the step are in ONNX's metadata (key "hrnet_jax", JSON). For the
other two formats they are in a file next to it, with .json added to the name.
"""

import functools
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export  # `import jax` does not load it
import jax.numpy as jnp
import numpy as np
from PIL import Image

import hrnet_jax
from hrnet_jax.data.images.read import read_image
from hrnet_jax.data.sources.source import spread_indices
from hrnet_jax.inference import file_job, multi_scale
from hrnet_jax.inference.predictor import Predictor
from hrnet_jax.models import HRNetModel, normalize
from hrnet_jax.runtime import sharding, storage

SUFFIXES = (".onnx", ".stablehlo", ".savedmodel")
OUTPUTS = ("labels", "probabilities", "logits")
DTYPES = ("float32", "float16", "int8")
PLATFORMS = ("cpu", "cuda", "tpu")
# The first JAX whose StableHLO TensorFlow 2.21 cannot read. JAX writes for readers of the last four
# weeks, and TensorFlow's reader is older than that of JAX 0.11.
SAVEDMODEL_BEFORE_JAX = (0, 11)
# What a file must reach to be kept, by its dtype: the fraction of pixels with the same label, and
# the largest difference of a logit, relative to the largest logit. Measured on `sample_images`; for
# int8 on images that it was calibrated with.
LIMITS = {"float32": (0.9999, 1e-3), "float16": (0.99, 2e-2), "int8": (0.9, float("inf"))}
# Number of the calibration's images that are compared.
NUM_COMPARED = 8
# A file of open size is tried at this one, of which 32 divides neither side.
OPEN_SIZE = (72, 120)

Outputs = dict[str, np.ndarray]


class Disagreement(RuntimeError):
    """The answer of an exported file differs too much from that of the network here."""


@dataclass(frozen=True)
class Agreement:
    """How the answer of an exported file agrees with that of the network here.

    Attributes:
        labels: fraction of pixels with the same label.
        logits: largest difference of a logit, relative to the largest logit. For formats without
            logits, the same of probabilities; NaN if there are neither.
    """

    labels: float
    logits: float

    def is_good(self, dtype: str = "float32") -> bool:
        """Whether a file of this dtype is kept."""
        labels, logits = LIMITS[dtype]
        return self.labels >= labels and not self.logits > logits

    def __str__(self) -> str:
        values = "" if np.isnan(self.logits) else f", values within {self.logits:.1e}"
        return f"labels agree on {100 * self.labels:.4f} % of pixels{values}"


def sample_images(size: tuple[int, int], batch_size: int = 1) -> np.ndarray:
    """uint8 [N, H, W, 3]: smooth patches of color with some noise, the same at every call."""
    rng = np.random.default_rng(0)
    rows, columns = (-(-s // 16) for s in size)
    images = []
    for _ in range(batch_size):
        patches = rng.integers(0, 256, (rows, columns, 3)).astype(np.uint8)
        smooth = Image.fromarray(patches).resize(size[::-1], Image.Resampling.BILINEAR)
        noisy = np.asarray(smooth, np.float32) + rng.normal(0, 8, (*size, 3))
        images.append(noisy.clip(0, 255).astype(np.uint8))
    return np.stack(images)


def forward(
    model: HRNetModel, variables: Any, images: jax.Array, outputs: tuple[str, ...]
) -> dict[str, jax.Array]:
    """What an exported file computes: uint8 [N, H, W, 3] -> its outputs by name."""
    logits = model.apply(variables, normalize.normalize(images), train=False)["logits"]
    found = {"logits": logits}
    if outputs != ("logits",):
        full = multi_scale.full_size_logits(logits, images.shape[1:3], model.align_corners)
        found |= {"labels": multi_scale.labels_of(full), "probabilities": jax.nn.softmax(full)}
    return {name: found[name] for name in outputs}


@functools.cache
def _jitted_forward():
    # Made at the first call: the options depend on the backend, which importing must not start.
    options = sharding.compiler_options()
    return jax.jit(forward, static_argnames=("model", "outputs"), compiler_options=options)


def compare(expected: Outputs, found: Outputs) -> Agreement:
    """How two networks' outputs agree, in what both of them have.

    Without labels, the class with the largest probability or logit is taken.
    """
    names = [n for n in ("logits", "probabilities") if n in found]
    difference = float("nan")
    if names:
        ours, theirs = expected[names[0]], found[names[0]]
        difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if "labels" in found:
        same = expected["labels"] == found["labels"]
    else:
        same = ours.argmax(-1) == theirs.argmax(-1)
    return Agreement(float(same.mean()), difference)


@dataclass(frozen=True)
class Options:
    """What is exported.

    Attributes:
        size: (height, width) of the images; None leaves it open, which only .onnx can.
        batch_size: images per call; None leaves it open.
        outputs: of "labels" uint8 [N, H, W] (int32 for more than 255 classes), "probabilities"
            float32 [N, H, W, C] and "logits" float32 [N, ceil(H / 4), ceil(W / 4), C].
        dtype: of weights and arithmetic, from DTYPES; other than float32 only in .onnx. Inputs and
            outputs do not depend on it.
        opset: version of ONNX's operators; None for `onnx_graph.OPSET`.
        calibration: for int8, images like those to be predicted: files and folders.
        data: "name", "class_file" and "eval_split" of the dataset, which .onnx files name for
            `evaluate --onnx`.
    """

    size: tuple[int, int] | None = None
    batch_size: int | None = None
    outputs: tuple[str, ...] = ("labels",)
    dtype: str = "float32"
    opset: int | None = None
    calibration: Sequence[str | os.PathLike] = ()
    data: Mapping[str, str] | None = None

    def check(self, path: Path) -> None:
        """Raises a ValueError for values that do not exist or do not fit together or the path."""
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: unknown format {path.suffix!r}; known suffixes: {SUFFIXES}")
        if not self.outputs or set(self.outputs) - set(OUTPUTS):
            raise ValueError(f"unknown outputs {self.outputs}; known: {OUTPUTS}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {DTYPES}")
        if self.size is not None and min(self.size) < 32:
            raise ValueError(f"size {self.size}: height and width must be 32 or more")
        if self.calibration and self.dtype != "int8":
            raise ValueError(f"images to calibrate with are for int8, not for {self.dtype}")
        if path.suffix == ".onnx":
            return
        if self.size is None:
            raise ValueError(
                f"{path.suffix} needs the size of the images, as in --size=512x1024; only .onnx can"
                " leave it open"
            )
        if self.dtype != "float32" or self.opset is not None:
            raise ValueError(
                f"{path.suffix} is float32 and has no opset; dtype={self.dtype} and"
                f" opset={self.opset} need .onnx"
            )
        if path.suffix == ".savedmodel" and jax.version.__version_info__ >= SAVEDMODEL_BEFORE_JAX:
            raise ValueError(
                f"{path}: TensorFlow cannot read programs of JAX {jax.__version__}. A SavedModel"
                " needs JAX 0.10 with TensorFlow 2.21; .onnx and .stablehlo work with this JAX, too"
            )


def describe(predictor: Predictor, options: Options) -> dict[str, Any]:
    """What users of the file need to know about it, as plain JSON."""
    model = predictor.model
    return {
        "name": f"HRNet {model.variant.name}, {model.head}",
        "input": "image: uint8 RGB [N, H, W, 3], pixels as in the file",
        "size": list(options.size) if options.size else None,
        "outputs": list(options.outputs),
        "dtype": options.dtype,
        "classes": predictor.classes.to_json(),
        "step": predictor.step,
        "model": model.to_json(),
        **({"data": dict(options.data)} if options.data else {}),
        "hrnet_jax": hrnet_jax.__version__,
    }


def _write_onnx(predictor: Predictor, path: Path, options: Options) -> None:
    onnx_graph, onnx = _needs("hrnet_jax.export.onnx_graph"), _needs("onnx")
    proto = onnx_graph.build(
        predictor.model,
        jax.device_get(predictor.variables),
        size=options.size,
        batch_size=options.batch_size,
        outputs=options.outputs,
        metadata={"hrnet_jax": json.dumps(describe(predictor, options))},
        dtype="float16" if options.dtype == "float16" else "float32",
        opset=options.opset or onnx_graph.OPSET,
    )
    if options.dtype != "int8":
        onnx.save(proto, path)
        return
    quantize = _needs("hrnet_jax.export.quantize")
    image_range = predictor.classes.image_range
    images = quantize.find_images(options.calibration, options.size, image_range)
    quantize.quantize(proto, path, images, image_range)


def _run_onnx(path: Path, images: np.ndarray) -> Outputs:
    """The file's outputs, and the logits in any case."""
    onnx, onnxruntime = _needs("onnx"), _needs("onnxruntime")
    proto = onnx.load(path)
    if all(o.name != "logits" for o in proto.graph.output):
        logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)
        proto.graph.output.append(logits)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def _function(predictor, outputs) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """The forward pass with the weights inside, as JAX's exporters need it."""
    variables = jax.device_get(predictor.variables)
    return lambda images: forward(predictor.model, variables, images, outputs)


def _write_stablehlo(predictor: Predictor, path: Path, options: Options) -> None:
    n = options.batch_size or jax.export.symbolic_shape("n")[0]
    images = jax.ShapeDtypeStruct((n, *options.size, 3), jnp.uint8)
    function = jax.jit(_function(predictor, options.outputs))
    exported = jax.export.export(function, platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def _run_stablehlo(path: Path, images: np.ndarray) -> Outputs:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    call = jax.jit(exported.call, compiler_options=sharding.compiler_options())
    return jax.device_get(call(images))


def _write_savedmodel(predictor: Predictor, path: Path, options: Options) -> None:
    import tensorflow as tf
    from jax.experimental import jax2tf

    height, width = options.size
    function = jax2tf.convert(
        _function(predictor, options.outputs),
        polymorphic_shapes=[f"({options.batch_size or 'n'}, {height}, {width}, 3)"],
        native_serialization_platforms=PLATFORMS,
    )
    module = tf.Module()
    signature = tf.TensorSpec((options.batch_size, height, width, 3), tf.uint8, name="image")
    module.predict = tf.function(function, input_signature=[signature], autograph=False)
    tf.saved_model.save(module, str(path), signatures=module.predict)


def _run_savedmodel(path: Path, images: np.ndarray) -> Outputs:
    import tensorflow as tf

    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    return {k: v.numpy() for k, v in signature(image=tf.constant(images)).items()}


_FORMATS = {
    ".onnx": (_write_onnx, _run_onnx),
    ".stablehlo": (_write_stablehlo, _run_stablehlo),
    ".savedmodel": (_write_savedmodel, _run_savedmodel),
}


def _needs(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"ONNX needs {error.name}, which is not installed: pip install onnx onnxruntime"
        ) from error


def _samples(options: Options, image_range: tuple[float, float] | None) -> Iterator[np.ndarray]:
    """The batches on which a file is compared with the network: uint8 [N, H, W, 3]."""
    if options.dtype != "int8":
        yield sample_images(options.size or OPEN_SIZE, options.batch_size or 2)
        return
    inputs, _ = file_job.list_inputs(options.calibration)
    for i in spread_indices(len(inputs), NUM_COMPARED):
        image = read_image(inputs[i].path, image_range)
        yield np.repeat(image[None], options.batch_size or 1, axis=0)


def _agreement(predictor: Predictor, path: Path, options: Options) -> Agreement:
    """How the file agrees with the network; of several batches the mean and the worst logit."""
    run, found = _FORMATS[path.suffix][1], []
    for images in _samples(options, predictor.classes.image_range):
        ours = _jitted_forward()(predictor.model, predictor.variables, images, OUTPUTS)
        found.append((compare(jax.device_get(ours), run(path, images)), images.size))
    pixels = sum(size for _, size in found)
    labels = sum(one.labels * size for one, size in found) / pixels
    return Agreement(labels, max(one.logits for one, _ in found))


def export_model(predictor: Predictor, path: str | os.PathLike, **options: Any) -> Agreement:
    """Writes a network to `path`, in the format of its suffix, and compares the file with it.

    Args:
        predictor: of `hrnet_jax.load`, with a single scale.
        path: ending in one of SUFFIXES; an older file is replaced once the new one is good.
        **options: the fields of `Options`.

    Returns:
        How the file's answer agrees with that of the network.

    Raises:
        ValueError: for an unknown suffix or option, a size that is missing or too small, test-time
            augmentation, images that cannot be used for calibration, or a package that the format
            needs and that is not installed.
        FileNotFoundError: for images that do not exist.
        Disagreement: if the file does not agree; nothing is left behind then.
    """
    path, chosen = storage.path(path), Options(**options)
    chosen.check(path)
    if not predictor.tta.is_single:
        raise ValueError(f"an exported network predicts at one scale, not {predictor.tta}")
    with storage.written(path) as partial:
        _FORMATS[path.suffix][0](predictor, partial, chosen)
        agreement = _agreement(predictor, partial, chosen)
        if not agreement.is_good(chosen.dtype):
            text = f"{path}: not kept, as its outputs differ from the checkpoint's: {agreement}"
            if chosen.dtype == "int8":
                text += "; calibrate with more images, like those to be predicted"
            raise Disagreement(text)
    if path.suffix != ".onnx":
        about = json.dumps(describe(predictor, chosen), indent=1)
        storage.write_text(path.with_name(f"{path.name}.json"), about + "\n")
    return agreement
