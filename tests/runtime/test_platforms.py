"""A platform that is asked for and not there is one line."""

import os
import subprocess
import sys

import pytest

LOAD = "import hrnet_jax; hrnet_jax.load('camvid_w18_small_v1')"


@pytest.mark.parametrize(
    ("platform", "arguments", "code"),
    [
        ("cuda", ["-c", LOAD], 1),
        ("tpu", ["train.py", "--config=configs/fake_data.py:runlocal", "--workdir=WORKDIR"], 2),
        ("cuda", ["-m", "hrnet_jax.tools.preflight", "--config=configs/fake_data.py",
                  "--topology=local"], 2),
    ],
)  # fmt: skip
def test_says_what_there_is(platform, arguments, code, tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": platform, "TPU_SKIP_MDS_QUERY": "1"}
    arguments = [a.replace("WORKDIR", str(tmp_path / "run")) for a in arguments]
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code
    message = done.stderr.strip().splitlines()[-1]
    assert f"JAX_PLATFORMS={platform}: no such device can be used" in message
    assert "This machine has cpu (cpu): unset JAX_PLATFORMS" in message
    assert code == 1 or done.stderr.strip() == message  # one line
