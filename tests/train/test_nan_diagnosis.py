"""The first module that was not finite is named, from either end of the network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from hrnet_jax.models import create_model
from hrnet_jax.models.layers import ConvBN, Policy
from hrnet_jax.train import losses, nan_diagnosis, optimizers
from hrnet_jax.train.step import create_state, make_train_step

SCHEDULE = optimizers.poly_schedule(0.1, 100)
OPTIMIZER = optimizers.make_optimizer(SCHEDULE)


class Small(nn.Module):
    """Names in another order than the modules have."""

    policy: Policy = Policy()
    align_corners: bool = False

    @nn.compact
    def __call__(self, images, *, train=False):
        x = images.astype(self.policy.dtype)
        for name in ("second", "first"):
            x = ConvBN(4, 3, 2, policy=self.policy, name=name)(x, train=train)
        x = nn.Conv(3, (1, 1), name="classifier")(x)
        return {"logits": x}


@pytest.fixture(scope="module")
def network():
    model = Small()
    state = jax.jit(lambda: create_state(model, OPTIMIZER, seed=0))()
    steps = {
        skip: fast_jit(
            make_train_step(
                model, OPTIMIZER, SCHEDULE, losses.cross_entropy, seed=0, skip_nonfinite=skip
            ),
        )
        for skip in (False, True)
    }
    return model, state, steps


def _batch(label=1):
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    return {"image": image, "label": np.full((2, 16, 16), label, np.uint8)}


def test_modules_come_in_the_order_of_the_forward_pass(tiny):
    order = nan_diagnosis.forward_order(create_model(tiny, 3))
    stages = ["stem", "layer1", "transition1", "stage2", "transition2", "stage3", "transition3"]
    first = [next(i for i, p in enumerate(order) if f"backbone/{s}/" in p) for s in stages]
    assert first == sorted(first)
    assert order.index("backbone/stem/conv1/bn") < order.index("backbone/stem/conv2/bn")
    assert order.index("head/hidden/bn") < order.index("head/classifier")


@pytest.mark.parametrize("module", ["first", "second"])
def test_bad_weights_are_found_by_their_statistics(network, module):
    model, state, steps = network
    conv = state.params[module]["conv"]
    conv = conv | {"kernel": conv["kernel"].at[0, 0, 0, 0].set(jnp.nan)}
    params = state.params | {module: state.params[module] | {"conv": conv}}
    _, metrics = steps[False](state.replace(params=params), _batch())
    text = nan_diagnosis.describe(model, metrics["probe"], state)
    assert f"statistics that are not finite is {module}/bn (" in text


def test_a_bad_label_is_found_from_the_other_end(network):
    model, state, steps = network
    new, metrics = steps[False](state, _batch(label=99))
    assert np.isnan(metrics["loss"])
    text = nan_diagnosis.describe(model, metrics["probe"], new)
    assert "all statistics of the forward pass are finite" in text
    assert "whose gradient is not is classifier (" in text


def test_a_skipped_step_changes_nothing_but_the_counters(network):
    _, state, steps = network
    new, _ = steps[True](state, _batch(label=99))
    assert int(new.step) == 1
    for name in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(state, name))
    for after, before in zip(*(jax.tree.leaves(s.opt_state) for s in (new, state)), strict=True):
        expected = before if jnp.issubdtype(before.dtype, jnp.inexact) else before + 1
        np.testing.assert_array_equal(after, expected)


def test_skipping_changes_no_other_step(network):
    _, state, steps = network
    (plain, _), (skipping, _) = (steps[skip](state, _batch()) for skip in (False, True))
    jax.tree.map(np.testing.assert_array_equal, plain, skipping)
