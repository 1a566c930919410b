import pytest
from absl import flags
from absl.testing import flagsaver

from hrnet_jax.inference.multi_scale import TestTimeAugmentation
from hrnet_jax.tools import tta_flags


@pytest.fixture(autouse=True)
def parsed():
    flags.FLAGS.mark_as_parsed()


def test_default_is_a_single_view():
    assert tta_flags.tta() == TestTimeAugmentation()


def test_flags_reach_the_method():
    values = {"scales": ["0.5", "1.25"], "flip": True, "tile": "64x128", "average": "exp"}
    with flagsaver.flagsaver(**values):
        assert tta_flags.tta() == TestTimeAugmentation((0.5, 1.25), True, (64, 128), "exp")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scales": ["1", "big"]}, "--scales=1,big: need numbers"),
        ({"scales": []}, "scales must be positive"),
        ({"tile": "512"}, "--tile=512: need HEIGHTxWIDTH"),
        ({"tile": "-1x64"}, "--tile=-1x64: need HEIGHTxWIDTH"),
        ({"tile": "8x64"}, "both >= 32"),
    ],
)
def test_refuses(values, message):
    with flagsaver.flagsaver(**values), pytest.raises(ValueError, match=message):
        tta_flags.tta()
