"""Evaluates a checkpoint on a split: python evaluate.py --help. The code is in hrnet_jax.tools."""

from hrnet_jax.tools import evaluate

if __name__ == "__main__":
    evaluate.cli()
