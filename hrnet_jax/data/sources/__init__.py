"""Datasets in the layouts that users have: classes, names and the way to the samples."""
