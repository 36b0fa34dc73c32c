import math

import pytest

from gitseg_tf.config import load_config
from gitseg_tf.config.training import SCHEDULES
from gitseg_tf.training.optim.schedules import Schedule


def rates(steps, total=100, **changes):
    config = load_config(None, {f"training.{key}": value for key, value in ({"learning_rate": 0.02} | changes).items()})
    return Schedule(config.training, total)([float(step) for step in steps]).numpy().tolist()


STEPS = (0, 5, 10, 40, 55, 100, 150)


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({"schedule": "cosine"}, (0, 0.5, 1, 0.5 * (1 + math.cos(math.pi / 3)), 0.5, 0, 0)),
        ({"schedule": "polynomial", "power": 0.9}, (0, 0.5, 1, (2 / 3) ** 0.9, 0.5**0.9, 0, 0)),
        ({"schedule": "polynomial", "power": 2.0}, (0, 0.5, 1, 4 / 9, 0.25, 0, 0)),
        ({"schedule": "constant"}, (0, 0.5, 1, 1, 1, 1, 1)),
    ],
)
def test_the_rate_warms_up_to_the_peak_and_follows_the_schedule(changes, shares):
    expected = [0.02 * share for share in shares]
    assert rates(STEPS, warmup=0.1, **changes) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("schedule", ["cosine", "polynomial", "constant"])
def test_without_warm_up_the_rate_starts_at_the_peak(schedule):
    assert rates([0], schedule=schedule, warmup=0) == pytest.approx([0.02])


def test_one_cycle_matches_torch():
    # torch.optim.lr_scheduler.OneCycleLR(max_lr=0.02, total_steps=100, pct_start=0.3), torch 2.
    of_torch = {0: 8e-4, 10: 5.903278969e-3, 29: 0.02, 30: 1.998993073e-2, 50: 1.587786901e-2, 75: 5.261372330e-3}
    assert rates(of_torch, schedule="one_cycle", warmup=0.3) == pytest.approx(list(of_torch.values()), rel=1e-4)
    assert rates([99, 120], schedule="one_cycle", warmup=0.3) == pytest.approx([8e-8, 8e-8], abs=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "polynomial", "one_cycle", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 0.9), (2, 0.5), (3, 0.99)])
def test_very_short_runs_have_valid_rates(schedule, total, warmup):
    assert all(0 <= rate <= 0.02 for rate in rates(range(total + 1), total, schedule=schedule, warmup=warmup))


def test_a_registered_schedule_is_chosen_by_name(refusal):
    assert "did you mean cosine?" in refusal(rates, [0], schedule="cosin")
    SCHEDULES.register("halved", lambda step, schedule: 0.5 * (1 - schedule.progress(step)))
    try:
        assert rates([10, 55, 100], schedule="halved", warmup=0.1) == pytest.approx([0.01, 0.005, 0])
    finally:
        SCHEDULES.remove("halved")
