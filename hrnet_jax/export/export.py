"""A trained segmentation network as a file that runs without this package.

Image in, label map out: normalisation, the network, upsampling to full size and the decision are
all inside. A file is kept only after it has answered like `inference.predict_labels` here.

Formats, by the file's suffix:
    .onnx       ONNX Runtime and whatever else reads ONNX; batch open, size fixed or open.
    .stablehlo  `jax.export`: needs JAX only; batch open, size fixed; CPU, CUDA and TPU.
    .savedmodel TensorFlow SavedModel (a folder), for TensorFlow Serving; batch open, size fixed.
Class names, colours, label ids and the step are in ONNX's metadata (key "hrnet_jax", JSON); beside
the other two lies a file with the same, its name with .json at the end.
"""

import functools
import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export  # `import jax` does not load it
import jax.numpy as jnp
import numpy as np
from PIL import Image

import hrnet_jax
from hrnet_jax.inference import multi_scale
from hrnet_jax.inference.predictor import Predictor
from hrnet_jax.models import HRNetModel, normalize
from hrnet_jax.runtime import sharding, storage

SUFFIXES = (".onnx", ".stablehlo", ".savedmodel")
OUTPUTS = ("labels", "probabilities", "logits")
PLATFORMS = ("cpu", "cuda", "tpu")
# The first JAX whose StableHLO TensorFlow 2.21 cannot read. JAX writes for readers of the last four
# weeks, and TensorFlow's reader is older than that of JAX 0.11.
SAVEDMODEL_BEFORE_JAX = (0, 11)
# What an exported model must reach to be kept.
MIN_AGREEMENT = 0.9999
MAX_DIFFERENCE = 1e-3
# An open size is tried out at this one: 32 divides neither side.
OPEN_SIZE = (72, 120)

Outputs = dict[str, np.ndarray]


class Disagreement(RuntimeError):
    """An exported model does not answer as the checkpoint does."""


@dataclass(frozen=True)
class Agreement:
    """How an exported model compares with ours.

    Attributes:
        labels: share of pixels with the same label.
        logits: largest difference of a logit, relative to the largest logit; for formats that do
            not show their logits, the same of probabilities; NaN if there are neither.
    """

    labels: float
    logits: float

    @property
    def is_good(self) -> bool:
        return self.labels >= MIN_AGREEMENT and not self.logits > MAX_DIFFERENCE

    def __str__(self) -> str:
        values = "" if np.isnan(self.logits) else f", values within {self.logits:.1e}"
        return f"labels agree on {100 * self.labels:.4f} % of pixels{values}"


def sample_images(size: tuple[int, int], batch_size: int = 1) -> np.ndarray:
    """uint8 [N, H, W, 3]: smooth patches of colour with some noise, the same at every call."""
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
    """What an exported model computes: uint8 [N, H, W, 3] -> its outputs by name."""
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
    """How two models' outputs agree, in what both of them have.

    Without labels the largest of the probabilities or else logits stands for them.
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


def describe(
    predictor: Predictor, size: tuple[int, int] | None, outputs: tuple[str, ...]
) -> dict[str, Any]:
    """What someone who gets the file needs to know of it, as plain JSON."""
    model = predictor.model
    return {
        "name": f"HRNet {model.variant.name}, {model.head}",
        "input": "image: uint8 RGB [N, H, W, 3], pixels as in the file",
        "size": list(size) if size else None,
        "outputs": list(outputs),
        "classes": predictor.classes.to_json(),
        "step": predictor.step,
        "hrnet_jax": hrnet_jax.__version__,
    }


def _write_onnx(predictor, path, size, batch_size, outputs) -> None:
    onnx_graph, onnx = _needs("hrnet_jax.export.onnx_graph"), _needs("onnx")
    metadata = {"hrnet_jax": json.dumps(describe(predictor, size, outputs))}
    proto = onnx_graph.build(
        predictor.model,
        jax.device_get(predictor.variables),
        size=size,
        batch_size=batch_size,
        outputs=outputs,
        metadata=metadata,
    )
    onnx.save(proto, path)


def _run_onnx(path: Path, images: np.ndarray) -> Outputs:
    """The file's answer, with the logits that it computes on the way."""
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
    """The forward pass with the weights inside, as the exporters of JAX want it."""
    variables = jax.device_get(predictor.variables)
    return lambda images: forward(predictor.model, variables, images, outputs)


