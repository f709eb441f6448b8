"""Time, path and Euler steps of flow matching, as StarVLA's heads have them."""

import pytest
import torch

from hf_vla.modeling import flow_matching


def test_training_times():
    torch.manual_seed(0)
    time = flow_matching.sample_time(20_000, 1.5, 1.0, 0.999, clamp=False)
    assert time.dtype == torch.float32
    assert -0.0011 < time.min() < 0 and time.max() <= 1  # u up to 1 gives (s - 1) / s
    assert abs(time.mean().item() - (1 - 0.6 / 0.999)) < 0.01  # Beta(1.5, 1) has mean 0.6
    torch.manual_seed(0)
    clamped = flow_matching.sample_time(20_000, 1.5, 1.0, 0.999, clamp=True)
    assert torch.equal(clamped, time.clamp(min=0))


def test_a_seed_gives_starvlas_draw():
    torch.manual_seed(7)
    u = torch.distributions.Beta(1.5, 1.0).sample([5])
    torch.manual_seed(7)
    time = flow_matching.sample_time(5, 1.5, 1.0, 0.999, clamp=False)
    assert torch.equal(time, (0.999 - u) / 0.999)


def test_path_runs_from_noise_to_actions():
    noise, actions = torch.zeros(2, 3), torch.full((2, 3), 4.0)
    for time, value in ((0.0, 0.0), (0.25, 1.0), (1.0, 4.0)):
        assert torch.equal(flow_matching.interpolate(noise, actions, torch.tensor(time)), torch.full((2, 3), value))


@pytest.mark.parametrize(("time", "bucket"), [(0.0, 0), (0.9996, 999), (0.5, 500), (-0.0009, 0), (1.0, 1000)])
def test_buckets_truncate(time, bucket):
    assert flow_matching.time_to_bucket(torch.tensor(time), 1000).item() == bucket


def test_inference_buckets():
    assert flow_matching.inference_buckets(4, 1000) == [0, 250, 500, 750]
    assert flow_matching.inference_buckets(3, 1000) == [0, 333, 666]


def test_euler_steps():
    steps = []

    def velocity(x, step):
        steps.append(step)
        return -x

    result = flow_matching.integrate(velocity, torch.ones(2), num_steps=4)
    assert torch.allclose(result, torch.full((2,), 0.75**4)) and steps == [0, 1, 2, 3]


def test_a_straight_path_is_followed_exactly():
    noise, actions = torch.randn(3), torch.randn(3)
    for num_steps in (1, 4):
        assert torch.allclose(
            flow_matching.integrate(lambda *_: actions - noise, noise, num_steps), actions, atol=1e-6
        )


def test_the_integrator_keeps_the_noise_dtype():
    result = flow_matching.integrate(lambda x, _: x.bfloat16(), torch.ones(2), 2)
    assert result.dtype == torch.float32
