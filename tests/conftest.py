"""Eight simulated CPU devices, and compiled programs kept between runs."""

import logging
import os
import pathlib
import socket

# Before JAX starts: its number of devices cannot change afterwards.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# JAX would drop the compiler for GPUs, where it is installed, on machines without a driver.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
_CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# gcsfs asks the network what kind of bucket each is, whenever it is used; read at its import.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

import pytest  # noqa: E402
from compiling import FAST_COMPILE  # noqa: E402

from hrnet_jax.models import Variant, variants  # noqa: E402
from hrnet_jax.runtime import sharding  # noqa: E402


@pytest.fixture(scope="session")
def tiny() -> Variant:
    """A network with every part of an HRNet, small enough to compile in seconds."""
    return Variant(
        "tiny", width=4, layer1_blocks=1, layer1_planes=4, num_modules=(1, 1, 1), num_blocks=1
    )


@pytest.fixture
def quick(monkeypatch, tiny):
    """The tiny variant by name, and programs that compile fast instead of running fast."""
    monkeypatch.setitem(variants.VARIANTS, "tiny", tiny)
    monkeypatch.setattr(sharding, "compiler_options", lambda *_, **__: FAST_COMPILE)


@pytest.fixture(scope="session", autouse=True)
def label_counts(tmp_path_factory):
    """What the tests read of labels is kept apart from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bucket():
    """The address of a bucket in memory, also for processes that are started meanwhile."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        yield "gs://bucket"
    server.stop()
