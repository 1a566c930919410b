"""Knowledge distillation: a loss that pulls a network's class probabilities to those of a teacher.

Pure functions; `teacher` reads the trained network.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The teacher in a training step, without its variables, which are an input of the step.

    Attributes:
      model: the teacher's network.
      class_order: for each class of the student, the teacher's channel of that class; None: the
        same order.
      temperature: see `divergence`.
      weight: of this loss; the loss on the labels has weight 1.
      min_confidence: see `divergence`.
    """

    model: nn.Module
    class_order: tuple[int, ...] | None = None
    temperature: float = 1.0
    weight: float = 1.0
    min_confidence: float = 0.0

    def loss(
        self,
        variables: Mapping[str, Any],
        inputs: jax.Array,
        student_logits: jax.Array,
        padding: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """The divergence from the teacher on the same images, and the fraction of pixels in it.

        The teacher is in evaluation mode; no gradient flows to it.

        Args:
          variables: the teacher's {"params", "batch_stats"}.
          inputs: normalized images [N, H, W, 3].
          student_logits: [N, h, w, C] as the network gives them, or [N, C] of whole images.
          padding: bool [N, H, W], or [N]; these pixels do not count.
        """
        logits = self.model.apply(variables, inputs, train=False)["logits"]
        if self.class_order is not None:
            logits = jnp.take(logits, jnp.array(self.class_order), axis=-1)
        if student_logits.ndim == 4:
            # The top left one of the pixels under each logit.
            rows, columns = (-(-padding.shape[k] // logits.shape[k]) for k in (1, 2))
            padding = padding[:, ::rows, ::columns]
        return divergence(
            student_logits,
            logits,
            ~padding,
            temperature=self.temperature,
            min_confidence=self.min_confidence,
        )


def divergence(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    valid: jax.Array,
    *,
    temperature: float = 1.0,
    min_confidence: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """T^2 * KL(teacher || student), averaged over the kept pixels.

    With p = softmax(teacher / T) and q = softmax(student / T): a pixel has sum_c p_c log(p_c/q_c).
    T^2 keeps the gradients' size about the same for all T (Hinton et al., arXiv 1503.02531, section
    2). Each pixel by itself, as the pixel-wise term of Liu et al. (arXiv 1903.04197, equation 1).

    The logits are compared at the networks' own resolution, a quarter of the image's. Bilinear
    resizing is linear and the same for both, so logits that agree there agree at full size, and
    softmax and logarithm are computed for a sixteenth of the pixels.

    Sums and counts run over the whole batch: sharded over devices, the result is that of the
    global batch. Computed in float32, or in float64 where the student's logits are float64.

    Args:
      student_logits: [..., C].
      teacher_logits: [..., C]. Constants: no gradient flows to them.
      valid: bool [...]; other pixels do not count.
      temperature: T > 0; higher ones weigh the improbable classes more.
      min_confidence: pixels where the teacher's largest probability (of softmax(teacher), for
        any T) is lower do not count, 0..1.

    Returns:
      The loss, 0 if no pixel is kept, and the fraction of the pixels that are kept.

    Raises:
      ValueError: if the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape or valid.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"the student's logits {student_logits.shape} and the teacher's"
            f" {teacher_logits.shape} must have one shape [..., classes], and valid {valid.shape}"
            " the same without the classes"
        )
    dtype = jnp.promote_types(student_logits.dtype, jnp.float32)
    student = student_logits.astype(dtype)
    teacher = lax.stop_gradient(teacher_logits.astype(dtype))
    kept = valid
    if min_confidence:
        # Not `>=`: a NaN of the teacher has to show in the loss.
        kept &= ~(jnp.max(jax.nn.softmax(teacher), axis=-1) < min_confidence)
    log_p = jax.nn.log_softmax(teacher / temperature)
    log_q = jax.nn.log_softmax(student / temperature)
    pixels = temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    count = jnp.sum(kept, dtype=dtype)
    loss = jnp.sum(jnp.where(kept, pixels, 0)) / jnp.maximum(count, 1)
    return loss, count / kept.size


def padding_of(images: jax.Array, labels: jax.Array, ignore_label: int) -> jax.Array:
    """Where a training sample shows no image: bool of the labels' shape.

    Samples are padded with black and the ignored label where the image ends
    (`data.pipeline.augment.apply_view`). Exactly black pixels without a label in an image are taken
    for padding, too. Ignored pixels of other colors are not: images without labels have no others.

    Args:
      images: uint8 [N, H, W, 3], before any change of colors.
      labels: [N, H, W], or [N] of whole images, where no pixel is left out.
      ignore_label: of `labels`.
    """
    if labels.ndim == 1:
        return jnp.zeros(labels.shape, bool)
    return (labels == ignore_label) & jnp.all(images == 0, axis=-1)


def class_order(student: Sequence[str], teacher: Sequence[str]) -> tuple[int, ...] | None:
    """The teacher's channel of each of the student's classes; None if they are in the same order.

    Raises:
      ValueError: if the names are not the same, listing those that only one of the two has.
    """
    if missing := set(student) ^ set(teacher):
        only_teacher = [name for name in teacher if name in missing]
        only_student = [name for name in student if name in missing]
        raise ValueError(
            f"only the teacher has {_listed(only_teacher)}, only the dataset has"
            f" {_listed(only_student)}"
        )
    order = tuple(list(teacher).index(name) for name in student)
    return None if order == tuple(range(len(order))) else order


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{list(names[:limit])}{more}" if names else "no others"
