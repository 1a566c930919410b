"""What a run needs of machines that are not there."""

import importlib.util
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from hrnet_jax.configs import cityscapes
from hrnet_jax.models.backbone import Branch, Stem
from hrnet_jax.models.heads import SegmentationHead
from hrnet_jax.models.layers import Policy
from hrnet_jax.models.remat_scan import call
from hrnet_jax.preflight import compile as preflight
from hrnet_jax.train import build

# What is compiled for other machines is kept, too, but cannot be used again.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra 'preflight' is not installed"
)


class OneStream(nn.Module):
    """The least that has a stem, a branch and a head: TPU programs take long to compile."""

    num_classes: int
    policy: Policy
    align_corners: bool = False

    @nn.compact
    def __call__(self, images, *, train=False):
        x = Stem(self.policy, name="stem")(images, train=train)
        x = Branch(64, 1, self.policy, name="backbone")(x, train=train)
        head = SegmentationHead(self.num_classes, policy=self.policy, name="head")
        return call(head, (x,), "head", train=train)


@pytest.fixture
def config(monkeypatch):
    """A run whose network is a small one."""

    def make_model(config, num_classes, platform=None):
        assert platform == "tpu"
        return OneStream(num_classes, Policy(jnp.bfloat16, remat=config.model.remat, lanes=128))

    monkeypatch.setattr(build, "make_model", make_model)
    config = cityscapes.get_config("variant=w18")
    config.batch_size = 4
    config.data.crop_size = (64, 64)
    return config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "unknown topology 'v9:2x2'; known are such as v4:2x2x4, v5e:16x16"),
        ("v5e", "v5e has 2 dimensions of chips, as in 'v5e:16x16'"),
        ("v5p:4x4", "v5p has 3 dimensions"),
        ("v5e:0x4", "2 dimensions"),
        ("a100:8", "programs for GPUs are compiled by their driver's.*--topology=local"),
        ("h100:8", "programs for GPUs"),
        ("gpu:8", "programs for GPUs"),
    ],
)  # fmt: skip
def test_bad_topologies(name, message):
    with pytest.raises(ValueError, match=message):
        preflight.open_topology(name)


def test_missing_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu, is not installed: pip install libtpu"):
        preflight.open_topology("v5e:2x2")


@needs_compiler
def test_topologies_that_do_not_exist():
    with pytest.raises(ValueError, match="does not know topology 'v5e:3x5'"):
        preflight.open_topology("v5e:3x5")


@needs_compiler
@pytest.mark.parametrize(
    ("name", "chips"), [("v4:2x2x2", 8), ("v5e:2x4", 8), ("v5p:2x2x2", 8), ("v6e:2x2", 4)]
)
def test_a_chip_is_a_device(name, chips):
    """As on TPU machines: the memory is that of a chip, and v4 has two cores."""
    assert len(preflight.open_topology(name).devices) == chips


@needs_compiler
def test_report(config):
    topology = preflight.open_topology("v5e:2x2")
    config.mesh.space = 2
    report = preflight.inspect(config, topology, num_classes=19)
    assert (report.devices, report.setting["data"], report.setting["space"]) == (4, 2, 2)
    memory = report.memory
    # The weights, their momentum and a counter; of four images with their labels, a quarter.
    assert memory["optimizer"] == memory["parameters"] + 4
    assert memory["parameters"] > 4 * 9 * 64 * 64
    assert memory["batch"] == 64 * 64 * 4
    assert memory["limit"] == 16 * 2**30 - 2**28
    assert memory["free"] == memory["limit"] - memory["total"]
    assert report.fits
    assert memory["temporaries"] > 0
    assert report.cycles > 1000
    assert report.flops > 1e6
    # Gradients are summed over all devices, rows are exchanged with neighbours.
    assert report.collectives["all-reduce"]["bytes"] > memory["parameters"]
    assert report.collectives["collective-permute"]["bytes"] > 0
    assert "all-gather" not in report.collectives
    modules = {part["module"] for part in report.contributors}
    assert {"head/hidden/conv", "head/hidden/bn"} & modules
    text = preflight.table(report)
    for expected in ("train on v5e:2x2: 4 device(s)", "fits: 16,911 MB may be used"):
        assert expected in text
    assert re.search(r"all-reduce: \d+ with \d+ MB, not in the estimate\n", text)
    assert json.loads(json.dumps(report.to_json()))["cycles"] == report.cycles


@needs_compiler
def test_what_does_not_fit(config):
    topology = preflight.open_topology("v5e:2x2")
    config.mesh.data = 1
    config.data.crop_size = (8192, 8192)
    report = preflight.inspect(config, topology, num_classes=19)
    assert report.fits is False
    assert report.memory["free"] < 0
    assert "DOES NOT FIT" in preflight.table(report)


def test_bad_settings(config):
    topology = preflight.Topology("v5e:2x4", "tpu", tuple(jax.devices()), 2**34)
    config.batch_size = 9
    with pytest.raises(ValueError, match="batch_size=9 is not divisible by 8"):
        preflight.inspect(config, topology, num_classes=19)
    config.batch_size, config.mesh.space = 8, 4
    with pytest.raises(ValueError, match=r"height .* is not divisible by 128"):
        preflight.inspect(config, topology, num_classes=19)
    config.mesh.space = 3
    with pytest.raises(ValueError, match=r"mesh\.space=3 does not divide the 8 devices"):
        preflight.inspect(config, topology, num_classes=19)
    with pytest.raises(ValueError, match="unknown program 'serve'"):
        preflight.inspect(config, topology, program="serve", num_classes=19)


def test_suggestions_cost_more_and_more(config):
    topology = preflight.Topology("v5e:2x2", "tpu", (None,) * 4, 2**34)
    config.batch_size = 16
    found = [text.replace("--config.", "") for text, _ in preflight.suggestions(config, topology)]
    assert found == [
        "model.remat=norm",
        "model.remat=block",
        "model.remat=module",
        "model.remat=module mesh.space=2",
        "model.remat=module optimizer.accumulate=2",
        "model.remat=module optimizer.accumulate=4",
        "model.remat=module batch_size=8",
        "model.remat=module batch_size=4",
    ]


def test_the_first_suggestion_that_fits(config, monkeypatch):
    topology = preflight.Topology("v5e:2x2", "tpu", (None,) * 4, 2**34)
    tried = []

    def inspect(config, topology, *, num_classes):
        tried.append(config.model.remat)

        class Report:
            fits = config.model.remat == "block"

        return Report

    monkeypatch.setattr(preflight, "inspect", inspect)
    text, report = preflight.suggest(config, topology, num_classes=19)
    assert text == "--config.model.remat=block"
    assert report.fits
    assert tried == ["norm", "block"]


def test_classes_of_the_data(config):
    assert preflight.num_classes_of(config) == 19
    config.data.name = "folder"
    with pytest.raises(ValueError, match="--num_classes"):
        preflight.num_classes_of(config)


@pytest.mark.parametrize(
    ("message", "used"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 20.5G of 15.75G hbm. Exceeded", int(20.5 * 2**30)),
        ("Used 512.00M of 256M hbm", 2**29),
        ("the total memory required for HLO temporaries (2.5G) exceeds", int(2.5 * 2**30) + 7),
        ("INTERNAL: something else", None),
    ],
)
def test_what_the_compiler_says_of_memory(message, used):
    assert preflight._used_bytes(message, 7) == used
