"""Datasets converted to tiles once, for faster reading."""
