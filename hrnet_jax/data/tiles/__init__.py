"""A data set cut into tiles once, for reading many times."""
