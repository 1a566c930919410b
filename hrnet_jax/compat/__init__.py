"""Modules under their old names, for one version: hrnet_jax.optim is compat/optim.py."""
