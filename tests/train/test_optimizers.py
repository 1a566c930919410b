"""The schedule's values and bad inputs; test_train_step.py tests the optimiser itself."""

import jax
import jax.numpy as jnp
import optax
import pytest

from hrnet_jax.train import optimizers


def test_poly_schedule():
    schedule = optimizers.poly_schedule(0.01, 1000)
    assert float(schedule(0)) == pytest.approx(0.01)
    assert float(schedule(500)) == pytest.approx(0.01 * 0.5**0.9, rel=1e-6)
    assert float(schedule(999)) == pytest.approx(0.01 * 0.001**0.9, rel=1e-4)
    assert float(schedule(1000)) == float(schedule(5000)) == 0


def test_warm_up_is_linear_and_ends():
    plain = optimizers.poly_schedule(0.01, 1000)
    warm = optimizers.poly_schedule(0.01, 1000, warmup_steps=10)
    assert float(warm(0)) == pytest.approx(0.001)
    assert float(warm(4)) == pytest.approx(0.5 * float(plain(4)), rel=1e-6)
    assert float(warm(9)) == float(plain(9))
    assert float(warm(500)) == float(plain(500))


def test_poly_schedule_holds_the_rate_before_it_falls():
    schedule = optimizers.poly_schedule(0.002, 1000, power=1.0, warmup_steps=100, hold_fraction=0.6)
    rates = [float(schedule(step)) for step in (0, 49, 99, 600, 700, 900, 999, 1000)]
    expected = [0.00002, 0.001, 0.002, 0.002, 0.0015, 0.0005, 0.000005, 0]
    assert rates == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match=r"hold_fraction must be in \[0, 1\), got 1"):
        optimizers.poly_schedule(0.002, 1000, hold_fraction=1)


@pytest.mark.parametrize(("steps", "warmup"), [(0, 0), (10, 11), (10, -1)])
def test_bad_schedules(steps, warmup):
    with pytest.raises(ValueError, match="must be"):
        optimizers.poly_schedule(0.01, steps, warmup_steps=warmup)


def test_multistep_schedule():
    schedule = optimizers.multistep_schedule(0.1, 100, milestones=[30, 60, 90])
    values = [float(schedule(step)) for step in (0, 29, 30, 59, 60, 89, 90, 100)]
    assert values == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 1e-4, 1e-4], rel=1e-5)
    warm = optimizers.multistep_schedule(0.1, 100, milestones=[30], gamma=0.5, warmup_steps=10)
    assert [float(warm(s)) for s in (0, 4, 9, 30)] == pytest.approx([0.01, 0.05, 0.1, 0.05])
    with pytest.raises(ValueError, match="ascending"):
        optimizers.multistep_schedule(0.1, 100, milestones=[60, 30])


def test_nesterov_is_pytorchs():
    """By hand: with d = gradient + decay * w, b = 0.9 b + d, w -= rate * (d + 0.9 b)."""
    optimizer = optimizers.make_optimizer(
        optax.constant_schedule(0.1), momentum=0.9, weight_decay=0.5, nesterov=True
    )
    weight = jnp.array(2.0)
    state = optimizer.init(weight)
    expected, trace = 2.0, 0.0
    for gradient in (1.0, -3.0, 0.5):
        update, state = optimizer.update(jnp.array(gradient), state, weight)
        weight = weight + update
        decayed = gradient + 0.5 * expected
        trace = 0.9 * trace + decayed
        expected -= 0.1 * (decayed + 0.9 * trace)
        assert float(weight) == pytest.approx(expected, rel=1e-6)


def test_adamw_is_pytorchs():
    """By hand: m, v averages of gradient and square, each over 1 - beta^t; w -= rate * decay * w +
    rate * m / (sqrt(v) + 1e-8)."""
    optimizer = optimizers.make_optimizer(
        optax.constant_schedule(0.1), name="adamw", momentum=0.9, beta2=0.99, weight_decay=0.5
    )
    weight = jnp.array(2.0)
    state = optimizer.init(weight)
    expected, m, v = 2.0, 0.0, 0.0
    for t, gradient in enumerate((1.0, -3.0, 0.5), start=1):
        update, state = optimizer.update(jnp.array(gradient), state, weight)
        weight = weight + update
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        direction = m / (1 - 0.9**t) / ((v / (1 - 0.99**t)) ** 0.5 + 1e-8)
        expected -= 0.1 * (0.5 * expected + direction)
        assert float(weight) == pytest.approx(expected, rel=1e-6)


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"'adam'; known: \['adamw', 'sgd'\]"):
        optimizers.make_optimizer(optax.constant_schedule(0.1), name="adam")


def test_cosine_is_pytorchs():
    """Values of torch.optim.lr_scheduler.CosineAnnealingLR(T_max=10), torch 2.13, float64."""
    expected = [
        0.1, 0.09755282581475769, 0.09045084971874738, 0.07938926261462367, 0.06545084971874739,
        0.05, 0.03454915028125264, 0.020610737385376353, 0.009549150281252635,
        0.002447174185242324, 0.0,
    ]  # fmt: skip
    with jax.enable_x64(True):
        schedule = optimizers.cosine_schedule(0.1, 10)
        assert [float(schedule(k)) for k in range(11)] == pytest.approx(expected, rel=1e-13)
        assert float(schedule(50)) == 0
        warm = optimizers.cosine_schedule(0.1, 10, warmup_steps=4)
        assert float(warm(1)) == pytest.approx(expected[1] / 2, rel=1e-13)


@pytest.mark.parametrize(
    ("num_steps", "rise", "expected"),
    [
        (10, 0.5, [
            0.0040000000000000036, 0.018058874503045733, 0.052000000000000005, 0.08594112549695429,
            0.1, 0.0904508879153485, 0.0654509879153485, 0.03454941208465151, 0.009549512084651508,
            4e-07,
        ]),
        (20, 0.3, [
            0.0040000000000000036, 0.013167184270002533, 0.037167184270002526, 0.06683281572999747,
            0.09083281572999748, 0.1, 0.09874640062350874, 0.09504846320134738, 0.089091617757105,
            0.0811745653949763, 0.07169430017913009, 0.06112620219362893, 0.0500002,
            0.03887419780637107, 0.028306099820869922, 0.0188258346050237, 0.010908782242895003,
            0.004951936798652629, 0.0012539993764912555, 4e-07,
        ]),
    ],
)  # fmt: skip
def test_one_cycle_is_pytorchs(num_steps, rise, expected):
    """Values of torch.optim.lr_scheduler.OneCycleLR(pct_start=rise), torch 2.13, float64."""
    with jax.enable_x64(True):
        schedule = optimizers.one_cycle_schedule(0.1, num_steps, rise_fraction=rise)
        found = [float(schedule(k)) for k in range(num_steps)]
        assert found == pytest.approx(expected, rel=1e-10)
        assert float(schedule(num_steps + 5)) == found[-1]


@pytest.mark.parametrize(("num_steps", "rise"), [(3, 0.3), (10, 1.0), (10, 0.0)])
def test_a_cycle_without_room_is_refused(num_steps, rise):
    with pytest.raises(ValueError, match=r"more steps or another config.optimizer.rise_fraction"):
        optimizers.one_cycle_schedule(0.1, num_steps, rise_fraction=rise)
