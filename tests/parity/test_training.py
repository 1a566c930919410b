"""Training in float64 against the official networks': losses, gradients, statistics, parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from compiling import FAST_COMPILE, fast_jit

import hrnet_jax
from hrnet_jax.models import normalize
from hrnet_jax.train import losses, optimizers
from hrnet_jax.train.step import create_state, make_train_step

_WEIGHT_DECAY = 5e-4
# Convolutions in float64 are plain loops on CPU: optimised, a step runs six times as fast, which
# pays where the network is small and the steps are many.
_OPTIMISED = FAST_COMPILE | {"xla_backend_optimization_level": 1}


def _batches(num_steps, size):
    """Images such that normalising gives the traced input, and labels with 255 for 19."""
    images = np.random.RandomState(2).standard_normal((num_steps, 2, 3, *size)).astype(np.float32)
    labels = np.random.RandomState(1).randint(0, 20, (num_steps, 2, *size))
    images = images.transpose(0, 1, 3, 4, 2).astype(np.float64)
    images = (images * normalize.STD + normalize.MEAN) * 255
    return [
        {"image": jnp.asarray(x), "label": jnp.asarray(np.where(y == 19, 255, y))}
        for x, y in zip(images, labels, strict=True)
    ]


def _official(model, params, batch_stats):
    return hrnet_jax.to_torch(model, {"params": params, "batch_stats": batch_stats})


@pytest.mark.parametrize(
    ("name", "bound", "options"),
    [("seg_w18_small_v1", 1e-9, _OPTIMISED), ("ocr_w18_align", 1e-8, FAST_COMPILE)],
)
def test_trace(name, bound, options):
    fixture = official.load(name)
    expected = fixture.arrays
    num_steps = len(expected["losses"])
    with jax.enable_x64(True):
        model, variables = hrnet_jax.from_torch(
            fixture.state_dict(), dtype=jnp.float64, param_dtype=jnp.float64
        )
        model = model.clone(dropout=0.0)
        schedule = optimizers.poly_schedule(0.01, num_steps)
        optimizer = optimizers.make_optimizer(schedule, momentum=0.9, weight_decay=_WEIGHT_DECAY)
        state = create_state(model, optimizer, seed=0, variables=variables)
        step = make_train_step(model, optimizer, schedule, losses.cross_entropy, seed=0)
        step = jax.jit(step, compiler_options=options)

        found = []
        for k, batch in enumerate(_batches(num_steps, (64, 128))):
            state, metrics = step(state, batch)
            found.append(float(metrics["loss"]))
            if k == 0:
                # Momentum starts as the decayed gradient.
                (momentum,) = (s.trace for s in state.opt_state if hasattr(s, "trace"))
                decayed = _official(model, momentum, state.batch_stats)
        evaluate = fast_jit(model.apply)
        logits = evaluate(
            {"params": state.params, "batch_stats": state.batch_stats},
            jnp.asarray(fixture.images, jnp.float64),
        )["logits"]
        final = _official(model, state.params, state.batch_stats)

    weights = fixture.state_dict()
    gradient_norms = [
        np.linalg.norm(decayed[n] - _WEIGHT_DECAY * weights[n]) for n in expected["grad_names"]
    ]
    final_norms = [np.linalg.norm(final[n]) for n in expected["final_names"]]
    np.testing.assert_allclose(found, expected["losses"], rtol=bound, atol=0)
    assert official.error(gradient_norms, expected["grad_norms"]) < bound
    assert official.error(final_norms, expected["final_norms"]) < 1e-8
    assert official.error(official.nchw(logits), expected["logits_after_training"]) < 1e-6
