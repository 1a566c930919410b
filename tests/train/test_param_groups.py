"""Factors of the parts, and frozen parts: no gradient, no optimizer state, the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from hrnet_jax.configs import common
from hrnet_jax.models import create_model
from hrnet_jax.train import build, optimizers, param_groups
from hrnet_jax.train.config import check_config
from hrnet_jax.train.param_groups import ParameterGroups
from hrnet_jax.train.step import create_state, make_train_step

PARAMS = {
    "backbone": {"stem": {"conv": {"kernel": 2.0}, "bn": {"scale": 3.0, "bias": 4.0}}},
    "head": {"classifier": {"kernel": 5.0, "bias": 6.0}},
}
PARAMS = jax.tree.map(jnp.float32, PARAMS)


def _leaves(tree):
    return {jax.tree_util.keystr(k): float(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_factors_are_those_of_pytorchs_parameter_groups(name):
    """A group's learning rate is rate * factor, its decay decay * factor; by hand, two steps."""
    groups = ParameterGroups(
        multipliers={"backbone": 0.1, "head/classifier/bias": 2.0},
        decay_multipliers={"head": 3.0},
        decay_norm_and_bias=False,
    )
    optimizer = optimizers.make_optimizer(
        optax.constant_schedule(0.1), name=name, weight_decay=0.5, groups=groups
    )
    state, params = optimizer.init(PARAMS), PARAMS
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    for _ in range(2):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)

    def by_hand(weight, rate, decay):
        trace = 0.0
        for _ in range(2):
            if name == "adamw":  # with constant gradients of 1 each step is 1
                weight -= rate * (1 + decay * weight)
            else:
                trace = 0.9 * trace + 1 + decay * weight
                weight -= rate * trace
        return weight

    expected = {
        "backbone": {"stem": {"conv": {"kernel": by_hand(2, 0.01, 0.5)},
                              "bn": {"scale": by_hand(3, 0.01, 0), "bias": by_hand(4, 0.01, 0)}}},
        "head": {"classifier": {"kernel": by_hand(5, 0.1, 1.5), "bias": by_hand(6, 0.2, 0)}},
    }  # fmt: skip
    assert _leaves(params) == pytest.approx(_leaves(expected), rel=1e-6)


def test_what_is_frozen():
    groups = ParameterGroups(multipliers={"backbone": 0, "backbone/stage4": 0.1})
    assert groups.is_frozen("backbone/stem/conv1/bn/mean")
    assert not groups.is_frozen("backbone/stage4/x/kernel")
    assert groups.frozen_norm_parts() == {"backbone": True, "backbone/stage4": False}
    assert ParameterGroups(multipliers={"head": 0.5}).frozen_norm_parts() == {}
    names = ("a/bn/mean", "a/bn/scale", "a/conv/kernel")
    found = {kind: [ParameterGroups(frozen_norm=kind).is_frozen(n) for n in names]
             for kind in param_groups.FROZEN_NORM}  # fmt: skip
    assert found == {
        "none": [False, False, False],
        "statistics": [True, False, False],
        "all": [True, True, False],
    }
    assert ParameterGroups(frozen_norm="all").frozen_norm_parts() == {"": True}


def test_split_and_merge():
    groups = ParameterGroups(multipliers={"backbone/stem": 0})
    trained, frozen = groups.split(PARAMS)
    assert (list(trained), list(frozen)) == (["head"], ["backbone"])
    assert _leaves(param_groups.merge(trained, frozen)) == _leaves(PARAMS)
    assert param_groups.ALL_ALIKE.split(PARAMS) == (PARAMS, {})
    assert "11 parameters are trained" not in groups.describe(PARAMS)
    assert groups.describe(PARAMS) == (
        "2 parameters are trained, 3 are frozen; learning rate: backbone/stem x 0"
    )


def test_unknown_parts_and_nothing_left_are_refused(quick):
    config = common.get_config()
    config.variant = "tiny"
    model = build.make_model(config, 3)
    config.optimizer.multipliers = {"bakbone": 0.1}
    known = r"known: backbone, backbone/layer1, .*head/classifier, .*, such as \w+/\w+/\w+"
    with pytest.raises(ValueError, match=rf"'bakbone' \(did you mean 'backbone'\?\); {known}"):
        build.check_groups(config, model)
    config.optimizer.multipliers = {"": 0}
    with pytest.raises(ValueError, match="nothing is left to train"):
        build.check_groups(config, model)
    config.optimizer.multipliers = {}
    config.optimizer.decay_multipliers = {"head/clasifier": 0.1}
    with pytest.raises(ValueError, match=r"decay_multipliers names the unknown part"):
        build.check_groups(config, model)
    config.optimizer.decay_multipliers = {"head": True}
    with pytest.raises(ValueError, match=r"the factor of 'head' is True"):
        check_config(config)
    config.optimizer.decay_multipliers = {"head": -1.0}
    with pytest.raises(ValueError, match="must be a number, 0 or more"):
        check_config(config)


def _convolutions(jaxpr) -> int:
    """Convolutions of a program with all programs inside it."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "conv_general_dilated"
        count += sum(map(_convolutions, jaxprs_in_params(equation.params)))
    return count


def test_a_frozen_backbone_has_no_backward_pass_and_no_state(tiny):
    """All 3x3 convolutions are the backbone's: those of the forward pass remain, and no other.

    With rematerialization, which would compute the forward pass again.
    """
    groups = ParameterGroups(multipliers={"backbone": 0})
    frozen_norm = groups.frozen_norm_parts()
    model = create_model(tiny, 3, remat="module", frozen_norm=frozen_norm)
    optimizer = optimizers.make_optimizer(optax.constant_schedule(0.1), groups=groups)
    state = jax.eval_shape(lambda: create_state(model, optimizer, seed=0, ema=True))
    assert len(jax.tree.leaves(state.opt_state)) == 1 + len(jax.tree.leaves(state.params["head"]))
    batch = {
        "image": jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((1, 32, 32), jnp.uint8),
    }

    def loss(logits, labels):
        return jnp.mean(jnp.square(logits))

    schedule = optax.constant_schedule(0.1)
    step = make_train_step(model, optimizer, schedule, loss, seed=0, groups=groups)
    program = jax.make_jaxpr(step)(state, batch)
    forward = jax.make_jaxpr(
        lambda state, x: model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            x, train=True, mutable=["batch_stats"],
        )
    )(state, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))  # fmt: skip
    assert _convolutions(program.jaxpr) == _convolutions(forward.jaxpr) > 10


def test_checkpoints_without_groups_have_the_state_of_before():
    """Neither more arrays nor other names, for earlier checkpoints of both optimizers."""
    schedule = optax.constant_schedule(0.1)
    ours = optimizers.make_optimizer(schedule, name="adamw", weight_decay=0.1)
    assert jax.tree.structure(ours.init(PARAMS)) == jax.tree.structure(
        optax.adamw(schedule).init(PARAMS)
    )
    plain = optimizers.make_optimizer(schedule)
    grouped = optimizers.make_optimizer(schedule, groups=ParameterGroups({"head": 0.5}))
    np.testing.assert_equal(*(str(jax.tree.structure(o.init(PARAMS))) for o in (plain, grouped)))
