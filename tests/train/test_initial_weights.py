"""The weights to start from: rows of classifiers by the name of their class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.models import create_model
from hrnet_jax.train import initial_weights, network_file

NAMES = ("road", "car", "tree", "sky")
KERNEL = "params/head/classifier/kernel"
BIAS = "params/head/aux_classifier/bias"


@pytest.mark.parametrize(
    ("wanted", "columns", "said"),
    [
        (NAMES[::-1], [3, 2, 1, 0], "Copied: sky, tree, car, road. Random: none. Left out: none"),
        (
            ("sky", "person", "road"),
            [3, None, 0],
            "Copied: sky, road. Random: person. Left out: car, tree",
        ),
        (("a", "road", "b", "c"), [None, 0, None, None], "Copied: road. Random: a, b, c. Left"),
    ],
)
def test_rows_are_taken_by_name(caplog, wanted, columns, said):
    """Also of OCR's auxiliary classifier and of a linear layer; hidden layers are not touched."""
    caplog.set_level("INFO", "hrnet_jax")
    dense = "params/head/dense_classifier/kernel"
    shapes = {KERNEL: (1, 1, 5, 4), BIAS: (4,), dense: (7, 4), "params/head/hidden/bias": (4,)}
    given = {k: np.arange(np.prod(s), dtype=float).reshape(s) for k, s in shapes.items()}
    fresh = {k: np.full((*s[:-1], len(wanted)), -1.0) for k, s in shapes.items()}
    mapped = initial_weights.rows_by_class(given, fresh, NAMES, wanted)
    assert sorted(mapped) == sorted([KERNEL, BIAS, dense])
    for path, array in mapped.items():
        for new, old in enumerate(columns):
            expected = -1.0 if old is None else given[path][..., old]
            np.testing.assert_array_equal(
                array[..., new], np.broadcast_to(expected, array.shape[:-1])
            )
    assert said in caplog.text


def test_nothing_is_taken_of_other_classes_or_another_layer():
    given = {KERNEL: np.ones((1, 1, 5, 4))}
    same_count = initial_weights.rows_by_class(given, given, NAMES, tuple("abcd"))
    wider = {KERNEL: np.ones((1, 1, 6, 4))}
    assert same_count == {KERNEL: None}
    assert initial_weights.rows_by_class(given, wider, NAMES, NAMES[::-1]) == {KERNEL: None}


def test_starting_from_a_file(tmp_path, quick, caplog, monkeypatch):
    """With other classes, with the same, and from a file that does not name them."""
    caplog.set_level("INFO", "hrnet_jax")
    model = create_model("tiny", 4, "ocr")
    variables = model.init(jax.random.key(3), jnp.zeros((1, 64, 64, 3)))
    colors = [[k, 0, 0] for k in range(4)]
    classes = {"names": list(NAMES), "colors": colors, "label_ids": list(range(4))}
    metadata = {"model": model.to_json(), "classes": classes, "config": {}, "version": "0"}
    path = tmp_path / "x.safetensors"
    weights_file.write(path, variables, metadata, step=1, metric=None)

    found = initial_weights.load(str(path), model, ("sky", "person", "tree", "car"), seed=0)
    assert "Copied: sky, tree, car. Random: person. Left out: road" in caplog.text
    assert "random: nothing; left out: nothing" in caplog.text
    old, new = (traverse_util.flatten_dict(tree, sep="/") for tree in (variables, found))
    for name in ("classifier", "aux_classifier"):
        for part in ("kernel", "bias"):
            key = f"params/head/{name}/{part}"
            np.testing.assert_array_equal(new[key][..., [0, 2, 3]], old[key][..., [3, 2, 1]])
            assert not np.isin(new[key][..., 1], old[key]).any()
    caplog.clear()
    initial_weights.load(str(path), model, tuple("abcd"), seed=0)
    assert "random: head/aux_classifier, head/classifier; left out: head/aux_class" in caplog.text
    assert "does not name" not in caplog.text

    unnamed = network_file.NetworkFile(variables, model.to_json(), None)
    monkeypatch.setattr(network_file, "read", lambda *args, **options: unnamed)
    found = initial_weights.load("x.pth", model, tuple("abcd"), seed=0)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    assert "4 classes: they are assumed to be a, b, c, ..., in this order" in caplog.text
