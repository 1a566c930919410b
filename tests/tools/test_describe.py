"""The tool describe, as it is started."""

import json
import os
import subprocess
import sys

import pytest

from hrnet_jax.models import cost, create_model


def start(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hrnet_jax.tools.describe", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    )


def test_describes_a_recipe_as_json():
    done = start("--config=configs/camvid.py:variant=w18_small_v1", "--size=64x96", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["variant"], found["num_classes"], found["size"]) == ("w18_small_v1", 11, [64, 96])
    expected = cost.part_costs(create_model("w18_small_v1", 11), (64, 96))
    assert list(found["parts"]) == list(cost.PARTS)
    assert {k: v["macs"] for k, v in found["parts"].items()} == {
        k: v.macs for k, v in expected.items()
    }
    assert found["total"]["parameters"] == 1_538_891
    for key, total in found["total"].items():
        assert total == sum(part[key] for part in found["parts"].values()), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --config=FILE.py or --checkpoint=RUN"),
        (("--checkpoint=camvid_w18_small_v1", "--size=12"), "--size=12: need HEIGHTxWIDTH"),
    ],
)
def test_refuses_with_one_line(arguments, message):
    done = start(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
