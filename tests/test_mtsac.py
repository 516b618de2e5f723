"""qmp_mtsac.py: heads on shared trunks, one head for all tasks, and PCGrad on the trunks."""

import functools
from unittest import mock

import pytest
import torch
from helpers import F64, layers, make_learner, plain_linear, random_batch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import qmp_mtsac
import qmp_sac
from qmp_mtsac import Actor, Agent, Args, Critic, Mixture, project_conflicts, step_optimizer, update

N, B, O, A, HIDDEN = 3, 6, 4, 2, (16, 8)
batch = functools.partial(random_batch, qmp_mtsac, N, B, O, A)


def plain(net, s, i):
    """Trunk s and head i of a network as plain `torch.nn` modules."""
    trunk = []
    for layer in layers(net.trunk):
        trunk += [plain_linear(layer, s), nn.ReLU()]
    return nn.Sequential(*trunk, plain_linear(net.heads, i))


@pytest.mark.parametrize("heads", [N, 1])
def test_forward_is_trunk_and_head(heads):
    torch.manual_seed(0)
    actor, qf = Actor(N, O, A, HIDDEN, heads), Critic(N, O, A, HIDDEN, heads)
    with torch.no_grad():
        actor.heads.weight *= 500  # so that standard deviations reach their limits
    assert len(actor.heads.weight) == heads and len(qf.heads.weight) == 2 * heads
    obs, actions = torch.randn(N, B, O), torch.randn(N, B, A)
    values = qf(obs, actions)
    assert values.shape == (2, N, B)
    for i in range(N):
        own = i if heads == N else 0
        for states in (obs, obs[:1]):  # of their own, and the same for all policies
            mean, log_std = actor(states)
            assert mean.shape == log_std.shape == (N, B, A)
            output = plain(actor, 0, own)(states.expand(N, -1, -1)[i])
            expected_mean, expected_log_std = output.chunk(2, dim=-1)
            assert (expected_log_std < -20).any() and (expected_log_std > 2).any()
            assert_close(mean[i], expected_mean)
            assert_close(log_std[i], expected_log_std.clamp(-20, 2))
        for s in range(2):
            expected = plain(qf, s, s * heads + own)(torch.cat([obs[i], actions[i]], -1))
            assert_close(values[s, i], expected.squeeze(-1))


def squash_means(module, inputs, outputs):
    mean, log_std = outputs
    return mean.tanh(), log_std


@pytest.mark.parametrize("fully_shared", [False, True])
@pytest.mark.parametrize("double_tanh", [False, True])
def test_an_update_is_that_of_sac_with_these_networks(fully_shared, double_tanh):
    """All tasks' losses together move what they share, temperatures too."""
    args = Args(hidden_sizes=HIDDEN, fully_shared=fully_shared, qmp=not fully_shared)
    args.double_tanh = double_tanh
    learners = []
    for _ in range(2):
        torch.manual_seed(0)
        learners.append(make_learner(qmp_mtsac, N, O, A, args))
    (agent, _), (other, _) = learners
    if double_tanh:
        other.actor.register_forward_hook(squash_means)
    for _ in range(20):
        data, generator = batch(), torch.get_rng_state()
        info = update(*learners[0], data, args)
        torch.set_rng_state(generator)
        expected = qmp_sac.update(*learners[1], data, args)
        assert info.keys() == expected.keys()
        for name, values in info.items():
            assert values.shape == (N,) and not values.requires_grad
            assert_close(values, expected[name].expand(N))
    assert agent.log_alpha.shape == (1 if fully_shared else N,)
    for p, q in zip(agent.parameters(), other.parameters(), strict=True):
        assert_close(p, q)


