"""High-resolution networks for dense prediction in JAX and Flax.

Names load on first use: importing the package imports neither TensorFlow nor the checkpoint
library.
"""

import importlib
import os

__version__ = "0.1.0"

# Modules under their old names, for one version: hrnet_jax.optim is compat/optim.py.
__path__.append(os.path.join(__path__[0], "compat"))

_EXPORTS = {
    "create_model": "hrnet_jax.models",
    "from_torch": "hrnet_jax.pytorch.convert",
    "to_torch": "hrnet_jax.pytorch.convert",
    "load": "hrnet_jax.inference.predictor",
}
__all__ = [*_EXPORTS, "losses"]


def __getattr__(name: str):
    if name == "losses":
        return importlib.import_module("hrnet_jax.losses")
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hrnet_jax' has no attribute {name!r}; known: {__all__}")


def __dir__():
    return sorted([*globals(), *__all__])
