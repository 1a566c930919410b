"""The steps lower for GPU and TPU on any machine: nothing that only CPUs can do slips in."""

import jax
import jax.numpy as jnp
import pytest

from hrnet_jax.models import create_model
from hrnet_jax.preflight.compile import make_evaluation_step
from hrnet_jax.train import losses, optimizers
from hrnet_jax.train.step import create_state, make_train_step

PLATFORMS = ("cuda", "tpu")
BATCH = {
    "image": jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct((2, 64, 64), jnp.uint8),
}


def _abstract(model, optimizer):
    return jax.eval_shape(lambda: create_state(model, optimizer, seed=0))


@pytest.mark.parametrize(
    ("head", "scan", "remat"), [("segmentation", "modules", "norm"), ("ocr", "none", "none")]
)
def test_training_step(tiny, head, scan, remat):
    model = create_model(tiny, 5, head, dtype=jnp.bfloat16, scan=scan, remat=remat)
    schedule = optimizers.poly_schedule(0.1, 100)
    optimizer = optimizers.make_optimizer(schedule)
    step = make_train_step(
        model,
        optimizer,
        schedule,
        losses.ohem_cross_entropy,
        seed=0,
        gradient_accumulation=2,
        ema_decay=0.9,
    )
    state = _abstract(model, optimizer)
    exported = jax.export.export(jax.jit(step), platforms=PLATFORMS)(state, BATCH)
    assert exported.platforms == PLATFORMS
    assert "stablehlo.convolution" in exported.mlir_module()


def test_evaluation_step(tiny):
    model = create_model(tiny, 5)
    state = _abstract(model, optimizers.make_optimizer(optimizers.poly_schedule(0.1, 100)))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    step = jax.jit(make_evaluation_step(model))
    for platform in PLATFORMS:
        exported = jax.export.export(step, platforms=[platform])(variables, BATCH)
        # Counting by scatter is for CPUs: colliding indices are slow elsewhere.
        assert "stablehlo.scatter" not in exported.mlir_module()
    exported = jax.export.export(step, platforms=["cpu"])(variables, BATCH)
    assert "stablehlo.scatter" in exported.mlir_module()
