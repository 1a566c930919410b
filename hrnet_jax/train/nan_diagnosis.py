"""Names the module where a step's numbers stopped being finite.

The training step returns, besides its scalars, its new batch statistics and the squared norm of
each parameter's gradient. The step computes both in any case, so returning them adds no work. An
infinity or NaN reaches every BatchNorm after the module where it arises, so the first statistics
in the order of the forward pass that are not finite name that module. If all statistics are finite,
it arose in the last layers, in the loss or in the backward pass; there the gradients are searched
from the other end.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def describe(model: nn.Module, probe: dict[str, Any], state: Any) -> str:
    """Describes where the step's numbers stopped being finite.

    Args:
      model: from `create_model`.
      probe: "probe" of the metrics of the training step.
      state: a `TrainState` of the same structure; its values do not matter.
    """
    place = {path: number for number, path in enumerate(forward_order(model))}.__getitem__
    statistics = np.asarray(probe["batch_stats"])
    ends = np.cumsum([x.size for x in jax.tree.leaves(state.batch_stats)])
    sound = [bool(np.isfinite(part).all()) for part in np.split(statistics, ends[:-1])]
    bad = _bad_modules(state.batch_stats, sound)
    if bad:
        first = min(bad, key=place)
        return (
            f"the first module in the forward pass with statistics that are not finite is {first}"
            f" ({len(bad)} modules have such): its input or its convolution is not finite"
        )
    bad = _bad_modules(state.params, np.isfinite(np.asarray(probe["gradients"])).tolist())
    if bad:
        last = max(bad, key=place)
        return (
            "all statistics of the forward pass are finite; in the backward pass, the first module"
            f" whose gradient is not is {last} ({len(bad)} modules have such)"
        )
    return "all statistics and gradients are finite, only the loss is not"


def forward_order(model: nn.Module) -> list[str]:
    """Paths of all modules in the order of the forward pass."""
    paths: list[str] = []

    def note(call, args, kwargs, context):
        if context.module.scope is not None:  # `init` itself has none
            paths.append("/".join(context.module.path))
        return call(*args, **kwargs)

    # Traced, not computed. The parameters do not tell the order: they are sorted by name.
    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return list(dict.fromkeys(paths))


def _bad_modules(tree: Any, sound: list[bool]) -> set[str]:
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return {
        "/".join(str(key.key) for key in path[:-1])
        for path, fine in zip(paths, sound, strict=True)
        if not fine
    }
