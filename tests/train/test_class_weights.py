"""Class weights from labels against hand-computed numbers; a continued run keeps its own."""

import logging
import types

import numpy as np
import pytest

from hrnet_jax.configs import common
from hrnet_jax.train import build, class_weights
from hrnet_jax.train.config import check_class_weights, check_same_config, class_weights_rule

# Pixels of three classes in two images; the last class has none.
COUNTS = np.array([[100, 0, 0], [50, 50, 0]])
OTHER = np.array([[0, 0, 10]])


@pytest.fixture
def mixture(monkeypatch):
    """Makes a mixture of sources with these counts and weights."""
    monkeypatch.setattr(class_weights, "class_counts", lambda source: source)
    monkeypatch.setattr(class_weights, "Mixture", types.SimpleNamespace(of=lambda source: source))
    classes = types.SimpleNamespace(names=("road", "pole", "train"), num_classes=3)

    def make(*sources, weights):
        return types.SimpleNamespace(sources=sources, weights=weights, classes=classes, name="x")

    return make


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Fractions 3/4 and 1/4: 1 / fraction, divided by its mean over the pixels, which is 2.
        ("inverse_frequency", [2 / 3, 2]),
        # 150 of 200 and 50 of 100 pixels, median 5/8: 5/6 and 5/4, divided by their mean 15/16.
        ("median_frequency", [8 / 9, 4 / 3]),
        # 2 and 1 images: effective 1.9 and 1 with beta 0.9; mean 3/4 / 1.9 + 1/4.
        ("effective_number", [1 / 1.9 / 0.644736842, 1 / 0.644736842]),
        ("auto", [1 / 1.9 / 0.644736842, 1 / 0.644736842]),
    ],
)
def test_weights_by_hand(mixture, rule, expected):
    weights, fractions = class_weights.from_labels(mixture(COUNTS, weights=(1.0,)), rule, 0.9)
    np.testing.assert_allclose(fractions, [0.75, 0.25, 0])
    # A class without pixels has weight 1.
    np.testing.assert_allclose(weights, [*expected, 1], rtol=1e-6)
    assert np.sum(weights * fractions) == pytest.approx(1)


def test_images_without_labels_do_not_count(mixture):
    blank = np.zeros((5, 3), np.int64)
    for rule in class_weights.RULES:
        expected, _ = class_weights.from_labels(mixture(COUNTS, weights=(1.0,)), rule, 0.9)
        weights, _ = class_weights.from_labels(
            mixture(COUNTS, blank, weights=(0.3, 0.7)), rule, 0.9
        )
        np.testing.assert_allclose(weights, expected)
    with pytest.raises(ValueError, match="need labels: 'x' has none"):
        class_weights.from_labels(mixture(blank, weights=(1.0,)), "auto", 0.9)


def test_limits_of_beta(mixture):
    equal, _ = class_weights.from_labels(mixture(COUNTS, weights=(1.0,)), "effective_number", 0)
    np.testing.assert_allclose(equal, 1)
    inverse, _ = class_weights.from_labels(mixture(COUNTS, weights=(1.0,)), "effective_number", 1)
    # 1/2 and 1 per image, divided by their mean 5/8.
    np.testing.assert_allclose(inverse, [0.8, 1.6, 1])


def test_sources_of_a_mixture_count_by_their_weights(mixture):
    both = mixture(COUNTS, OTHER, weights=(0.6, 0.4))
    weights, fractions = class_weights.from_labels(both, "inverse_frequency", 0.9)
    np.testing.assert_allclose(fractions, [0.45, 0.15, 0.4])
    np.testing.assert_allclose(weights, 1 / (3 * fractions))
    # Frequencies where present are 3/4, 1/2 and 1.
    weights, _ = class_weights.from_labels(both, "median_frequency", 0.9)
    raw = 0.75 / np.array([0.75, 0.5, 1])
    np.testing.assert_allclose(weights, raw / (raw @ fractions))
    # Of 3 images 1.8, 0.9 and 1.2 have the classes, at these weights.
    weights, _ = class_weights.from_labels(both, "effective_number", 0.9)
    raw = 0.1 / (1 - 0.9 ** np.array([1.8, 0.9, 1.2]))
    np.testing.assert_allclose(weights, raw / (raw @ fractions))


def test_the_log_shows_them_and_a_continued_run_keeps_them(mixture, caplog):
    config = common.get_config()
    config.loss.class_weights = "inverse_frequency"
    assert class_weights_rule(config) == "inverse_frequency"
    source = mixture(COUNTS, weights=(1.0,))
    check_class_weights(config, source)
    with caplog.at_level(logging.INFO):
        weights = build.compute_class_weights(config, source, None)
    assert "pole    25.0000%    2.000" in caplog.text
    assert "no labeled pixel of train: weight 1" in caplog.text
    saved = {"class_weights": [1.5, 2.5, 3.5]}
    assert build.compute_class_weights(config, mixture(None, weights=()), saved) == (1.5, 2.5, 3.5)
    # The configuration keeps the rule, which is what is compared; the loss gets the numbers.
    used = build.with_class_weights(config, weights)
    assert build.make_loss(used).keywords["class_weights"] == weights
    now = {"classes": {"names": ["road"]}, "config": config.to_dict()}
    as_read = now | {"config": config.to_dict() | {"loss": dict(now["config"]["loss"])}}
    check_same_config(as_read, now, "run")


def test_rules_are_for_pixels_and_numbers_for_every_class(mixture):
    config = common.get_config()
    source = mixture(COUNTS, weights=(1.0,))
    for weights in ((1.0, 2.0), (1.0, 2.0, -1.0), ("auto", "auto", "auto")):
        config.loss.class_weights = weights
        with pytest.raises(ValueError, match="one positive weight for each is needed, or None, or"):
            check_class_weights(config, source)
    config.loss.class_weights, config.head = "auto", "classification"
    with pytest.raises(ValueError, match=r"class_weights='auto' is for segmentation only"):
        check_class_weights(config, source)
