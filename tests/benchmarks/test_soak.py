"""The short forms of the experiments of benchmarks/soak.py.

The other numbers are tested with their subjects: 1 in train/test_loop (and 2 resumes, too), 6 in
checkpoints/test_store, 7 and 14 in train/test_loop and tools/test_train, 9 in data/pipeline, 10 in
evaluation/test_segmentation.
"""

import pytest

from benchmarks import soak


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return soak.Lab(tmp_path_factory.mktemp("soak"), short=True)


@pytest.mark.parametrize("number", ["2", "3", "4", "5", "8", "11", "12", "13", "fuzz"])
def test_experiment(lab, number):
    soak.EXPERIMENTS[number][1](lab)
