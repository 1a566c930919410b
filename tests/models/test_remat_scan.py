"""Loops and rematerialisation: the same variables and results, less compiled and less kept."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from jax.ad_checkpoint import print_saved_residuals

from hrnet_jax.models.backbone import Layer1, Stage
from hrnet_jax.models.layers import Policy


def _stage(remat="none", scan="none", single_output=False):
    policy = Policy(remat=remat, scan=scan)
    return Stage((4, 8), 3, 2, "bilinear", False, single_output, policy)


def _streams():
    keys = jax.random.split(jax.random.key(1))
    return tuple(
        jax.random.normal(key, (2, 16 // 2**k, 16 // 2**k, 4 * 2**k)) for k, key in enumerate(keys)
    )


def _loss(module, variables, inputs):
    def loss(params):
        outputs, updated = module.apply(
            {**variables, "params": params}, inputs, train=True, mutable=["batch_stats"]
        )
        return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(outputs)), updated

    return loss


def _trained(module, variables, inputs):
    loss = _loss(module, variables, inputs)
    return fast_jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def _gradient(loss, variables):
    """The program of the gradient, as text."""
    return str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(variables["params"]))


def _same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=2e-6 * largest),
        actual,
        expected,
    )


@pytest.fixture(scope="module")
def plain():
    """Variables of a stage, and its loss, statistics and gradients."""
    module, streams = _stage(), _streams()
    variables = module.init(jax.random.key(0), streams, train=False)
    return variables, _trained(module, variables, streams)


@pytest.mark.parametrize(
    ("remat", "scan"),
    [("norm", "none"), ("block", "modules"), ("module", "blocks")],
)
def test_training_is_the_same(plain, remat, scan):
    variables, expected = plain
    module = _stage(remat, scan)
    again = module.init(jax.random.key(0), _streams(), train=False)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    _same(_trained(module, variables, _streams()), expected)


def test_evaluation_is_the_same_with_a_last_module_of_its_own():
    modules = [_stage(scan=scan, single_output=True) for scan in ("none", "blocks")]
    variables = modules[0].init(jax.random.key(0), _streams(), train=False)
    plain, looped = (fast_jit(m.apply, static_argnames="train") for m in modules)
    expected = plain(variables, _streams(), train=False)
    assert len(expected) == 1
    _same(looped(variables, _streams(), train=False), expected)


def test_stage_1_as_a_loop():
    x = jax.random.normal(jax.random.key(2), (1, 8, 8, 6))
    modules = [Layer1(2, 3, Policy(scan=scan, remat="block")) for scan in ("none", "blocks")]
    variables = modules[0].init(jax.random.key(0), x, train=False)
    expected = _trained(modules[0], variables, x)
    _same(_trained(modules[1], variables, x), expected)


def test_loops_leave_less_to_compile(plain):
    def convolutions(scan):
        loss = _loss(_stage(scan=scan), plain[0], _streams())
        return _gradient(loss, plain[0]).count("conv_g")

    written_out, modules, blocks = (convolutions(scan) for scan in ("none", "modules", "blocks"))
    assert blocks < modules < 0.4 * written_out  # of three modules


@pytest.mark.parametrize("remat", ["norm", "block", "module"])
def test_statistics_are_never_computed_again(plain, remat):
    """Each is a pass over the maps and, on a mesh, a sum over all devices."""

    def sums(remat):
        loss = _loss(_stage(remat), plain[0], _streams())
        return len(re.findall(r"reduce_sum\[\s*axes=\(0, 1, 2\)", _gradient(loss, plain[0])))

    # Of 30 normalizations, two each. Those of the backward pass are inside calls of `linear_call`,
    # which the text does not spell out.
    assert sums(remat) == sums("none") == 60


def test_more_rematerialisation_keeps_less(plain, capsys):
    kept = []
    for remat in ("none", "norm", "block", "module"):
        loss = _loss(_stage(remat), plain[0], _streams())
        print_saved_residuals(lambda p, loss=loss: loss(p)[0], plain[0]["params"])
        lines = capsys.readouterr().out.splitlines()
        # Maps; parameters and other arguments are there anyhow.
        kept.append(sum("f32[2," in line and "argument" not in line for line in lines))
    assert kept == sorted(kept, reverse=True)
    assert kept[1] < 0.8 * kept[0]
    assert kept[3] < 0.2 * kept[0]
