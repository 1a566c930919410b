"""Fits a network found in a file to a layout and a variant, and checks that nothing is missing."""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from hrnet_jax.models import VARIANTS, Variant, get_variant
from hrnet_jax.pytorch import networks
from hrnet_jax.pytorch.layouts import LAYOUTS, Layout, Leaf, Unit, first_names, key_shapes, leaves
from hrnet_jax.pytorch.networks import Network
from hrnet_jax.pytorch.report import name_some
from hrnet_jax.pytorch.unpickle import Placeholder, Tensor

# The end of the keys of BatchNorm's counters.
COUNTER = ".num_batches_tracked"
# What PyTorch's own wrappers put in front of keys.
_WRAPPERS = r"^(module\.|model\.|_orig_mod\.)+"


@dataclasses.dataclass(frozen=True)
class Fit:
    """A network of a file as one of a layout and a variant.

    `arrays` and `counters` (of BatchNorm) have the layout's own keys, without `prefix`.
    """

    network: Network
    layout: Layout
    variant: Variant
    prefix: str
    arrays: Mapping[str, Tensor]
    counters: Mapping[str, Tensor]


def fit_network(network: Network, variant: str | Variant | None) -> Fit | None:
    """The layout and variant that fit best; None if less than half of the backbone is there."""
    variants = VARIANTS.values() if variant is None else (get_variant(variant),)
    # Variants that differ in width only have the same keys.
    structures = {(v.layer1_blocks, v.num_modules, v.num_blocks): v for v in variants}
    names = {k for k in network.tensors if not k.endswith(COUNTER)}

    def inside(prefix: str) -> set[str]:
        return {k.removeprefix(prefix) for k in names if k.startswith(prefix)}

    keys = {prefix: inside(prefix) for _, prefix in network.fits}

    def difference(candidate) -> int:
        (layout, prefix), v = candidate
        common = len(keys[prefix] & key_shapes(layout, v).keys())
        return len(names) + len(key_shapes(layout, v)) - 2 * common

    (layout, prefix), structure = min(
        ((fit, v) for fit in network.fits for v in structures.values()), key=difference
    )
    expected = key_shapes(layout, structure).keys()
    if len(expected & keys[prefix]) < len(expected) / 2:
        return None
    tensors = {
        k.removeprefix(prefix): t for k, t in network.tensors.items() if k.startswith(prefix)
    }

    def mismatches(v: Variant) -> int:
        shapes = key_shapes(layout, v)
        return sum(k in tensors and tensors[k].shape != shape for k, shape in shapes.items())

    same = [
        v
        for v in variants
        if (v.layer1_blocks, v.num_modules, v.num_blocks)
        == (structure.layer1_blocks, structure.num_modules, structure.num_blocks)
    ]
    counters = {k: t for k, t in tensors.items() if k.endswith(COUNTER)}
    arrays = {k: t for k, t in tensors.items() if k not in counters}
    return Fit(network, layout, min(same, key=mismatches), prefix, arrays, counters)


def explain_unknown(contents: Any, variant: str | Variant | None) -> str:
    """Why there is no network in the contents of a file."""
    sets = [
        {k for k, v in entries.items() if networks.as_tensor(v) is not None}
        for _, entries in networks.mappings(contents)
    ]
    keys = max(sets, key=len, default=set())
    if not keys:
        what = networks.kind_name(contents)
        held = contents.items() if isinstance(contents, Mapping) else ()
        strangers = [f"{k!r} is a {v.name}" for k, v in held if isinstance(v, Placeholder)]
        what += f" ({', '.join(strangers[:5])}; nothing was executed)" if strangers else ""
        return (
            f"holds a {what} instead of a state dictionary; save the state_dict:"
            " torch.save(model.state_dict(), path)"
        )
    variants = VARIANTS.values() if variant is None else (get_variant(variant),)
    common, layout, near = max(
        ((len(keys & key_shapes(x, v).keys()), x, v) for x in LAYOUTS for v in variants),
        key=lambda found: found[0],
    )
    known = sorted({f"{x.name} {x.head}" for x in LAYOUTS})
    return (
        f"not an HRNet of a known layout: of {len(keys)} arrays, among them "
        f"{name_some(sorted(map(str, keys))[:5])}, {common} fit the nearest one "
        f"({layout.name} {layout.head}, like {near.name}). Known layouts: {known}"
    )


