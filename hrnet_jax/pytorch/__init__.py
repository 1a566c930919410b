"""Weights of PyTorch, both ways."""
