"""Eight simulated CPU devices, and compiled programs kept between runs."""

import os
import pathlib

# Before JAX starts: its number of devices cannot change afterwards.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
_CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import pytest  # noqa: E402
from compiling import FAST_COMPILE  # noqa: E402

from hrnet_jax import sharding  # noqa: E402
from hrnet_jax.models import Variant, variants  # noqa: E402


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