def with_statistics(fit: Fit, raw: list[Fit]) -> tuple[Fit, list[str]]:
    """Averages of parameters alone, with the running statistics of the raw weights."""
    statistics = {
        f"{u.bn}.{name}" for u in fit.layout.units(fit.variant, 0) if u.bn for name in u.statistics
    }
    if len(raw) != 1 or statistics & fit.arrays.keys() or not statistics <= raw[0].arrays.keys():
        return fit, []
    arrays = {k: (raw[0] if k in statistics else fit).arrays.get(k) for k in raw[0].arrays}
    if any(tensor is None for tensor in arrays.values()):
        return fit, []
    note = f"the averages lack running statistics; those of {raw[0].network.key!r} are taken"
    return dataclasses.replace(fit, arrays=arrays, counters=raw[0].counters), [note]


def without_head(fit: Fit) -> Fit:
    """The fit, as the bare backbone if its head is none of the known ones, whole and alone."""
    try:
        check_complete(fit)
    except ValueError:
        inner = fit.network.prefix.removeprefix(fit.prefix)
        name = "paddleseg" if fit.layout.name == "paddleseg" else "official"
        (layout,) = (x for x in LAYOUTS if (x.name, x.head) == (name, "features"))
        core = {leaf.key for leaf in leaves(layout.units(fit.variant, 0))}
        first = {key.partition(".")[0] for key in core}

        def kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            bare = {k.removeprefix(inner): t for k, t in tensors.items() if k.startswith(inner)}
            return {k: t for k, t in bare.items() if k.partition(".")[0] in first}

        return dataclasses.replace(
            fit,
            layout=layout,
            prefix=fit.network.prefix,
            arrays=kept(fit.arrays),
            counters=kept(fit.counters),
        )
    return fit


def expected_leaves(fit: Fit) -> tuple[list[Unit], list[Leaf]]:
    units = fit.layout.units(fit.variant, count_classes(fit))
    return units, leaves(units)


def count_classes(fit: Fit) -> int:
    """By the majority of the classifiers' arrays, so that a single wrong one can be named."""
    arrays = fit.arrays
    sizes = collections.Counter(
        arrays[leaf.key].shape[0]
        for leaf in leaves(fit.layout.units(fit.variant, 0))
        if leaf.shape[0] == 0 and leaf.key in arrays and arrays[leaf.key].shape
    )
    return sizes.most_common(1)[0][0] if sizes else 0


def _is_inside(key: str) -> bool:
    """Whether an unexpected key belongs to the network rather than to something beside it."""
    first = key.partition(".")[0]
    bare = re.sub(_WRAPPERS, "", key)
    return (
        first in first_names()
        or re.fullmatch(r"(conv|bn|layer|stage|transition)\d+", first) is not None
        or (bare != key and bare.partition(".")[0] in first_names())
    )


def check_complete(fit: Fit) -> None:
    """Refuses any difference between the expected and the found arrays, by name."""
    units, expected = expected_leaves(fit)
    arrays, counters = fit.arrays, fit.counters
    shapes = {leaf.key: leaf.shape for leaf in expected}
    # PyTorch 0.4 and PaddlePaddle have no counters: all are there or none.
    wanted = [f"{u.bn}{COUNTER}" for u in units if u.bn] if counters else []
    missing = [k for k in shapes if k not in arrays] + [k for k in wanted if k not in counters]
    extra = [k for k in arrays if k not in shapes] + sorted(set(counters) - set(wanted))
    extra = [k for k in extra if _is_inside(k)]
    misshaped = [
        f"{k}: {arrays[k].shape} instead of {shape}"
        for k, shape in shapes.items()
        if k in arrays and arrays[k].shape != shape
    ]
    for k in extra:
        bare = re.sub(_WRAPPERS, "", k)
        if bare != k and bare in arrays:
            raise ValueError(f"{bare!r} and {k!r} are the same parameter")
    entries = fit.network.entries
    for k in missing:
        if fit.prefix + k in entries:
            kind = networks.kind_name(entries[fit.prefix + k])
            raise ValueError(f"{fit.prefix + k!r} is a {kind}, not a tensor; nothing was executed")
    problems = [
        f"{kind}: {name_some(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", extra), ("misshaped", misshaped))
        if keys
    ]
    if problems:
        what = f"HRNet {fit.variant.name}, {fit.layout.head} head"
        raise ValueError(f"does not fit {what}; {'; '.join(problems)}")
