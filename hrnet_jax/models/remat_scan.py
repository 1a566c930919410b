"""Rematerialization and loops over modules, as `Policy.remat` and `Policy.scan` choose.

The variables do not depend on the choice: each module has its own name. A loop stacks them where it
runs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from hrnet_jax.models.layers import KEPT, Policy

# Where each choice of Policy.remat cuts the network. What lies between two cuts is recomputed.
# "norm" also cuts at every convolution, see `layers.KEPT`. Stage 1 ("layer1") has no modules, so
# its blocks stand for them.
_CUTS = {
    "none": (),
    "norm": ("module", "layer1", "head"),
    "block": ("block", "layer1", "head"),
    "module": ("module", "layer1", "head"),
}
_LOOPS = {"none": (), "modules": ("module",), "blocks": ("module", "block", "layer1")}


def call(module: nn.Module, x: Any, level: str, *, train: bool) -> Any:
    """module(x, train=train); the backward pass recomputes what `module.policy` says.

    Args:
      module: a bound module with a field `policy`.
      x: its input.
      level: its kind: "block", "layer1" (a block of stage 1), "module" or "head".
      train: passed to the module.
    """
    cut = _cut(module.policy, level)
    if not train or cut is None or module.is_initializing():
        return module(x, train=train)
    return nn.remat(functools.partial(_call, train=True), **cut)(module, x)


def call_in_turn(
    parent: nn.Module,
    make: Callable[..., nn.Module],
    names: Sequence[str],
    x: Any,
    level: str,
    *,
    train: bool,
) -> Any:
    """Applies the submodules `names` of `parent` in sequence, as a loop where the policy says so.

    Args:
      parent: the module whose compact method calls this function.
      make: creates one of the submodules, which are all alike; takes `name` and `parent`.
      names: of the submodules.
      x: input of the first one; the output of each is the input of the next one.
      level: as for `call`.
      train: passed to the submodules.
    """
    policy = parent.policy
    own = [policy.below((*parent.path, name)) for name in names]
    # A loop's body is the same for all of them, so they have to be frozen alike.
    loops = level in _LOOPS[policy.scan] and len(names) > 1 and len(set(own)) == 1
    if not loops or parent.is_initializing():
        for name in names:
            x = call(make(name=name), x, level, train=train)
        return x
    module = make(parent=None).clone(policy=own[0])
    trees = [{k: tree[name] for k, tree in parent.variables.items()} for name in names]

    def body(x, variables):
        if not train:
            return module.apply(variables, x, train=False), {}
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    cut = _cut(policy, level)
    if train and cut is not None:
        # prevent_cse is needed outside of loops only.
        body = jax.checkpoint(body, prevent_cse=False, **cut)
    with jax.named_scope("_".join((names[0], "to", names[-1]))):
        x, updated = lax.scan(body, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))
    for k, name in enumerate(names if train else ()):
        value = jax.tree.map(lambda leaf, k=k: leaf[k], updated["batch_stats"])
        parent.put_variable("batch_stats", name, value)
    return x


def _call(module: nn.Module, x: Any, *, train: bool) -> Any:
    return module(x, train=train)


def _cut(policy: Policy, level: str) -> dict[str, Any] | None:
    """Arguments of `jax.checkpoint` for a part of the network; None keeps everything."""
    if level not in _CUTS[policy.remat]:
        return None
    # Statistics are small, and recomputing them costs a pass over the maps and an all-reduce.
    kept = KEPT if policy.remat == "norm" or level == "head" else ("statistics",)
    return {"policy": jax.checkpoint_policies.save_only_these_names(*kept)}
