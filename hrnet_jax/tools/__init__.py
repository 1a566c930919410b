"""Command-line tools: ``python -m hrnet_jax.tools.NAME --help``."""
