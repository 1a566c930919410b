"""Linear functions with a transpose of their own, for every kind of differentiation.

`jax.custom_vjp` does not allow forward mode (`jax.jvp`, `jax.linearize`, Hessian-vector products).
With `jax.custom_jvp` alone the transpose is JAX's own, which keeps other arrays for the backward
pass and is slower. `jax.custom_derivatives.linear_call` has both, but does not work under `vmap`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Function = Callable[[tuple[jax.Array, ...], tuple[jax.Array, ...]], tuple[jax.Array, ...]]


def linear_call(
    function: Function,
    transpose: Function,
    residuals: tuple[jax.Array, ...],
    operands: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    """function(residuals, operands), which is linear in `operands`.

    The backward pass keeps `residuals` and nothing else.

    Args:
      function: (residuals, operands) -> results.
      transpose: (residuals, cotangents of the results) -> cotangents of the operands.
      residuals: what else the two depend on, in any way that can be differentiated.
      operands: floating-point arrays.
    """
    results = _linear.bind(
        *residuals, *operands, function=function, transpose=transpose, split=len(residuals)
    )
    return tuple(results)


_linear = Primitive("linear_with_transpose")
_linear.multiple_results = True


def _call(*arrays: jax.Array, function: Function, transpose: Function, split: int) -> Any:
    return function(arrays[:split], arrays[split:])


def _abstract(*avals: Any, **params: Any) -> Any:
    arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for a in avals]
    return jax.make_jaxpr(lambda *arrays: _call(*arrays, **params))(*arrays).out_avals


def _jvp(primals: Any, tangents: Any, *, function: Function, transpose: Function, split: int):
    residuals, operands = tuple(primals[:split]), tuple(primals[split:])
    results = linear_call(function, transpose, residuals, operands)
    changes = tuple(ad.instantiate_zeros(t) for t in tangents[split:])
    if all(isinstance(t, ad.Zero) for t in tangents[:split]):
        return results, linear_call(function, transpose, residuals, changes)
    # The residuals change, too, as in second derivatives.
    of_residuals = tuple(ad.instantiate_zeros(t) for t in tangents[:split])
    _, out = jax.jvp(lambda r: function(r, operands), (residuals,), (of_residuals,))
    if not all(isinstance(t, ad.Zero) for t in tangents[split:]):
        own = linear_call(function, transpose, residuals, changes)
        out = tuple(map(jnp.add, out, own))
    return results, out


def _transpose(cotangents: Any, *arrays: Any, function: Function, transpose: Function, split: int):
    residuals = arrays[:split]
    cotangents = tuple(ad.instantiate_zeros(c) for c in cotangents)
    # With the arguments exchanged this is linear, too.
    return [None] * split + list(linear_call(transpose, function, residuals, cotangents))


def _batch(arrays: Any, axes: Any, *, function: Function, transpose: Function, split: int):
    size = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
    residuals, of_residuals = tuple(arrays[:split]), tuple(axes[:split])
    operands = tuple(
        batching.bdim_at_front(a, axis, size)
        for a, axis in zip(arrays[split:], axes[split:], strict=True)
    )
    mapped = [jax.vmap(f, in_axes=(of_residuals, 0)) for f in (function, transpose)]
    results = linear_call(mapped[0], mapped[1], residuals, operands)
    return results, (0,) * len(results)


_linear.def_impl(_call)
_linear.def_abstract_eval(_abstract)
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_call, multiple_results=True))
