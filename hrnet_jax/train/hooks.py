"""Functions of the user's own for loss, optimizer and schedule, named in the configuration.

A name is an import path, "my_module:my_function". It is imported when a run is built from the
user's configuration, before anything is compiled, and nowhere else: checkpoints hold the name only,
and what reads them (prediction, evaluation, conversion, export) never imports it. Only `build` uses
this module.
"""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax


def load(key: str, path: str, *arguments: Any, **keywords: Any) -> Callable:
    """The function that a key of the configuration names.

    Modules are searched where Python does, and in the working directory.

    Args:
      key: of the configuration, for messages.
      path: "module:function".
      *arguments, **keywords: with which it will be called; values do not matter.

    Raises:
      ValueError: if it cannot be imported, is not there, cannot be called or not with these
        arguments.
    """
    what = f"config.{key}={path!r}"
    name, colon, attribute = path.partition(":")
    if not (name and colon and attribute.isidentifier()):
        raise ValueError(f"{what}: need 'module:function', such as 'my_module:my_function'")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(name)
    except Exception as error:  # the module is the user's: it may raise anything
        raise ValueError(
            f"{what}: the module {name!r} cannot be imported: {type(error).__name__}: {error}."
            " Start in the folder that holds it, or add that folder to PYTHONPATH"
        ) from error
    contents = vars(module)
    if attribute not in contents:
        known = [k for k, v in contents.items() if callable(v) and not k.startswith("_")]
        raise ValueError(f"{what}: {module.__file__} has no {attribute!r}; known: {sorted(known)}")
    function = contents[attribute]
    if not callable(function):
        raise ValueError(f"{what} is {type(function).__name__} {function!r}, not a function")
    _check_signature(what, function, arguments, keywords)
    return function


def load_loss(
    path: str, *, ignore_label: int, class_weights: Sequence[float] | None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss `function(logits, labels, ignore_label=..., class_weights=...)`.

    Raises:
      ValueError: as `load`.
    """
    options = {"ignore_label": ignore_label, "class_weights": class_weights}
    return functools.partial(load("loss.function", path, None, None, **options), **options)


def check_loss(
    path: str, loss: Callable, logits: jax.ShapeDtypeStruct, labels: jax.ShapeDtypeStruct
) -> None:
    """Checks that the loss from `load_loss` returns one number for arrays of these shapes.

    Raises:
      ValueError: if it does not, or raises an error.
    """
    _check_number("loss.function", path, loss, logits, labels)


def load_schedule(
    path: str, *, learning_rate: float, num_steps: int, steps_per_epoch: float
) -> optax.Schedule:
    """What `function(learning_rate, num_steps, steps_per_epoch)` returns: step -> learning rate.

    Raises:
      ValueError: as `load`, or if that is no such function.
    """
    key = "optimizer.schedule_function"
    arguments = (learning_rate, num_steps, steps_per_epoch)
    schedule = _call(key, path, load(key, path, *arguments), *arguments)
    if not callable(schedule):
        raise ValueError(
            f"config.{key}={path!r} returns {type(schedule).__name__}, not a function of the step"
        )
    _check_number(key, path, schedule, jax.ShapeDtypeStruct((), jnp.int32))
    return schedule


def load_optimizer(path: str, schedule: optax.Schedule) -> optax.GradientTransformation:
    """What `function(schedule)` returns: an optax optimizer with this learning rate in it.

    Raises:
      ValueError: as `load`, or if that is no optimizer.
    """
    key = "optimizer.function"
    optimizer = _call(key, path, load(key, path, schedule), schedule)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            f"config.{key}={path!r} returns {type(optimizer).__name__}, not an"
            " optax.GradientTransformation"
        )
    return optimizer


def _check_signature(what: str, function: Callable, arguments: tuple, keywords: dict) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some compiled functions do not tell
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        wanted = ", ".join(["..."] * len(arguments) + [f"{name}=..." for name in keywords])
        raise ValueError(
            f"{what} cannot be called as function({wanted}): {error}; it takes {signature}"
        ) from None


def _check_number(key: str, path: str, function: Callable, *shapes: Any) -> None:
    """Traces the function, without computing, and checks that it returns one number."""
    result = _call(key, path, functools.partial(jax.eval_shape, function), *shapes)
    shape, dtype = getattr(result, "shape", None), getattr(result, "dtype", None)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"config.{key}={path!r} gives {result}, not one floating-point number (a JAX scalar)"
        )


def _call(key: str, path: str, function: Callable, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:  # it is the user's: it may raise anything
        raise ValueError(
            f"config.{key}={path!r} fails when it is called: {type(error).__name__}: {error}"
        ) from error
