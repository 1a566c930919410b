"""Two processes with four devices each against one with eight."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from states import assert_equal, make_state
from test_partitioning import _batch, train_once
from test_segmentation import run, split  # noqa: F401  (a fixture)

from hrnet_jax.runtime import sharding

WORKER = Path(__file__).with_name("processes_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory, split, bucket):  # noqa: F811
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "source.pickle").write_bytes(pickle.dumps(split[0]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER, coordinator, "2", str(i), folder, bucket],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    return [pickle.loads((folder / f"found{i}.pickle").read_bytes()) for i in range(2)]


def test_processes_see_all_devices_and_different_settings(found):
    for one in found:
        assert one["devices"] == 8
        assert "different configurations" in one["difference"]
        assert "batch_size: 0 on process 0, 1 on process 1" in one["difference"]
        assert one["gathered"] == [[b"a"], [b"a"] * 3]
    assert [one["shared_4x2"] for one in found] == [(0, 2), (1, 2)]
    assert [one["shared_1x8"] for one in found] == [(0, 1), (0, 1)]


def test_what_lies_on_one_device_of_each_process_is_copied_to_all(found):
    for one in found:
        np.testing.assert_array_equal(one["copies"]["a"], [0, 1, 2])
        assert one["copies"]["b"] == 7


def test_training_equals_one_process(found):
    _, expected, measured = train_once("segmentation", sharding.make_mesh(4, 2), _batch())
    for one in found:
        assert one["loss"] == pytest.approx(float(measured["loss"]), rel=1e-6)
        for a, e in zip(jax.tree.leaves(one["state"]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * max(1, np.abs(e).max()))


def test_evaluation_counts_every_image_once(found, split):  # noqa: F811
    expected = run(split[0])
    for one in found:
        np.testing.assert_array_equal(one["confusion"], expected.confusion)
        np.testing.assert_array_equal(one["counts"], expected.image_counts)
    # Each process has the pictures of its own images.
    numbers = [i for one in found for i, _ in one["seen"]]
    assert sorted(numbers) == list(range(len(split[0])))
    for one in found:
        for i, prediction in one["seen"]:
            np.testing.assert_array_equal(prediction, split[2][i])


def test_checkpoints_in_folders_and_in_stores(found):
    for one in found:
        for steps, restored in (one["folder"], one["store"]):
            assert steps == [2, 3, 4]
            assert_equal(restored, make_state(4))
