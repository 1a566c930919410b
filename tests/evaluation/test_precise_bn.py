"""BatchNorm's statistics of whole images: by hand, through the network, on any mesh."""

import functools

import jax
import numpy as np
import pytest
from compiling import fast_jit
from jax import lax

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.synthetic import write as synthetic
from hrnet_jax.evaluation import precise_bn
from hrnet_jax.models import create_model, normalize
from hrnet_jax.runtime import sharding

COUNT = 9


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    synthetic.write_cityscapes(root, {"train": COUNT}, size=(64, 128), progress=False)
    return open_source("cityscapes", root=root, split="train")


@pytest.fixture(scope="module")
def network(tiny, source):
    model = create_model(tiny, source.classes.num_classes)
    return model, model.init(jax.random.key(1), np.zeros((1, 64, 64, 3), np.float32))


@pytest.fixture
def measure(network, source, quick):
    def measure(batch_size, devices=1):
        mesh = sharding.make_mesh(devices)
        return precise_bn.measure(*network, source, batch_size=batch_size, mesh=mesh)

    return measure


def test_first_layer_by_hand(network, source, measure):
    _, variables = network
    stats, images = measure(batch_size=3)
    assert images == COUNT
    whole = next(segmentation_data.eval_batches(source, batch_size=COUNT))["image"]
    kernel = variables["params"]["backbone"]["stem"]["conv1"]["conv"]["kernel"]
    maps = lax.conv_general_dilated(
        normalize.normalize(whole),
        kernel,
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    maps = np.asarray(maps, np.float64).reshape(-1, kernel.shape[-1])
    first = stats["backbone"]["stem"]["conv1"]["bn"]
    np.testing.assert_allclose(first["mean"], maps.mean(0), rtol=1e-4, atol=1e-6)
    # Within n / (n - 1) of a batch's n = 3 * 32 * 64 values.
    np.testing.assert_allclose(first["var"], maps.var(0), rtol=3e-4)
    assert jax.tree.map(np.shape, stats) == jax.tree.map(np.shape, variables["batch_stats"])


def test_with_those_of_one_batch_evaluation_computes_what_training_does(network, source, measure):
    model, variables = network
    stats, _ = measure(batch_size=COUNT)
    images = next(segmentation_data.eval_batches(source, batch_size=COUNT))["image"]
    images = normalize.normalize(images)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    trained, _ = fast_jit(train)(variables, images)
    evaluate = fast_jit(model.apply)
    new = {"params": variables["params"], "batch_stats": stats}
    evaluated = evaluate(new, images)["logits"]
    scale = np.abs(trained["logits"]).max()
    assert np.abs(evaluated - trained["logits"]).max() < 0.02 * scale
    old = evaluate(variables, images)["logits"]  # statistics of no image: far away
    assert np.abs(old - trained["logits"]).max() > 0.2 * scale


def test_any_mesh_and_full_batches_only(measure):
    one, images = measure(batch_size=8)
    eight, images_of_eight = measure(batch_size=5, devices=8)  # rounded up to 8
    assert images == images_of_eight == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, eight)
    with pytest.raises(
        ValueError, match=r"batch_size=10: the .* images of .* fill no batch of one size"
    ):
        measure(batch_size=10)
