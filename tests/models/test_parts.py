"""Parts of a network by prefix, and BatchNorm that is frozen in some of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from hrnet_jax.models import parts
from hrnet_jax.models.backbone import Branch
from hrnet_jax.models.layers import Policy


def test_the_longest_prefix_wins_and_names_are_whole():
    values = {"": 1, "backbone": 2, "backbone/stage2": 3}
    found = {path: parts.value_at(path, values, 0) for path in
             ("head/x", "backbone", "backbone/stem/x", "backbone/stage2/x", "backbone/stage23",
              "backbones")}  # fmt: skip
    assert list(found.values()) == [1, 2, 2, 3, 2, 1]
    assert parts.value_at("head", {"backbone": 2}, 0) == 0


def test_parts_as_seen_from_inside_a_module():
    values = {"backbone": False, "backbone/stage2": True, "backbone/stage2/m/a": False, "head": 0}
    assert parts.below("backbone/stage2", values) == {"": True, "m/a": False}
    assert parts.below("backbone/stage2/m", values) == {"": True, "a": False}
    assert parts.below("neck", values) == {}
    assert parts.below("neck", {"": True}) == {"": True}


class Net(nn.Module):
    policy: Policy

    @nn.compact
    def __call__(self, x, *, train):
        return Branch(4, 3, self.policy, name="branch")(x, train=train)


FIRST = "branch/block0"


@pytest.mark.parametrize(
    ("frozen", "kept"),
    [
        ({"branch": True}, {"block0", "block1", "block2"}),
        ({FIRST: True}, {"block0"}),
        ({"": True, FIRST: False}, {"block1", "block2"}),
        ({f"{FIRST}/conv1/conv": True}, set()),
    ],
)
def test_frozen_normalization_is_that_of_evaluation(frozen, kept):
    """In loops with rematerialization, too, and where only some blocks of a loop are frozen."""
    images = jnp.asarray(np.random.RandomState(0).randn(2, 8, 8, 4), jnp.float32)
    variables = Net(Policy()).init(jax.random.key(0), images, train=False)
    stats = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": stats}
    results = []
    for scan, remat in (("none", "none"), ("blocks", "block")):
        net = Net(Policy(remat=remat, scan=scan, frozen_norm=tuple(frozen.items())))

        def loss(params, net=net):
            y, updated = net.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(y)), (y, updated["batch_stats"]["branch"])

        gradients, (y, new) = fast_jit(jax.grad(loss, has_aux=True))(variables["params"])
        results.append((y, new, gradients))
        for block, old in stats["branch"].items():
            same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (old, new[block])),
                                                         strict=True)]  # fmt: skip
            assert all(same) if block in kept else not any(same), block
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), *results)
    if len(kept) == 3:
        evaluated = Net(Policy()).apply(variables, images, train=False)
        np.testing.assert_allclose(results[0][0], evaluated, rtol=1e-5, atol=1e-5)
