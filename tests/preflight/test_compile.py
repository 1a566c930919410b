"""What a run needs of machines that are not there."""

import importlib.util
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from hrnet_jax.configs import camvid, cityscapes
from hrnet_jax.models.backbone import Branch, Stem
from hrnet_jax.models.heads import SegmentationHead
from hrnet_jax.models.layers import Policy
from hrnet_jax.models.remat_scan import call
from hrnet_jax.preflight import compile as preflight
from hrnet_jax.preflight import gpus
from hrnet_jax.preflight.report import table
from hrnet_jax.preflight.topology import Topology, gpu_compiler, open_topology
from hrnet_jax.runtime import sharding
from hrnet_jax.train import build

# What is compiled for other machines is kept, too, but cannot be used again.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra 'preflight' is not installed"
)


needs_gpu_compiler = pytest.mark.skipif(
    not gpu_compiler(), reason="JAX's CUDA plugin (the extra 'cuda12' or 'cuda13') is not installed"
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
        assert platform in ("tpu", "gpu")
        lanes = 128 if platform == "tpu" else 0
        return OneStream(num_classes, Policy(jnp.bfloat16, remat=config.model.remat, lanes=lanes))

    monkeypatch.setattr(build, "make_model", make_model)
    config = cityscapes.get_config("variant=w18")
    config.batch_size = 4
    config.data.crop_size = (64, 64)
    return config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "unknown topology 'v9:2x2'; known: v4:2x2x4, v5e:16x16.*a100.*h100:8"),
        ("v5e", "2 dimensions of chips, as in 'v5e:16x16'"),
        ("v5p:4x4", "3 dimensions"),
        ("v5e:0x4", "2 dimensions"),
        ("h300:8", "unknown topology 'h300:8'"),
        ("gpu:8", "unknown topology"),
        ("h100:2x2x2", "hosts x GPUs, as in h100:8 or h100:2x8"),
        ("h100:0", "hosts x GPUs"),
        ("h100:16", "h100 have at most 8 GPUs; more need several hosts, as in h100:2x8"),
    ],
)  # fmt: skip
def test_bad_topologies(name, message):
    with pytest.raises(ValueError, match=message):
        open_topology(name)


def test_missing_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu, is not installed: pip install libtpu"):
        open_topology("v5e:2x2")


def test_missing_compiler_for_gpus(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'jax\[cuda12\]'"):
        open_topology("h100:8")


@needs_gpu_compiler
@pytest.mark.parametrize(
    ("name", "devices", "processes"), [("a100", 1, 1), ("h100:8", 8, 1), ("l4:2x4", 8, 2)]
)
def test_gpus(name, devices, processes):
    topology = open_topology(name)
    assert topology.platform == "gpu"
    assert len(topology.devices) == devices
    assert len({d.process_index for d in topology.devices}) == processes


@needs_gpu_compiler
def test_report_for_gpus(config):
    config.mesh.data = 2
    report = preflight.inspect(config, open_topology("h100:8"), num_classes=19)
    assert (report.devices, report.setting["data"]) == (2, 2)
    assert report.memory["limit"] == int(84942979072 * 0.75)
    assert report.fits
    assert report.cycles is None
    assert report.kernels > 50
    assert report.written > report.memory["parameters"]
    assert report.read > report.memory["parameters"]
    assert report.collectives["all-reduce"]["bytes"] > report.memory["parameters"]
    text = table(report)
    assert "GB written" in text
    assert re.search(r"MB read +\d+ kernels", text)


@pytest.mark.parametrize("gpu", sorted(gpus.GPUS))
def test_descriptions_of_gpus(gpu):
    text = gpus.target_config(gpus.GPUS[gpu])
    assert text.count("{") == text.count("}")
    assert f'name: "{gpus.GPUS[gpu].name}"' in text


@needs_compiler
def test_topologies_that_do_not_exist():
    with pytest.raises(ValueError, match="does not know topology 'v5e:3x5'"):
        open_topology("v5e:3x5")


@needs_compiler
@pytest.mark.parametrize(
    ("name", "chips"), [("v4:2x2x2", 8), ("v5e:2x4", 8), ("v5p:2x2x2", 8), ("v6e:2x2", 4)]
)
def test_a_chip_is_a_device(name, chips):
    """As on TPU machines: the memory is that of a chip, and v4 has two cores."""
    assert len(open_topology(name).devices) == chips


@needs_compiler
def test_report(config):
    topology = open_topology("v5e:2x2")
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
    text = table(report)
    for expected in ("train on v5e:2x2: 4 device(s)", "fits: 16,911 MB may be used"):
        assert expected in text
    assert re.search(r"all-reduce: \d+ with \d+ MB, not in the estimate\n", text)
    assert json.loads(json.dumps(report.to_json()))["cycles"] == report.cycles


@needs_compiler
def test_what_does_not_fit(config):
    topology = open_topology("v5e:2x2")
    config.mesh.data = 1
    config.data.crop_size = (8192, 8192)
    report = preflight.inspect(config, topology, num_classes=19)
    assert report.fits is False
    assert report.memory["free"] < 0
    assert "DOES NOT FIT" in table(report)


def test_bad_settings(config):
    topology = Topology("v5e:2x4", "tpu", tuple(jax.devices()), 2**34)
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


def test_a_teacher_is_checked_and_counted(tmp_path, quick):
    config = camvid.get_config()
    config.variant, config.data.crop_size = "tiny", (64, 64)
    config.distill.teacher = "camvid_w18_small_v1"
    topology = Topology("v5e:2x4", "tpu", tuple(jax.devices()), 2**34)
    with pytest.raises(ValueError, match="has 11 classes, the dataset 19"):
        preflight.inspect(config, topology, num_classes=19)
    lowered, sizes, _ = preflight._lower(config, sharding.make_mesh(), "train", 11)
    assert sizes["teacher"] == 4 * (1538891 + 7232)  # parameters and statistics
    *_, teacher = lowered.in_avals[0]
    assert sum(x.size * 4 for x in jax.tree.leaves(teacher)) == sizes["teacher"]


def test_suggestions_cost_more_and_more(config):
    topology = Topology("v5e:2x2", "tpu", (None,) * 4, 2**34)
    config.batch_size = 16
    found = [text.replace("--config.", "") for text, _ in preflight.suggestions(config, topology)]
    assert found == [
        "model.remat=norm",
        "model.remat=block",
        "model.remat=module",
        "model.remat=module mesh.space=2",
        "model.remat=module optimizer.gradient_accumulation=2",
        "model.remat=module optimizer.gradient_accumulation=4",
        "model.remat=module batch_size=8",
        "model.remat=module batch_size=4",
    ]


def test_the_first_suggestion_that_fits(config, monkeypatch):
    topology = Topology("v5e:2x2", "tpu", (None,) * 4, 2**34)
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


def test_classes_of_the_data(config, tmp_path):
    assert preflight.num_classes_of(config) == 19
    config.data.name = "folder"
    with pytest.raises(ValueError, match="--num_classes"):
        preflight.num_classes_of(config)
    config.data.class_file = str(tmp_path / "classes.json")
    (tmp_path / "classes.json").write_text('{"names": ["a", "b"]}')
    assert preflight.num_classes_of(config) == 2


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
