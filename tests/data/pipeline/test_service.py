import gc
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from batching import train_batches

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import service
from hrnet_jax.data.pipeline.order import Order

AUGMENTATION = {"scale_min": 0.5, "scale_max": 2.0, "scale_step": 0, "flip": True, "brightness": 5}


def take(source, batches, **options):
    options = {"batch_size": 4, "crop_size": (16, 24), "seed": 3} | AUGMENTATION | options
    iterator = train_batches(source, **options)
    try:
        return [next(iterator) for _ in range(batches)]
    finally:
        iterator.close()


SERVER = """
import sys
from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.pipeline.segmentation import TrainingSamples
from hrnet_jax.data.pipeline.service import Server
source = open_source("cityscapes", root=sys.argv[1], split="train")
samples = TrainingSamples(Mixture.of(source), Augmentation((16, 24), **%r), seed=3)
servers = [Server(samples, 0, "localhost") for _ in range(2)]
print(*(server.address for server in servers), flush=True)
servers[0].join()
"""


@pytest.fixture(scope="module")
def served(streets, tmp_path_factory):
    """The folder of a set with a damaged last image, and two servers of it."""
    root = tmp_path_factory.mktemp("served") / "streets"
    shutil.copytree(streets, root)
    source = open_source("cityscapes", root=root, split="train")
    Path(source.image_paths[-1]).write_bytes(b"")
    command = [sys.executable, "-c", SERVER % AUGMENTATION, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        addresses = process.stdout.readline().split()
        assert len(addresses) == 2  # none would mean samples made here
        yield root, addresses
        process.kill()


def test_same_sequence_for_any_number_of_servers(served, streets):
    _, addresses = served
    source = open_source("cityscapes", root=streets, split="train")
    # As long as the damaged image does not come.
    order = Order([len(source)], 3, weights=[1])
    places = [int(order.draw(tf.constant(g, tf.int64)).index) for g in range(100)]
    start = next(k for k in range(100) if 6 not in places[k : k + 4])
    options = {"batch_size": 1, "start_step": start}
    expected = take(source, 4, **options)
    for servers in (addresses[:1], addresses):
        got = take(source, 4, service=servers, prefetch=0, **options)
        for a, b in zip(got, expected, strict=True):
            for key in ("image", "label"):
                np.testing.assert_array_equal(a[key], b[key])


def test_errors_of_a_server_are_named(served):
    root, addresses = served
    source = open_source("cityscapes", root=root, split="train")
    with pytest.raises(
        ValueError, match=r"makes samples of 7 of cityscapes train; seed 3; .*wants"
    ):
        take(source, 1, service=addresses, seed=4)
    with pytest.raises(ValueError, match=r"_leftImg8bit.png is empty"):
        take(source, 4, service=addresses)


def test_function_is_registered_as_long_as_its_server_lives():
    """Depends on a private part of TensorFlow, which only `service` may use."""
    load = lambda: (np.arange(3, dtype=np.int32),)  # noqa: E731
    server = service.Server(load, 0, "localhost")
    (value,) = service.call_on_server(load, (), (tf.int32,))
    assert value.numpy().tolist() == [0, 1, 2]
    registered = weakref.ref(load)
    del load, server
    gc.collect()
    assert registered() is None
    with pytest.raises(tf.errors.OpError, match="Could not find callback"):
        service.call_on_server(None, (), (tf.int32,))
