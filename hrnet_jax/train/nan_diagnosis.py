"""Where numbers went wrong: names the first module of a step that was not finite.

The training step returns, besides its scalars, its new batch statistics and the squared norm of
each parameter's gradient. All of that is computed anyway, so looking costs nothing until there is
something to see. An infinity or NaN travels through every BatchNorm behind it, so the first bad
statistics in the order of the forward pass tell where it arose. If all are sound it arose in the
last layers, in the loss or on the way back, where the gradients tell the same from the other end.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def describe(model: nn.Module, probe: dict[str, Any], state: Any) -> str:
    """A sentence about where the step's numbers stopped being finite.

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
            f" ({len(bad)} modules have such): what goes into it is the culprit"
        )
    bad = _bad_modules(state.params, np.isfinite(np.asarray(probe["gradients"])).tolist())
    if bad:
        last = max(bad, key=place)
        return (
            "all statistics of the forward pass are finite; the first module on the way back whose"
            f" gradient is not is {last} ({len(bad)} modules have such)"
        )
    return "every statistic and every parameter's gradient is finite by itself: the loss is not"


def forward_order(model: nn.Module) -> list[str]:
    """Paths of all modules, as the forward pass comes to them."""
    paths: list[str] = []

    def note(call, args, kwargs, context):
        if context.module.scope is not None:  # as it is in `init` itself
            paths.append("/".join(context.module.path))
        return call(*args, **kwargs)

    # Only traced. Dictionaries of parameters are sorted by name, they do not tell the order.
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
