"""The distance from a teacher, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrnet_jax.train import distill

# Probabilities (3/4, 1/4) of the teacher, (1/2, 1/2) of the student.
TEACHER, STUDENT = [math.log(3), 0.0], [0.0, 0.0]
KL = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _divergence(student, teacher, valid=None, **options):
    student, teacher = np.array(student, np.float64), np.array(teacher, np.float64)
    valid = np.ones(student.shape[:-1], bool) if valid is None else np.array(valid)
    loss, kept = distill.divergence(jnp.asarray(student), jnp.asarray(teacher), valid, **options)
    assert loss.dtype == jnp.float64
    return float(loss), float(kept)


def test_values_by_hand():
    assert _divergence([STUDENT], [TEACHER])[0] == pytest.approx(KL, rel=1e-14)
    # Teacher and student are not exchangeable: KL(student || teacher) is another number.
    other = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert _divergence([TEACHER], [STUDENT])[0] == pytest.approx(other, rel=1e-14)
    assert _divergence([TEACHER], [TEACHER])[0] == 0
    # Logits twice as large at temperature 2: the same probabilities, times 2 ** 2.
    doubled = [2 * math.log(3), 0.0]
    loss, _ = _divergence([STUDENT], [doubled], temperature=2.0)
    assert loss == pytest.approx(4 * KL, rel=1e-14)


def test_the_mean_is_over_the_pixels_that_are_kept():
    students, teachers = [STUDENT, TEACHER, STUDENT, STUDENT], [TEACHER, TEACHER, TEACHER, STUDENT]
    loss, kept = _divergence(students, teachers)
    assert (loss, kept) == (pytest.approx(2 * KL / 4), 1)
    loss, kept = _divergence(students, teachers, [True, True, False, True])
    assert (loss, kept) == (pytest.approx(KL / 3), 0.75)
    # The last teacher's largest probability is 1/2; temperature does not change what counts.
    loss, kept = _divergence(students, teachers, min_confidence=0.7)
    assert (loss, kept) == (pytest.approx(2 * KL / 3), 0.75)
    _, kept = _divergence(students, teachers, min_confidence=0.7, temperature=4.0)
    assert kept == 0.75
    assert _divergence(students, teachers, min_confidence=0.8) == (0, 0)


def test_the_gradient_is_the_students_only():
    """At a pixel: T * (softmax(student / T) - softmax(teacher / T)); 0 where it does not count."""
    student = jnp.array([STUDENT, STUDENT, STUDENT])
    teacher = jnp.array([[2 * math.log(3), 0.0], STUDENT, TEACHER])
    valid = np.array([True, True, False])

    def loss(student, teacher):
        return distill.divergence(student, teacher, valid, temperature=2.0, min_confidence=0.6)[0]

    of_student, of_teacher = jax.grad(loss, (0, 1))(student, teacher)
    np.testing.assert_allclose(of_student, [[-0.5, 0.5], [0, 0], [0, 0]], atol=1e-15)
    np.testing.assert_array_equal(of_teacher, np.zeros_like(teacher))


def test_a_teacher_that_is_not_finite_shows():
    assert math.isnan(_divergence([STUDENT], [[math.nan, 0.0]], min_confidence=0.9)[0])


def test_bfloat16_is_computed_in_float32():
    student = jnp.array([STUDENT], jnp.bfloat16)
    loss, _ = distill.divergence(student, jnp.array([TEACHER], jnp.bfloat16), np.array([True]))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(KL, rel=0.01)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2\) and the teacher's \(1, 3\)"):
        _divergence([STUDENT], [[0.0, 0.0, 0.0]])


def test_padding_is_black_and_without_a_label():
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[0, 0, 0, 1] = 1
    labels = np.array([[[255, 255], [255, 0]]])
    expected = [[[False, True], [True, False]]]
    np.testing.assert_array_equal(distill.padding_of(images, labels, 255), expected)
    assert not distill.padding_of(images, np.array([-1]), -1).any()


def test_classes_are_mapped_by_name():
    names = ("road", "car", "tree")
    assert distill.class_order(names, names) is None
    assert distill.class_order(names, ("tree", "road", "car")) == (1, 2, 0)
    expected = r"only the teacher has \['bush', 'sky'\], only the dataset has \['tree'\]"
    with pytest.raises(ValueError, match=expected):
        distill.class_order(names, ("road", "car", "bush", "sky"))
    with pytest.raises(ValueError, match="only the dataset has no others"):
        distill.class_order(names, (*names, "sky"))