@pytest.mark.parametrize("use_switch", [False, True])
@pytest.mark.parametrize("mean_actions", [False, True])
def test_double_tanh_is_of_collecting_without_the_switch(use_switch, mean_actions):
    """Evaluation and the switch squash the means once."""
    args = Args(hidden_sizes=HIDDEN, double_tanh=True, switch_rule="uniform")
    agent = Agent(N, O, A, args)
    with torch.no_grad():  # the policies of all tasks have the same mean and hardly any noise
        agent.actor.heads.weight.zero_()
        agent.actor.heads.bias[:] = torch.tensor([3.0, 1, -20, -20])
    mixture = Mixture(agent, args, use_switch, mean_actions)
    actions = mixture.act(torch.randn(N, O).numpy(), torch.zeros(N).numpy())
    mean = torch.tensor([3.0, 1]).expand(N, A)
    if not use_switch and not mean_actions:
        mean = mean.tanh()
    assert_close(torch.as_tensor(actions), mean.tanh())


@pytest.mark.parametrize("pcgrad, stacks", [(False, []), (True, [2, 1])])
def test_an_update_with_pcgrad(pcgrad, stacks):
    """It projects the gradients of both critics' trunks, then those of the policies'."""
    args = Args(hidden_sizes=HIDDEN, pcgrad=pcgrad)
    agent, optimizers = make_learner(qmp_mtsac, N, O, A, args)
    spy = mock.patch.object(qmp_mtsac, "project_conflicts", wraps=project_conflicts)
    with spy as project:
        update(agent, optimizers, batch(), args)
    assert [len(call.args[0]) for call in project.call_args_list] == stacks


def literal_pcgrad(gradients, order):
    """Algorithm 1 of the paper, line by line: gradients [N, D], order [N, N] of tasks -> [D]."""
    projected = [g.clone() for g in gradients]
    for i in range(len(gradients)):
        for j in order[i].tolist():
            if j != i:
                dot = projected[i] @ gradients[j]
                if dot < 0:
                    projected[i] -= dot / (gradients[j] @ gradients[j]) * gradients[j]
    return sum(projected)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10_000), st.booleans())
def test_pcgrad_is_the_papers_loop(N, D, seed, is_zero):
    """Also where the gradient of the first task is zero."""
    torch.manual_seed(seed)
    gradients = torch.randn(2, N, D, dtype=F64)
    if is_zero:
        gradients[:, 0] = 0
    state = torch.get_rng_state()
    order = torch.rand(2, N, N).argsort(-1)
    torch.set_rng_state(state)
    got = project_conflicts(gradients)
    for s in range(2):
        assert_close(got[s], literal_pcgrad(gradients[s], order[s]), rtol=1e-7, atol=1e-9)


def test_pcgrad_projects_the_trunk_and_leaves_the_heads():
    torch.manual_seed(0)
    qf = Critic(N, O, A, HIDDEN, heads=N)
    obs, actions = torch.randn(N, B, O), torch.randn(N, B, A)
    targets = torch.tensor([[1.0], [-3], [2]])

    def losses():
        return (qf(obs, actions) - targets).square().mean(-1)

    optimizer = torch.optim.SGD(qf.parameters(), lr=0)
    state = torch.get_rng_state()
    spy = mock.patch.object(qmp_mtsac, "project_conflicts", wraps=project_conflicts)
    with spy as project:
        step_optimizer(optimizer, losses(), qf.trunk)
    (seen,) = project.call_args.args
    trunk = torch.cat([p.grad.flatten(1) for p in qf.trunk.parameters()], 1)
    heads = [p.grad.clone() for p in qf.heads.parameters()]
    # One backward pass for each task gives the same gradients of the trunk.
    for i in range(N):
        gradients = torch.autograd.grad(losses()[:, i].sum(), [*qf.trunk.parameters()])
        assert_close(seen[:, i], torch.cat([g.flatten(1) for g in gradients], 1))
    torch.set_rng_state(state)
    assert_close(trunk, project_conflicts(seen))
    assert not torch.allclose(project_conflicts(seen), seen.sum(1))  # there were conflicts
    step_optimizer(optimizer, losses(), None)
    for p, gradient in zip(qf.heads.parameters(), heads, strict=True):
        assert_close(p.grad, gradient)
