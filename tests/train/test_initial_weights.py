"""The weights to start from: rows of classifiers by the name of their class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.models import create_model
from hrnet_jax.pytorch import convert
from hrnet_jax.pytorch import files as torch_files
from hrnet_jax.train import initial_weights

NAMES = ("road", "car", "tree", "sky")


def _file(path, head, names=NAMES):
    model = create_model("tiny", len(names), head)
    variables = model.init(jax.random.key(3), jnp.zeros((1, 64, 64, 3)))
    colors = [[k, 0, 0] for k in range(len(names))]
    classes = {"names": list(names), "colors": colors, "label_ids": list(range(len(names)))}
    metadata = {"model": model.to_json(), "classes": classes, "config": {}, "version": "0"}
    weights_file.write(path, variables, metadata, step=1, metric=None)
    return variables


@pytest.mark.parametrize(
    ("head", "layers"),
    [("segmentation", ["classifier"]), ("ocr", ["classifier", "aux_classifier"]),
     ("segmentation_v1", ["classifier"]), ("classification", ["classifier"])],
)  # fmt: skip
def test_rows_are_taken_by_name(tmp_path, quick, caplog, head, layers):
    caplog.set_level("INFO", "hrnet_jax")
    given = _file(tmp_path / "x.safetensors", head)
    wanted = ("sky", "person", "road")
    model = create_model("tiny", 3, head)
    found = initial_weights.load(str(tmp_path / "x.safetensors"), model, wanted, seed=0)
    random = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    for layer in layers:
        for name in ("kernel", "bias"):
            new, old, fresh = (t["params"]["head"][layer][name] for t in (found, given, random))
            assert new.shape[-1] == 3
            np.testing.assert_array_equal(new[..., 0], old[..., 3])
            np.testing.assert_array_equal(new[..., 1], fresh[..., 1])
            np.testing.assert_array_equal(new[..., 2], old[..., 0])
    assert "Taken: sky, road. Random: person. Left out: car, tree" in caplog.text
    assert "random: nothing; left out: nothing" in caplog.text


def test_the_same_number_of_other_classes(tmp_path, quick, caplog):
    """Another order is put in order; other names are not taken over row by row."""
    caplog.set_level("INFO", "hrnet_jax")
    given = _file(tmp_path / "x.safetensors", "segmentation")
    model = create_model("tiny", 4)
    path, kernel = str(tmp_path / "x.safetensors"), ("params", "head", "classifier", "kernel")

    def kernel_of(tree):
        for key in kernel:
            tree = tree[key]
        return np.asarray(tree)

    same = initial_weights.load(path, model, NAMES, seed=0)
    jax.tree.map(np.testing.assert_array_equal, same, given)
    assert "by name" not in caplog.text
    turned = initial_weights.load(path, model, NAMES[::-1], seed=0)
    np.testing.assert_array_equal(kernel_of(turned), kernel_of(given)[..., ::-1])
    assert "Taken: sky, tree, car, road. Random: none. Left out: none" in caplog.text
    other = initial_weights.load(path, model, tuple("abcd"), seed=0)
    assert not np.isin(kernel_of(other), kernel_of(given)).any()
    assert "Taken: none. Random: a, b, c, d." in caplog.text
    assert "random: head/classifier; left out: head/classifier" in caplog.text


def test_files_without_names_are_taken_in_order_with_a_warning(tmp_path, caplog):
    model = create_model("w18_small_v1", 4)
    variables = model.init(jax.random.key(7), jnp.zeros((1, 64, 64, 3)))
    path = tmp_path / "x.pth"
    torch_files.write_tensors(path, convert.to_torch(model, variables))
    found = initial_weights.load(str(path), model, NAMES, seed=0)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    assert "does not name its 4 classes: they are taken in their order for road, car" in caplog.text
