import os

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.pipeline.class_counts import class_counts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_counts_by_hand(make_source):
    # Classes 3, 5, 7; 0 is ignored.
    source = make_source([(2, 4)] * 2, label=np.array([[3, 3, 3, 5], [0, 255, 5, 3]], np.uint8))
    Image.fromarray(np.full((2, 4), 7, np.uint8)).save(source.label_paths[1])
    expected = [[4, 2, 0], [0, 0, 8]]
    assert class_counts(source, progress=False).tolist() == expected
    assert class_counts(source.take([1]), progress=False).tolist() == expected[1:]


def test_a_changed_file_is_counted_again(make_source):
    source = make_source([(2, 4)], label=np.full((2, 4), 3, np.uint8))
    assert class_counts(source, progress=False).tolist() == [[8, 0, 0]]
    Image.fromarray(np.full((2, 4), 5, np.uint8)).save(source.label_paths[0])
    os.utime(source.label_paths[0], ns=(1, 1))
    assert class_counts(source, progress=False).tolist() == [[0, 8, 0]]
