"""One step of training: against hand-written SGD, in parts, over devices, in float64.

With a network of three layers, which has all that the step deals with: the trainer's tests run
a whole one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hrnet_jax.models import normalize
from hrnet_jax.models.layers import ConvBN, Policy
from hrnet_jax.runtime import sharding
from hrnet_jax.train import augment, distill, losses, optimizers
from hrnet_jax.train import step as step_module
from hrnet_jax.train.param_groups import ParameterGroups
from hrnet_jax.train.step import create_state, make_train_step

SIZE = (32, 64)
SCHEDULE = optimizers.poly_schedule(0.1, 100)
OPTIMIZER = optimizers.make_optimizer(SCHEDULE)


def _batch(n=8, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, (n, SIZE[0] // 8, SIZE[1] // 8)).astype(np.uint8)
    label = label.repeat(8, axis=1).repeat(8, axis=2)
    label[:, :4] = 255
    image = rng.integers(0, 256, (n, *SIZE, 3)).astype(np.uint8)
    image[..., 0] = np.where(label < 3, label * 100, 50)  # something to learn
    return {"image": image, "label": label}


def _compiled(model, mesh=None, **options):
    step = make_train_step(model, OPTIMIZER, SCHEDULE, losses.cross_entropy, seed=0, **options)
    placed = {"out_shardings": sharding.replicated(mesh)} if mesh else {}
    return jax.jit(step, compiler_options=sharding.compiler_options(), **placed)


def _state(model, ema=False, seed=3):
    return create_state(model, OPTIMIZER, seed=seed, ema=ema)


def _close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected)


def _equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


class Small(nn.Module):
    """The interface of the real networks: logits at 1/4 resolution."""

    policy: Policy = Policy()
    align_corners: bool = False

    @nn.compact
    def __call__(self, images, *, train=False):
        x = images.astype(self.policy.dtype)
        for number in range(2):
            x = ConvBN(8, 3, 2, policy=self.policy, name=f"layer{number}")(x, train=train)
        x = ConvBN(3, 1, relu=False, policy=self.policy, name="last")(x, train=train)
        return {"logits": x.astype(self.policy.statistics_dtype)}


@pytest.fixture
def model():
    return Small()


def test_step_is_sgd_on_the_loss_of_the_normalised_images(model):
    """Two steps: the second one shows momentum and the schedule."""
    state, batch = _state(model, ema=True), _batch(2)

    @jax.jit
    def gradient(params, batch_stats):
        def loss(params):
            out, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                normalize.normalize(batch["image"]),
                train=True,
                mutable=["batch_stats"],
            )
            loss, _ = losses.segmentation_loss(
                out, batch["label"], losses.cross_entropy, align_corners=False
            )
            return loss, updated["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    step = _compiled(model, ema_decay=0.15)
    params, stats, buffer = state.params, state.batch_stats, None
    ema = {"params": params, "batch_stats": stats}
    for k in range(2):
        rate = 0.1 * (1 - k / 100) ** 0.9
        (loss, stats), gradients = gradient(params, stats)
        decayed = jax.tree.map(lambda g, p: g + 5e-4 * p, gradients, params)
        buffer = jax.tree.map(lambda b, d: 0.9 * b + d, buffer, decayed) if k else decayed
        params = jax.tree.map(lambda p, b, rate=rate: p - rate * b, params, buffer)
        decay = (0.1, 0.15)[k]  # min(0.15, (1 + k) / (10 + k))
        ema = jax.tree.map(
            lambda e, n, decay=decay: decay * e + (1 - decay) * n,
            ema,
            {"params": params, "batch_stats": stats},
        )
        state, metrics = step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
        assert float(metrics["learning_rate"]) == pytest.approx(rate, rel=1e-6)
        norm = float(optax.tree.norm(gradients))
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-3)
    assert int(state.step) == 2
    _close(state.params, params, atol=2e-5)
    _close(state.batch_stats, stats, rtol=1e-3, atol=1e-5)
    _close(state.ema, ema, rtol=1e-3, atol=2e-5)


def test_the_loss_falls(model):
    state, step, seen = _state(model), _compiled(model), []
    for k in range(12):
        state, metrics = step(state, _batch(2, seed=k))
        seen.append(float(metrics["loss"]))
    assert np.mean(seen[-3:]) < 0.8 * seen[0]
    assert float(metrics["pixel_accuracy"]) > 0.5


def test_eight_devices_agree_with_one(model):
    """Statistics, loss and gradients are those of the global batch, whatever the mesh."""
    results = []
    for data in (1, 8):
        mesh = sharding.make_mesh(data=data)
        state = sharding.place_replicated(_state(model), mesh)
        batch = sharding.place_batch(_batch(8), mesh)
        results.append(_compiled(model, mesh)(state, batch))
    (one_state, one_metrics), (eight_state, eight_metrics) = results
    assert len(eight_state.step.sharding.device_set) == 8
    _close(eight_metrics, one_metrics, rtol=1e-4)
    _close(eight_state.params, one_state.params, atol=2e-5)
    _close(eight_state.batch_stats, one_state.batch_stats, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unroll", [False, True])
def test_accumulation_is_the_mean_of_the_parts(model, unroll):
    state, batch = _state(model), _batch(4)
    state_after, metrics = _compiled(model, gradient_accumulation=2, unroll=unroll)(state, batch)
    # By hand: two steps of one part each from the same parameters; zero momentum at the start
    # makes a step's change -rate * (gradient + decay), so the changes average as gradients do.
    single = _compiled(model)
    halves = [{k: v[i::2] for k, v in batch.items()} for i in range(2)]
    first, first_metrics = single(state, halves[0])
    second, second_metrics = single(state.replace(batch_stats=first.batch_stats), halves[1])
    expected = jax.tree.map(lambda a, b: (a + b) / 2, first.params, second.params)
    _close(state_after.params, expected, atol=1e-5)
    _close(state_after.batch_stats, second.batch_stats, rtol=1e-4, atol=1e-6)
    mean = (float(first_metrics["loss"]) + float(second_metrics["loss"])) / 2
    assert float(metrics["loss"]) == pytest.approx(mean, rel=1e-5)


def test_images_are_changed_by_the_step_and_the_place(model):
    """In parts, too, which take every other image."""
    state, batch = _state(model).replace(step=jnp.int32(9)), _batch(4)
    options = {"color_jitter": 0.5, "photometric": 1.0, "blur": 1.0, "erasing": 0.7}
    drawn = augment.draw(augment.Settings(**options), batch, 0, 9)
    images = augment.apply(augment.Settings(**options), drawn)
    assert np.any(np.asarray(drawn["label"]) != batch["label"])
    step = _compiled(model, gradient_accumulation=2)
    expected, _ = step(state, {"image": images, "label": drawn["label"]})
    got, _ = _compiled(model, gradient_accumulation=2, **options)(state, batch)
    _close(got.params, expected.params, atol=1e-6)
    plain, _ = step(state, batch | {"image": batch["image"].astype(np.float32)})
    difference = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), plain.params, expected.params)
    assert max(jax.tree.leaves(difference)) > 1e-3


def test_classes_are_mixed_over_the_whole_batch(model):
    """Before it is computed in parts, each of which takes every other image."""
    state, batch = _state(model).replace(step=jnp.int32(9)), _batch(4)
    mixed = augment.mix_classes(batch["image"], batch["label"], 0, 9, 1.0)
    assert np.any(mixed[1] != batch["label"])
    expected, _ = _compiled(model, gradient_accumulation=2)(
        state, dict(zip(("image", "label"), mixed, strict=True))
    )
    got, _ = _compiled(model, gradient_accumulation=2, class_mix=1.0)(state, batch)
    _close(got.params, expected.params, atol=1e-6)


def _distillation(**options):
    """A teacher with other weights; the classes 1 and 2 are exchanged."""
    teacher = _state(Small(), seed=8)
    variables = {"params": teacher.params, "batch_stats": teacher.batch_stats}
    return distill.Distillation(Small(), (0, 2, 1), 2.0, 0.5, **options), variables


def test_distillation_adds_the_distance_from_the_teacher(model):
    """On the same images, with the teacher in evaluation mode and padding left out."""
    distillation, teacher = _distillation()
    state, batch = _state(model), _batch(2)
    batch["image"][:, :, 32:] = 0
    batch["label"][:, :, 32:] = 255
    plain_state, plain = _compiled(model)(state, batch)
    got_state, got = _compiled(model, distillation=distillation)(state, batch, teacher)
    inputs = normalize.normalize(batch["image"])
    logits = model.apply(teacher, inputs, train=False)["logits"][:, :, :8, jnp.array([0, 2, 1])]
    own = model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        inputs,
        train=True,
        mutable=["batch_stats"],
    )[0]["logits"][:, :, :8]
    p, q = jax.nn.softmax(logits / 2), jax.nn.softmax(own / 2)
    distance = 4 * jnp.mean(jnp.sum(p * jnp.log(p / q), axis=-1))
    assert float(got["distill_pixels"]) == 0.5
    assert float(got["distill_loss"]) == pytest.approx(float(distance), rel=1e-4)
    assert float(got["loss"]) == pytest.approx(float(plain["loss"] + 0.5 * distance), rel=1e-5)
    _close(got_state.batch_stats, plain_state.batch_stats, rtol=1e-5)
    change = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), got_state.params, plain_state.params)
    assert max(jax.tree.leaves(change)) > 1e-4


def test_distillation_of_images_without_labels(model):
    distillation, teacher = _distillation()
    batch = _batch(2)
    batch["label"][:] = 255
    _, metrics = _compiled(model, distillation=distillation)(_state(model), batch, teacher)
    assert float(metrics["loss"]) == pytest.approx(0.5 * float(metrics["distill_loss"]))
    assert float(metrics["grad_norm"]) > 1e-3


def test_distillation_on_eight_devices_and_in_parts(model):
    """Pixels are kept unevenly: the mean is over those of all devices."""
    distillation, teacher = _distillation(min_confidence=0.5)
    results = []
    for data, options in ((1, {}), (8, {}), (1, {"gradient_accumulation": 2})):
        mesh = sharding.make_mesh(data=data)
        state, variables = sharding.place_replicated((_state(model), teacher), mesh)
        batch = sharding.place_batch(_batch(8), mesh)
        step = _compiled(model, mesh, distillation=distillation, **options)
        results.append(step(state, batch, variables))
    (one_state, one), (eight_state, eight), (_, parts) = results
    assert 0 < float(one["distill_pixels"]) < 1
    _close(eight, one, rtol=1e-4)
    _close(eight_state.params, one_state.params, atol=2e-5)
    # Each part has its own batch statistics and mean.
    assert float(parts["distill_pixels"]) == pytest.approx(float(one["distill_pixels"]))
    assert float(parts["distill_loss"]) == pytest.approx(float(one["distill_loss"]), rel=0.1)


def test_float64():
    with jax.enable_x64(True):
        model = Small(Policy(jnp.dtype("float64"), jnp.dtype("float64")))
        state, metrics = _compiled(model)(_state(model), _batch(2))
        assert metrics["loss"].dtype == jnp.float64
        dtypes = {x.dtype for x in jax.tree.leaves((state.params, state.batch_stats))}
        assert dtypes == {jnp.dtype("float64")}


def test_bfloat16_keeps_float32_parameters(model):
    low = Small(Policy(dtype=jnp.dtype("bfloat16")))
    state, metrics = _compiled(low)(_state(low), _batch(2))
    kept = jax.tree.leaves((state.params, state.batch_stats, state.opt_state, metrics))
    assert {x.dtype for x in kept} == {jnp.dtype("float32"), jnp.dtype("int32")}
    _, reference = _compiled(model)(_state(model), _batch(2))
    assert float(metrics["loss"]) == pytest.approx(float(reference["loss"]), rel=0.05)


def test_frozen_parts_stay_and_the_others_learn_as_their_groups_say(model):
    """One step of plain SGD by hand, with the gradient's norm clipped; in parts, too."""
    groups = ParameterGroups(multipliers={"layer0": 0, "last": 0.5}, decay_norm_and_bias=False)
    frozen = Small(Policy(frozen_norm=tuple(groups.frozen_norm_parts().items())))
    optimizer = optimizers.make_optimizer(SCHEDULE, weight_decay=0.5, groups=groups)
    state, batch = create_state(frozen, optimizer, seed=3, ema=True), _batch(2)
    size = len(jax.tree.leaves(state.params)) - len(jax.tree.leaves(state.params["layer0"]))
    assert len(jax.tree.leaves(state.opt_state)) == size + 1  # and the step's counter

    @jax.jit
    def gradient(params):
        def loss(params):
            out, _ = frozen.apply(
                {"params": params, "batch_stats": state.batch_stats},
                normalize.normalize(batch["image"]), train=True, mutable=["batch_stats"],
            )  # fmt: skip
            return losses.segmentation_loss(
                out, batch["label"], losses.cross_entropy, align_corners=False
            )[0]

        return jax.grad(loss)(params)

    gradients = gradient(state.params)
    norm = float(optax.tree.norm({k: v for k, v in gradients.items() if k != "layer0"}))
    step = make_train_step(
        frozen, optimizer, SCHEDULE, losses.cross_entropy, seed=0, ema_decay=0.5,
        groups=groups, clip_norm=norm / 2,
    )  # fmt: skip
    new, metrics = jax.jit(step, compiler_options=sharding.compiler_options())(state, batch)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)  # before clipping
    assert metrics["probe"]["gradients"].shape == (len(jax.tree.leaves(state.params)),)
    for old, kept in ((state.params, new.params), (state.batch_stats, new.batch_stats)):
        _equal(kept["layer0"], old["layer0"])
    for kind, tree in (("params", new.params), ("batch_stats", new.batch_stats)):
        _equal(new.ema[kind]["layer0"], tree["layer0"])
    for name, factor in (("layer1", 1.0), ("last", 0.5)):
        expected = jax.tree_util.tree_map_with_path(
            lambda path, p, g, factor=factor: (
                p - 0.1 * factor * (0.5 * g + (0.5 * p if path[-1].key == "kernel" else 0))
            ),
            state.params[name],
            gradients[name],
        )
        _close(new.params[name], expected, atol=2e-5)
        assert not np.array_equal(
            new.batch_stats[name]["bn"]["mean"], state.batch_stats[name]["bn"]["mean"]
        )


def test_clipping_is_pytorchs():
    """Values of torch.nn.utils.clip_grad_norm_, torch 2.13: norm 5, limit 2; limit 7: unchanged."""
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped = step_module._clipped(gradients, jnp.float32(5.0), 2.0)
    _close(clipped, {"a": np.array([1.1999998]), "b": np.array([1.5999997])}, rtol=1e-6)
    _equal(step_module._clipped(gradients, jnp.float32(5.0), 7.0), gradients)
