"""The schedule's values and bad inputs; test_train_step.py tests the optimiser itself."""

import pytest

from hrnet_jax import optim


def test_poly_schedule():
    schedule = optim.poly_schedule(0.01, 1000)
    assert float(schedule(0)) == pytest.approx(0.01)
    assert float(schedule(500)) == pytest.approx(0.01 * 0.5**0.9, rel=1e-6)
    assert float(schedule(999)) == pytest.approx(0.01 * 0.001**0.9, rel=1e-4)
    assert float(schedule(1000)) == float(schedule(5000)) == 0


def test_warm_up_is_linear_and_ends():
    plain = optim.poly_schedule(0.01, 1000)
    warm = optim.poly_schedule(0.01, 1000, warmup_steps=10)
    assert float(warm(0)) == pytest.approx(0.001)
    assert float(warm(4)) == pytest.approx(0.5 * float(plain(4)), rel=1e-6)
    assert float(warm(9)) == float(plain(9))
    assert float(warm(500)) == float(plain(500))


@pytest.mark.parametrize(("steps", "warmup"), [(0, 0), (10, 11), (10, -1)])
def test_bad_schedules(steps, warmup):
    with pytest.raises(ValueError, match="must be"):
        optim.poly_schedule(0.01, steps, warmup_steps=warmup)