def _write_stablehlo(predictor, path, size, batch_size, outputs) -> None:
    n = batch_size or jax.export.symbolic_shape("n")[0]
    images = jax.ShapeDtypeStruct((n, *size, 3), jnp.uint8)
    function = jax.jit(_function(predictor, outputs))
    exported = jax.export.export(function, platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def _run_stablehlo(path: Path, images: np.ndarray) -> Outputs:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    call = jax.jit(exported.call, compiler_options=sharding.compiler_options())
    return jax.device_get(call(images))


def _write_savedmodel(predictor, path, size, batch_size, outputs) -> None:
    import tensorflow as tf
    from jax.experimental import jax2tf

    function = jax2tf.convert(
        _function(predictor, outputs),
        polymorphic_shapes=[f"({batch_size or 'n'}, {size[0]}, {size[1]}, 3)"],
        native_serialization_platforms=PLATFORMS,
    )
    module = tf.Module()
    signature = tf.TensorSpec((batch_size, *size, 3), tf.uint8, name="image")
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


def export_model(
    predictor: Predictor,
    path: str | os.PathLike,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    outputs: tuple[str, ...] = ("labels",),
) -> Agreement:
    """Writes a model to `path`, in the format of its suffix, and tries it against ours.

    Args:
        predictor: of `hrnet_jax.load`; its method must be single scale.
        path: ending in one of SUFFIXES; an older file is replaced once the new one is good.
        size: (height, width) of the images. None leaves it open, which only ONNX can.
        batch_size: images per call; None leaves it open.
        outputs: of "labels" uint8 [N, H, W] (int32 for more than 255 classes), "probabilities"
            float32 [N, H, W, C] and "logits" float32 [N, ceil(H / 4), ceil(W / 4), C].

    Returns:
        How the file's answer agrees with ours.

    Raises:
        ValueError: for an unknown suffix or output, a size that is missing or too small, a method
            other than single scale, or a package that the format needs and is not there.
        Disagreement: if the model does not agree; nothing is left behind then.
    """
    path = storage.path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown format {path.suffix!r}; known suffixes: {SUFFIXES}")
    if not outputs or set(outputs) - set(OUTPUTS):
        raise ValueError(f"unknown outputs {outputs}; known: {OUTPUTS}")
    if size is None and path.suffix != ".onnx":
        raise ValueError(
            f"{path.suffix} needs the size of the images, as in --size=512x1024; only .onnx can"
            " leave it open"
        )
    if size is not None and min(size) < 32:
        raise ValueError(f"size {size}: height and width must be 32 or more")
    if not predictor.tta.is_single:
        raise ValueError(f"an exported model tests one scale, not {predictor.tta}")
    if path.suffix == ".savedmodel" and jax.version.__version_info__ >= SAVEDMODEL_BEFORE_JAX:
        raise ValueError(
            f"{path}: TensorFlow cannot read programs of JAX {jax.__version__}. A SavedModel needs"
            " JAX 0.10 with TensorFlow 2.21; .onnx and .stablehlo work with this JAX, too"
        )
    write, run = _FORMATS[path.suffix]
    with storage.written(path) as partial:
        write(predictor, partial, size, batch_size, tuple(outputs))
        images = sample_images(size or OPEN_SIZE, batch_size or 2)
        ours = _jitted_forward()(predictor.model, predictor.variables, images, OUTPUTS)
        expected = jax.device_get(ours)
        agreement = compare(expected, run(partial, images))
        if not agreement.is_good:
            raise Disagreement(
                f"{path}: not kept, since it does not answer as the checkpoint does: {agreement}"
            )
    if path.suffix != ".onnx":
        about = json.dumps(describe(predictor, size, outputs), indent=1)
        storage.write_text(path.with_name(f"{path.name}.json"), about + "\n")
    return agreement
