"""Networks of qmp_sac.py: a stack equals N plain networks, starts as they do, squashes exactly."""

import math

import pytest
import torch
from helpers import F64, layers, unstack
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

from qmp_sac import Actor, Agent, Args, Critic, StackedLinear, StackedMLP, squash

SIZES = {
    "N": st.integers(1, 5),
    "B": st.integers(1, 6),
    "O": st.integers(1, 7),
    "A": st.integers(1, 4),
    "hidden_sizes": st.lists(st.integers(1, 9), max_size=3).map(tuple),
    "seed": st.integers(0, 2**31),
}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@given(**SIZES)
def test_actor_equals_plain_networks(N, B, O, A, hidden_sizes, seed):
    """In states of their own, and all policies in the same states."""
    torch.manual_seed(seed)
    actor = Actor(N, O, A, hidden_sizes).double()
    obs = torch.randn(N, B, O, dtype=F64)
    for states in (obs, obs[:1]):
        mean, log_std = actor(states)
        assert mean.shape == log_std.shape == (N, B, A)
        for i in range(N):
            out = unstack(actor.net, i)(states.expand(N, -1, -1)[i])  # [B, 2A]
            assert_close(mean[i], out[:, :A], **EXACT)
            assert_close(log_std[i], out[:, A:].clamp(-20, 2), **EXACT)


@given(**SIZES)
def test_critic_equals_plain_networks(N, B, O, A, hidden_sizes, seed):
    torch.manual_seed(seed)
    qf = Critic(N, O, A, hidden_sizes).double()
    obs, actions = torch.randn(N, B, O, dtype=F64), torch.randn(N, B, A, dtype=F64)
    values = qf(obs, actions)
    assert values.shape == (2, N, B)
    for c in range(2):
        for i in range(N):
            x = torch.cat([obs[i], actions[i]], dim=1)
            assert_close(values[c, i], unstack(qf.net, c * N + i)(x).squeeze(1), **EXACT)


@pytest.mark.parametrize("hidden_sizes", [(), (5,), (5, 6, 7)])
def test_layers_have_the_sizes_asked_for(hidden_sizes):
    net = StackedMLP(2, 3, *hidden_sizes, 4)
    pairs = zip((3, *hidden_sizes), (*hidden_sizes, 4), strict=True)
    assert [layer.weight.shape for layer in layers(net)] == [(2, i, o) for i, o in pairs]
    assert layers(net) == list(net.layers)


@pytest.mark.parametrize("S, B", [(1, 300), (3, 1), (5, 260), (20, 32), (20, 256), (23, 700)])
def test_a_stack_run_in_parts_equals_plain_networks(S, B):
    """Values and gradients, also where the parts do not divide the stack."""
    torch.manual_seed(0)
    net = StackedMLP(S, 7, 64, 48, 3).double()
    plain = [unstack(net, i) for i in range(S)]
    x = torch.randn(S, B, 7, dtype=F64, requires_grad=True)
    weights = torch.randn(S, B, 3, dtype=F64)
    out = net(x)
    (out * weights).sum().backward()
    assert out.shape == (S, B, 3)
    for i, one in enumerate(plain):
        own = x[i].detach().requires_grad_()
        expected = one(own)
        assert_close(out[i], expected, **EXACT)
        (expected * weights[i]).sum().backward()
        assert_close(x.grad[i], own.grad, **EXACT)
        for layer, linear in zip(net.layers, one[::2], strict=True):
            assert_close(layer.weight.grad[i], linear.weight.grad.T, rtol=1e-11, atol=1e-11)
            assert_close(layer.bias.grad[i, 0], linear.bias.grad, rtol=1e-11, atol=1e-11)


def test_log_std_is_clamped():
    """To [-20, 2], with the mean left alone."""
    actor = Actor(2, 3, 4, ())
    (layer,) = layers(actor)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias[0, 0] = torch.tensor([50.0, -50, 1, 2, -21, -20, 2, 3])
        layer.bias[1, 0] = torch.tensor([0.0, 0, 0, 0, -1e9, -19.9, 1.9, 1e9])
    mean, log_std = actor(torch.randn(2, 5, 3))
    assert torch.equal(mean[0], torch.tensor([50.0, -50, 1, 2]).expand(5, 4))
    assert torch.equal(log_std[0], torch.tensor([-20.0, -20, 2, 2]).expand(5, 4))
    assert torch.equal(log_std[1], torch.tensor([-20.0, -19.9, 1.9, 2]).expand(5, 4))


def check_initialisation(weight: torch.Tensor, bias: torch.Tensor):
    """Each slice of weight [S, in, out] and bias [S, 1, out] is uniform in +-1/sqrt(fan_in)."""
    bound = weight.shape[1] ** -0.5
    for parameter in (weight.detach().flatten(1), bias.detach().flatten(1)):  # [S, n]
        n = parameter.shape[1]
        largest = parameter.abs().amax(1)
        assert (largest <= bound).all()
        assert (largest > bound * (1 - 12 / n)).all()  # fails once in e^12 of correct slices
        # The moments of a uniform variable, within five standard errors.
        u = parameter.double() / bound
        assert (u.mean(1).abs() < 5 * (1 / 3 / n) ** 0.5).all()
        assert ((u.square().mean(1) - 1 / 3).abs() < 5 * (4 / 45 / n) ** 0.5).all()
        assert (((u**4).mean(1) - 1 / 5).abs() < 5 * (16 / 225 / n) ** 0.5).all()
        # Different slices are uncorrelated.
        correlation = 3 * u @ u.T / n  # [S, S]
        assert correlation.fill_diagonal_(0).abs().amax() < 5 / n**0.5


