"""Training in float64 against the official networks': losses, gradients, statistics, parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from compiling import FAST_COMPILE, fast_jit

import hrnet_jax
from hrnet_jax.configs.cityscapes import CLASS_WEIGHTS
from hrnet_jax.models import normalize
from hrnet_jax.train import losses, optimizers
from hrnet_jax.train.step import create_state, make_train_step

_WEIGHT_DECAY = 5e-4
_THRESHOLD = 0.05
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


def _float64(name):
    """The network of a fixture without dropout, and its weights."""
    model, variables = hrnet_jax.from_torch(
        official.load(name).state_dict(), dtype=jnp.float64, param_dtype=jnp.float64
    )
    return model.clone(dropout=0.0), variables


def _optimizer(schedule):
    return optimizers.make_optimizer(schedule, momentum=0.9, weight_decay=_WEIGHT_DECAY)


def _take_steps(step, state, num_steps):
    """The losses and norms of the gradient of each step, the first and the last state."""
    found, norms, first = [], [], None
    for batch in _batches(num_steps, (64, 128)):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
        first = first or state
    return found, norms, first, state


def _check(name, model, run, bound):
    """Losses, gradients of the first step, parameters and statistics, outputs after training."""
    fixture = official.load(name)
    expected, weights = fixture.arrays, fixture.state_dict()
    found, _, first, state = run
    # Momentum starts as the decayed gradient.
    (momentum,) = (s.trace for s in first.opt_state if hasattr(s, "trace"))
    decayed = _official(model, momentum, first.batch_stats)
    logits = fast_jit(model.apply)(
        {"params": state.params, "batch_stats": state.batch_stats},
        jnp.asarray(fixture.images, jnp.float64),
    )["logits"]
    final = _official(model, state.params, state.batch_stats)
    gradient_norms = [
        np.linalg.norm(decayed[n] - _WEIGHT_DECAY * weights[n]) for n in expected["grad_names"]
    ]
    final_norms = [np.linalg.norm(final[n]) for n in expected["final_names"]]
    np.testing.assert_allclose(found, expected["losses"], rtol=bound, atol=0)
    assert official.error(gradient_norms, expected["grad_norms"]) < bound
    assert official.error(final_norms, expected["final_norms"]) < 1e-8
    assert official.error(official.nchw(logits), expected["logits_after_training"]) < 1e-6


def test_trace_of_segmentation():
    name = "seg_w18_small_v1"
    num_steps = len(official.load(name).arrays["losses"])
    with jax.enable_x64(True):
        model, variables = _float64(name)
        schedule = optimizers.poly_schedule(0.01, num_steps)
        optimizer = _optimizer(schedule)
        state = create_state(model, optimizer, seed=0, variables=variables)
        step = make_train_step(model, optimizer, schedule, losses.cross_entropy, seed=0)
        step = jax.jit(step, compiler_options=_OPTIMISED)
        _check(name, model, _take_steps(step, state, num_steps), bound=1e-9)


@pytest.fixture(scope="module")
def ocr():
    """(network, state, step); one compiled step for every loss, since compiling takes longest.

    The step takes state, batch, number of steps (float64, so that the learning rate is), OHEM's
    threshold and the class weights. With a threshold above 1 all pixels are kept, and OHEM without
    class weights is cross-entropy.
    """
    with jax.enable_x64(True):
        model, variables = _float64("ocr_w18_align")
        state = create_state(model, _optimizer(lambda k: 0.01), seed=0, variables=variables)

        def step(state, batch, num_steps, threshold, class_weights):
            def schedule(k):
                return 0.01 * (1 - k / num_steps) ** 0.9

            return make_train_step(
                model,
                _optimizer(schedule),
                schedule,
                functools.partial(
                    losses.ohem_cross_entropy,
                    threshold=threshold,
                    min_kept=5000,
                    class_weights=class_weights,
                ),
                seed=0,
                segmentation_loss=functools.partial(
                    losses.segmentation_loss,
                    aux_loss_function=functools.partial(
                        losses.cross_entropy, class_weights=class_weights
                    ),
                ),
            )(state, batch)

        yield model, state, jax.jit(step, compiler_options=FAST_COMPILE)


def test_trace_of_ocr(ocr):
    model, state, step = ocr
    plain = functools.partial(
        step, num_steps=np.float64(3), threshold=2.0, class_weights=np.ones(19)
    )
    with jax.enable_x64(True):
        _check("ocr_w18_align", model, _take_steps(plain, state, 3), bound=1e-8)


def test_trace_of_ocr_with_ohem(ocr):
    """OHEM on the main output, weighted cross-entropy on the auxiliary one, over 3 steps.

    The expected values come from the official network in PyTorch 2.13.0 (float64) with losses and
    SGD written out in a loop of our own; the same loop gives the official plain trace. OHEM
    keeps the pixels below the threshold, 9141 of 15565 in the first step. Each step multiplies a
    difference in the last digit by about 200, as in the plain trace, so that a fourth step would
    compare rounding; the gradient is a step ahead of the loss in this.
    """
    model, state, step = ocr
    with np.load(official.DATA / "ocr_w18_align_ohem.npz") as file:
        expected = dict(file)
    names = official.load("ocr_w18_align").arrays["final_names"]
    hard = functools.partial(
        step, num_steps=np.float64(3), threshold=_THRESHOLD, class_weights=np.array(CLASS_WEIGHTS)
    )
    with jax.enable_x64(True):
        found, norms, _, state = _take_steps(hard, state, 3)
    final = _official(model, state.params, state.batch_stats)
    np.testing.assert_allclose(found, expected["losses"], rtol=1e-8, atol=0)
    np.testing.assert_allclose(norms[:2], expected["grad_norms"][:2], rtol=1e-8, atol=0)
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-6, atol=0)
    for kind in ("running", ""):  # statistics, then all
        chosen = [k for k, name in enumerate(names) if kind in name]
        final_norms = [np.linalg.norm(final[names[k]]) for k in chosen]
        assert official.error(final_norms, expected["final_norms"][chosen]) < 1e-8
