"""Modules in a row: kept or computed again in training, written out or in a loop.

`Policy.remat` and `Policy.scan` choose. The variables are the same in any case, each module's under
its own name: what a loop needs stacked is stacked where it runs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from hrnet_jax.models.layers import KEPT, Policy

# Where each choice of Policy.remat cuts the network: what lies between two cuts is computed again.
# "norm" cuts at every convolution, too, see `layers.KEPT`; a stage 1 has blocks only.
_CUTS = {
    "none": (),
    "norm": ("module", "layer1", "head"),
    "block": ("block", "layer1", "head"),
    "module": ("module", "layer1", "head"),
}
_LOOPS = {"none": (), "modules": ("module",), "blocks": ("module", "block", "layer1")}


def call(module: nn.Module, x: Any, level: str, *, train: bool) -> Any:
    """module(x, train=train), of which the backward pass computes again what the policy says.

    Args:
      module: bound, with a field `policy`.
      x: its input.
      level: what it is: "block", "layer1" (a block of stage 1), "module" or "head".
      train: passed on.
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
    """The modules `names` of `parent` one after the other, as a loop where the policy says so.

    Args:
      parent: whose compact method this is called from.
      make: makes one of the modules, which are all alike; takes `name` and `parent`.
      names: of the modules.
      x: input of the first; each gives what the next one takes.
      level: as for `call`.
      train: passed on.
    """
    policy = parent.policy
    if level not in _LOOPS[policy.scan] or len(names) < 2 or parent.is_initializing():
        for name in names:
            x = call(make(name=name), x, level, train=train)
        return x
    module = make(parent=None)
    trees = [{k: tree[name] for k, tree in parent.variables.items()} for name in names]

    def body(x, variables):
        if not train:
            return module.apply(variables, x, train=False), {}
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    cut = _cut(policy, level)
    if train and cut is not None:
        # A loop keeps what is inside apart from what is outside by itself.
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
    """Arguments of `jax.checkpoint` for a part of the network; None: everything is kept."""
    if level not in _CUTS[policy.remat]:
        return None
    # Statistics are a few numbers, and cost a pass over the maps and a sum over all devices.
    kept = KEPT if policy.remat == "norm" or level == "head" else ("statistics",)
    return {"policy": jax.checkpoint_policies.save_only_these_names(*kept)}