@pytest.mark.parametrize("fan_in, fan_out", [(64, 256), (256, 64), (100, 100), (3, 2000)])
def test_every_slice_starts_as_linear(fan_in, fan_out):
    torch.manual_seed(0)
    layer = StackedLinear(4, fan_in, fan_out).double()
    assert layer.weight.shape == (4, fan_in, fan_out) and layer.bias.shape == (4, 1, fan_out)
    check_initialisation(layer.weight, layer.bias)
    # The same test passes for the plain layer, so it does not ask for something else.
    plain = [nn.Linear(fan_in, fan_out) for _ in range(4)]
    biases = torch.stack([layer.bias[None] for layer in plain])
    check_initialisation(torch.stack([layer.weight.T for layer in plain]), biases)


def test_networks_start_as_linear():
    """Every layer of the policies and of both critics of every task."""
    torch.manual_seed(0)
    actor, qf = Actor(3, 39, 128, (96, 160)), Critic(3, 39, 4, (96, 160))
    for layer in [*layers(actor), *layers(qf)[:-1]]:
        check_initialisation(layer.weight, layer.bias)
    q1, q2 = qf(torch.ones(3, 1, 39), torch.ones(3, 1, 4))
    assert torch.cat([q1, q2]).unique().numel() == 6  # no two critics alike


def test_agent_starts_with_its_critics_as_targets_and_the_alpha_asked_for():
    torch.manual_seed(0)
    for args, alpha in ((Args(hidden_sizes=(8,)), 1.0), (Args(hidden_sizes=(8,), alpha=0.2), 0.2)):
        agent = Agent(3, 4, 2, args)
        assert_close(agent.log_alpha.exp().tolist(), [alpha] * 3)
        for p, target in zip(agent.qf.parameters(), agent.qf_target.parameters(), strict=True):
            assert torch.equal(p, target) and p.data_ptr() != target.data_ptr()
            assert not target.requires_grad


@given(
    seed=st.integers(0, 2**31),
    A=st.integers(1, 4),
    shape=st.sampled_from([(), (7,), (3, 2), (2, 3, 4)]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_squash_equals_torch_distributions(seed, A, shape, scale):
    torch.manual_seed(seed)
    mean = scale * torch.randn(*shape, A, dtype=F64)
    noise = torch.randn(*shape, A, dtype=F64)
    log_std = torch.empty_like(mean).uniform_(-4, 2)
    actions, log_prob = squash(mean, log_std, noise)
    # The transform's cache keeps x: at saturation atanh(tanh(x)) has no digits left.
    policy = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    expected = policy.transforms[0](mean + log_std.exp() * noise)
    assert log_prob.shape == shape
    assert_close(actions, expected, rtol=1e-12, atol=1e-12)
    assert_close(log_prob, policy.log_prob(expected).sum(-1), rtol=1e-8, atol=1e-8)
    assert torch.equal(squash(mean, log_std, torch.zeros_like(mean))[0], torch.tanh(mean))


@pytest.mark.parametrize("log_std", [-20.0, -5.0, -1.0, 0.0])
def test_squash_in_float32_is_exact_at_saturation(log_std):
    """Finite and right to 1e-6 where tanh(x) rounds to one and log(1 - tanh(x)^2) is log 0."""
    mean = torch.linspace(-16, 16, 2049)[:, None].expand(-1, 5).unsqueeze(-1)  # [2049, 5, 1]
    noise = torch.tensor([-2.0, -1, 0, 0.5, 2]).expand(2049, 5).unsqueeze(-1)
    log_std = torch.full_like(mean, log_std)
    actions, log_prob = squash(mean, log_std, noise)
    assert actions.dtype == log_prob.dtype == torch.float32
    assert (actions.abs() == 1).sum() > 1000  # the test does reach saturation

    mean, log_std, noise = mean.double(), log_std.double(), noise.double()
    x = mean + log_std.exp() * noise
    log_cosh = torch.logaddexp(x, -x) - math.log(2)  # 1 - tanh^2 = 1 / cosh^2
    exact = (-noise.square() / 2 - log_std - math.log(2 * math.pi) / 2 + 2 * log_cosh).squeeze(-1)
    assert torch.isfinite(log_prob).all()
    assert ((log_prob.double() - exact).abs() / exact.abs().clamp(min=1)).max() < 1e-6


def test_squash_has_finite_exact_gradients_at_saturation():
    """d log_prob by mean: 2 tanh(x), by log_std: 2 tanh(x) std noise - 1; d a by mean: 1 - a^2."""
    mean = torch.linspace(-20, 20, 401)[:, None].requires_grad_()
    log_std = torch.full((401, 1), -0.7, requires_grad=True)
    noise = torch.linspace(-3, 3, 401)[:, None]
    actions, log_prob = squash(mean, log_std, noise)
    by_mean, by_log_std = torch.autograd.grad(log_prob.sum(), (mean, log_std), retain_graph=True)
    (actions_by_mean,) = torch.autograd.grad(actions.sum(), mean)
    std = log_std.detach().double().exp()
    tanh = torch.tanh(mean.detach().double() + std * noise)
    assert_close(by_mean.double(), 2 * tanh, rtol=1e-5, atol=2e-6)
    assert_close(by_log_std.double(), 2 * tanh * std * noise - 1, rtol=1e-5, atol=5e-6)
    assert_close(actions_by_mean.double(), 1 - tanh.square(), rtol=1e-5, atol=1e-6)
