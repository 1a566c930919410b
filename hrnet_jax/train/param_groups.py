"""Groups of parameters: learning rate and decay of each part of the network, and what is frozen.

A part is a prefix of a parameter's path, and the longest prefix wins: see `models.parts`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from flax import traverse_util

from hrnet_jax.models import parts

# "statistics": BatchNorm's running statistics stay and are used in training. "all": its scale and
# bias stay, too.
FROZEN_NORM = ("none", "statistics", "all")
_STATISTICS = ("mean", "var")


@dataclass(frozen=True)
class ParameterGroups:
    """How the parameters of each part are trained.

    A part with the factor 0 is frozen: its parameters have neither gradients nor optimizer state,
    and its BatchNorm works as in evaluation, as with `requires_grad = False` and `eval()` in
    PyTorch (mmsegmentation's `frozen_stages`).

    Attributes:
      multipliers: part -> factor of the learning rate; others have 1.
      decay_multipliers: part -> factor of the weight decay; others have 1. As with PyTorch's
        parameter groups, the decay of a part is also multiplied by its learning rate.
      decay_norm_and_bias: False: no weight decay on biases and BatchNorm's scales.
      frozen_norm: one of FROZEN_NORM.
    """

    multipliers: Mapping[str, float] = field(default_factory=dict)
    decay_multipliers: Mapping[str, float] = field(default_factory=dict)
    decay_norm_and_bias: bool = True
    frozen_norm: str = "none"

    def rate(self, path: str) -> float:
        """The factor of a parameter's learning rate."""
        return parts.value_at(path, self.multipliers, 1.0)

    def decay(self, path: str) -> float:
        """The factor of a parameter's weight decay."""
        if not self.decay_norm_and_bias and path.rpartition("/")[2] in ("bias", "scale"):
            return 0.0
        return parts.value_at(path, self.decay_multipliers, 1.0)

    def is_frozen(self, path: str) -> bool:
        """Whether a parameter or a running statistic stays as it is."""
        *module, name = path.split("/")
        if name in _STATISTICS and self.frozen_norm != "none":
            return True
        if module[-1:] == ["bn"] and self.frozen_norm == "all":
            return True
        return self.rate(path) == 0

    def frozen_norm_parts(self) -> dict[str, bool]:
        """The argument `frozen_norm` of `create_model`."""
        if self.frozen_norm != "none":
            return {"": True}
        frozen = {part: factor == 0 for part, factor in self.multipliers.items()}
        return frozen if any(frozen.values()) else {}

    def split(self, tree: Any) -> tuple[Any, Any]:
        """A tree of parameters or statistics as two: what is trained, and what is frozen."""
        flat = traverse_util.flatten_dict(tree, sep="/")
        frozen = {path: leaf for path, leaf in flat.items() if self.is_frozen(path)}
        if not frozen:
            return tree, {}
        trained = {path: leaf for path, leaf in flat.items() if path not in frozen}
        return (
            traverse_util.unflatten_dict(trained, sep="/"),
            traverse_util.unflatten_dict(frozen, sep="/"),
        )

    def check(self, params: Any) -> None:
        """Checks the names of parts against a network's parameters; shapes will do.

        Raises:
          ValueError: for a part that does not exist, or if nothing is left to train.
        """
        paths = list(traverse_util.flatten_dict(params, sep="/"))
        for key, values in (
            ("multipliers", self.multipliers),
            ("decay_multipliers", self.decay_multipliers),
        ):
            for part in values:
                if not any(parts.contains(part, path) for path in paths):
                    raise ValueError(_unknown_part(key, part, paths))
        if all(map(self.is_frozen, paths)):
            raise ValueError(
                f"config.optimizer.multipliers={dict(self.multipliers)} freezes all parameters:"
                " nothing is left to train; give some part a factor above 0"
            )

    def describe(self, params: Any) -> str:
        """What the groups mean for these parameters, as text for the log; "" if all are alike."""
        if self == ALL_ALIKE:
            return ""
        trained, frozen = (sum(x.size for x in jax.tree.leaves(t)) for t in self.split(params))
        lines = [f"{trained:,} parameters are trained, {frozen:,} are frozen"]
        for name, values in (
            ("learning rate", self.multipliers),
            ("weight decay", self.decay_multipliers),
        ):
            if values:
                factors = [f"{part or 'all'} x {value:g}" for part, value in values.items()]
                lines.append(f"{name}: {', '.join(factors)}")
        if not self.decay_norm_and_bias:
            lines.append("weight decay: none on biases and normalization")
        if self.frozen_norm != "none":
            lines.append(f"normalization: frozen ({self.frozen_norm})")
        return "; ".join(lines)


ALL_ALIKE = ParameterGroups()


def merge(trained: Any, frozen: Any) -> Any:
    """The inverse of `ParameterGroups.split`."""
    if not frozen:
        return trained
    flat = [traverse_util.flatten_dict(tree, sep="/") for tree in (trained, frozen)]
    return traverse_util.unflatten_dict(flat[0] | flat[1], sep="/")


def with_groups(
    optimizer: optax.GradientTransformation, groups: ParameterGroups
) -> optax.GradientTransformation:
    """The optimizer with the learning rate of each part, and without state for frozen ones.

    Its `init` takes all parameters or the trained ones; its `update` takes gradients and parameters
    of the trained ones.
    """
    if not groups.multipliers and groups.frozen_norm == "none":
        return optimizer

    def init(params):
        return optimizer.init(groups.split(params)[0])

    def update(gradients, state, params=None):
        updates, state = optimizer.update(gradients, state, params)
        return map_with_paths(_scaled, groups.rate, updates), state

    return optax.GradientTransformation(init, update)


def map_with_paths(function, factor_of, *trees: Any) -> Any:
    """function(factor, *leaves) for the leaves of nested dictionaries of equal structure.

    Args:
      function: of a factor and the leaves.
      factor_of: path -> factor.
      *trees: as the network's parameters.
    """
    flat = [traverse_util.flatten_dict(tree, sep="/") for tree in trees]
    mapped = {path: function(factor_of(path), *(tree[path] for tree in flat)) for path in flat[0]}
    return traverse_util.unflatten_dict(mapped, sep="/")


def _scaled(factor: float, update: jax.Array) -> jax.Array:
    return update if factor == 1 else factor * update


def _unknown_part(key: str, part: str, paths: list[str]) -> str:
    names = [path.split("/") for path in paths]
    known = sorted({"/".join(name[:depth]) for name in names for depth in (1, 2)})
    near = difflib.get_close_matches(part, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    deeper = next("/".join(name[:3]) for name in names if len(name) > 3)
    return (
        f"config.optimizer.{key} names the unknown part {part!r}{hint}; known: {', '.join(known)},"
        f" and parts of them, such as {deeper}"
    )
