"""Evaluates a checkpoint on a split: python evaluate.py --help. The code is in hrnet_jax.tools."""

from hrnet_jax.tools.__main__ import start

if __name__ == "__main__":
    start("evaluate")
