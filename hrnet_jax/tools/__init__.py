"""Command-line tools: ``python -m hrnet_jax.tools.NAME --help``."""

import os

# TensorFlow only reads images here and has nothing to say. Before it is imported, hence here.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
