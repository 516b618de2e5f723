"""The Q-switch of qmp_sac.py: against a plain double loop, and what `Mixture` makes of it."""

import math
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import F64, layers, unstack
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

import qmp_sac
from qmp_sac import Actor, Agent, Args, Critic, Mixture, q_switch, switch_agreement


def constant_policies(mean, log_std=-20.0):
    """mean and log_std [P, N, A] of policies with mean[j] (or [j][A]), whatever the states are."""
    mean = torch.as_tensor(mean, dtype=F64).view(len(mean), 1, -1).expand(-1, len(mean), -1)
    return mean, torch.full_like(mean, log_std)


def linear_critic(slopes):
    """Critics Q_c,i(s, a) = slopes[c][i] * (sum of a)."""
    slopes = torch.as_tensor(slopes, dtype=F64)  # [2, N]
    return lambda obs, actions: slopes[:, :, None] * actions.sum(-1)


def score(policies, qf, alpha=None, noise=None):
    """q_switch in states of zeros."""
    return q_switch(*policies, qf, torch.zeros(len(policies[0]), 2, dtype=F64), alpha, noise)


@torch.no_grad()
def random_networks(N, O, A, hidden_sizes, scale=1.0):
    """Policies and critics in double precision that differ by more than a start's."""
    actor = Actor(N, O, A, hidden_sizes).double()
    qf = Critic(N, O, A, hidden_sizes).double()
    for parameter in [*actor.parameters(), *qf.parameters()]:
        parameter *= scale
    return actor, qf


def loop_q_switch(policies, critics, obs, alpha=None, noise=None):
    """Eq. 2 of the paper by single networks and single actions: scores [N][P].

    policies[j] maps a state to mean and log std before tanh, critics[i] are two functions.
    """
    scores = []
    for i, (q1, q2) in enumerate(critics):
        scores.append([])
        for j, policy in enumerate(policies):
            mean, log_std = policy(obs[i])
            gaussian = Normal(mean, log_std.clamp(-20, 2).exp())
            squashed = TransformedDistribution(gaussian, TanhTransform(cache_size=1))
            samples = []
            for n in [torch.zeros_like(mean)] if noise is None else noise[:, j, i]:
                action = squashed.transforms[0](gaussian.mean + gaussian.stddev * n)
                x = torch.cat([obs[i], action])
                sample = min(q1(x).item(), q2(x).item())
                if alpha is not None:
                    sample -= alpha[i].item() * squashed.log_prob(action).sum().item()
                samples.append(sample)
            scores[i].append(sum(samples) / len(samples))
    return scores


def plain_networks(actor, qf):
    """Their policies and pairs of critics, as `loop_q_switch` takes them."""
    nets = [unstack(actor.net, j) for j in range(actor.N)]
    policies = [lambda x, net=net: net(x).chunk(2) for net in nets]
    critics = [(unstack(qf.net, i), unstack(qf.net, actor.N + i)) for i in range(actor.N)]
    return policies, critics


@torch.no_grad()
@given(
    N=st.integers(1, 5),
    O=st.integers(1, 4),
    A=st.integers(1, 3),
    K=st.sampled_from([0, 1, 3]),
    hidden_sizes=st.sampled_from([(), (8,), (7, 5)]),
    entropy=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_q_switch_equals_double_loop(N, O, A, K, hidden_sizes, entropy, seed):
    torch.manual_seed(seed)
    actor, qf = random_networks(N, O, A, hidden_sizes, scale=3)
    obs = 2 * torch.randn(N, O, dtype=F64)
    alpha = torch.rand(N, dtype=F64) + 0.01 if entropy else None
    noise = torch.randn(K, N, N, A, dtype=F64) if K else None

    chosen, scores = q_switch(*actor(obs.unsqueeze(0)), qf, obs, alpha, noise)

    expected = loop_q_switch(*plain_networks(actor, qf), obs, alpha, noise)
    assert chosen.shape == (N,) and scores.shape == (N, N)
    assert_close(scores, torch.tensor(expected, dtype=F64), rtol=1e-8, atol=1e-8)
    for i, row in enumerate(expected):
        largest, tolerance = max(row), 1e-5 * max(1, *map(abs, row))
        own = row[i] > largest - tolerance
        if abs(row[i] - largest + tolerance) > 1e-7:  # but for rounding at the very tolerance
            assert chosen[i] == (i if own else row.index(largest))


def test_tie_with_own_policy_goes_to_own_and_of_others_to_the_lowest():
    """Five policies; 0, 2 and 4 do one thing, 1 and 3 another."""
    policies = constant_policies([-1.0, 1, -1, 1, -1])
    assert score(policies, linear_critic([[1.0] * 5] * 2))[0].tolist() == [1, 1, 1, 3, 1]
    assert score(policies, linear_critic([[-1.0] * 5] * 2))[0].tolist() == [0, 0, 2, 0, 4]


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_what_counts_as_a_tie(offset):
    """1e-5 of the largest score, or of 1 if that is smaller: more than rounding."""
    tolerance = 1e-5 * max(1, abs(offset))
    policies = constant_policies([0.0, 0.5, 1])
    for gain, winner in ((0.5, 0), (2.0, 1)):
        table = offset + tolerance * torch.tensor([[0, gain, -gain]] * 3, dtype=F64)
        chosen, scores = score(policies, lambda obs, actions, table=table: table.expand(2, -1, -1))
        assert torch.equal(scores, table)
        assert chosen[0] == winner and chosen[1] == 1


@torch.no_grad()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (F64, 1e-13)])
def test_identical_policies_score_alike_and_act_for_their_own_task(dtype, tolerance):
    """Copies of one policy with one noise each."""
    for N in (1, 2, 5, 11):
        for K in (0, 1, 3):
            torch.manual_seed(N)
            actor, qf = Actor(N, 7, 3, (64, 64)).to(dtype), Critic(N, 7, 3, (64, 64)).to(dtype)
            for parameter in actor.parameters():
                parameter.copy_(parameter[:1].clone().expand_as(parameter))
            noise = torch.randn(K, 1, N, 3, dtype=dtype).expand(-1, N, -1, -1) if K else None
            obs, alpha = torch.randn(N, 7, dtype=dtype), torch.ones(N, dtype=dtype)
            chosen, scores = q_switch(*actor(obs.unsqueeze(0)), qf, obs, alpha, noise)
            assert_close(scores, scores[:, :1].expand_as(scores), rtol=tolerance, atol=tolerance)
            assert chosen.tolist() == list(range(N))


def test_minimum_of_the_twins_scores():
    """Q1 = a and Q2 = -a each would choose an end, their mean ties, the minimum is best at 0."""
    policies = constant_policies([-2.0, 0, 2])
    chosen, scores = score(policies, linear_critic([[1.0] * 3, [-1.0] * 3]))
    assert chosen.tolist() == [1, 1, 1]
    assert_close(scores, torch.tensor([[-math.tanh(2), 0, -math.tanh(2)]] * 3, dtype=F64))


def test_task_scores_by_its_own_critic_and_temperature():
    """Task 0 likes large actions, task 1 small ones, task 2 nothing but entropy."""
    mean, log_std = constant_policies([-1.0, 0, 1])
    log_std = torch.tensor([-3.0, -2, -1], dtype=F64).view(3, 1, 1).expand_as(mean)
    qf = linear_critic([[1.0, -1, 0]] * 2)
    alpha = torch.tensor([1e-6, 1e-6, 0.7], dtype=F64)
    chosen, scores = score((mean, log_std), qf, alpha)
    assert chosen[:2].tolist() == [2, 0]
    log_density = []
    for m, s in ((-1, -3), (0, -2), (1, -1)):
        log_density.append(-s - math.log(2 * math.pi) / 2 - math.log(1 - math.tanh(m) ** 2))
    assert_close(scores[2], -0.7 * torch.tensor(log_density, dtype=F64))
    assert chosen[2] == np.argmin(log_density)
    assert torch.equal(score((mean, log_std), qf)[1][2], torch.zeros(3, dtype=F64))


@torch.no_grad()
def test_many_samples_approach_the_integral():
    """For A = 1 scores tend to E_{a ~ pi_j}[min Q_i(s, a)] + alpha_i H[pi_j], by quadrature."""
    torch.manual_seed(3)
    N, O = 3, 2
    actor, qf = random_networks(N, O, 1, (16,), scale=2)
    alpha, obs = torch.tensor([0.1, 0.5, 1.0], dtype=F64), torch.randn(N, O, dtype=F64)

    grid = torch.linspace(-9, 9, 40_001, dtype=F64)
    weight = Normal(torch.zeros((), dtype=F64), 1.0).log_prob(grid).exp()
    integral, deviation = torch.zeros(N, N, dtype=F64), torch.zeros(N, N, dtype=F64)
    for i in range(N):
        for j in range(N):
            mean, log_std = unstack(actor.net, j)(obs[i])
            gaussian = Normal(mean, log_std.exp())
            policy = TransformedDistribution(gaussian, TanhTransform(cache_size=1))
            a = policy.transforms[0](mean + log_std.exp() * grid)
            inputs = torch.cat([obs[i].expand(len(a), O), a[:, None]], dim=1)
            q1, q2 = (unstack(qf.net, critic)(inputs)[:, 0] for critic in (i, N + i))
            value = torch.minimum(q1, q2) - alpha[i] * policy.log_prob(a)
            integral[i, j] = torch.trapezoid(weight * value, grid)
            variance = torch.trapezoid(weight * (value - integral[i, j]).square(), grid)
            deviation[i, j] = variance.sqrt()

    assert (deviation > 0.05).all()  # so that the bound shrinks to what a wrong score does not meet
    for K in (1, 100, 50_000):
        noise = torch.randn(K, N, N, 1, dtype=F64)
        chosen, scores = q_switch(*actor(obs.unsqueeze(0)), qf, obs, alpha, noise)
        assert ((scores - integral).abs() < 4 * deviation / K**0.5).all()
    gaps = integral.topk(2).values
    assert (gaps[:, 0] - gaps[:, 1] > 0.02).all()
    assert torch.equal(chosen, integral.argmax(1))


def test_as_many_policies_as_tasks():
    """Other numbers would mistake which policy is the own one."""
    mean = torch.zeros(3, 2, 1, dtype=F64)
    with pytest.raises(ValueError, match="as many policies as tasks, not 3 and 2"):
        q_switch(mean, mean, linear_critic([[1.0, 1.0]] * 2), torch.zeros(2, 2, dtype=F64))


@torch.no_grad()
@given(N=st.integers(1, 4), B=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_agreement_equals_plain_loops(N, B, seed):
    torch.manual_seed(seed)
    actor, qf = random_networks(N, 3, 2, (8,), scale=3)
    obs = torch.randn(N, B, 3, dtype=F64)
    policies, critics = plain_networks(actor, qf)
    agreement, gap = torch.zeros(N, dtype=F64), torch.zeros(N, dtype=F64)
    for i in range(N):
        for state in obs[i]:
            inputs = [torch.cat([state, policy(state)[0].tanh()]) for policy in policies]
            values = [[critic(x).item() for x in inputs] for critic in critics[i]]
            first, second = ([row.index(max(row)), i][row[i] > max(row) - 1e-5] for row in values)
            agreement[i] += (first == second) / B
            gap[i] += (values[1][first] - values[1][i] + values[0][second] - values[0][i]) / 2 / B
    found = switch_agreement(SimpleNamespace(actor=actor, qf=qf), obs)
    assert_close(found[0].double(), agreement)
    assert_close(found[1], gap, rtol=1e-4, atol=1e-6)


def agreement_of(values, N=4, B=2000):
    """switch_agreement of critics with values(N, B, P) [2, N, B, P], where policy j does j / N."""
    actor = Actor(N, 2, 1, ())
    with torch.no_grad():
        actor.net.layers[0].weight.zero_()
        actor.net.layers[0].bias[:, 0, 0] = (torch.arange(N) / N).atanh()
    table = values(N, B)

    def qf(obs, actions):
        states = obs[..., 0].long()  # [N, B P], their number is what is observed
        policies = (actions[..., 0] * N).round().long()
        return torch.stack([twin[torch.arange(N)[:, None], states, policies] for twin in table])

    obs = torch.arange(B).float()[None, :, None].expand(N, -1, 2)
    agreement, gap = switch_agreement(SimpleNamespace(actor=actor, qf=qf), obs)
    own = torch.arange(N)
    best = table[0].amax(-1) - table[0][own, :, own]
    return agreement, gap, best.mean(-1)


def test_equal_twins_agree_and_the_gap_is_that_of_the_best():
    torch.manual_seed(0)
    agreement, gap, best = agreement_of(lambda N, B: torch.randn(N, B, N).expand(2, -1, -1, -1))
    assert torch.equal(agreement.float(), torch.ones(4))
    assert_close(gap, best)
    assert (gap > 0.5).all()


def test_twins_that_guess_agree_by_chance_and_see_no_gap():
    torch.manual_seed(0)
    N, B = 4, 2000
    agreement, gap, best = agreement_of(lambda N, B: torch.randn(2, N, B, N), N, B)
    assert ((agreement - 1 / N).abs() < 4 * (1 / N * (1 - 1 / N) / B) ** 0.5).all()
    assert (gap.abs() < 4 * (2 / B) ** 0.5).all()
    assert (best > 0.5).all()  # which score(chosen) - score(own) would take for an advantage
    _, gap, _ = agreement_of(lambda N, B: torch.randn(2, N, B, N) + 3 * torch.eye(N)[:, None], N, B)
    assert (gap < 0).all()  # where the own policy is the best one, what a twin prefers is worse


# The mixture


MEANS = [-1.5, -0.5, 0.5, 1.5]
RING = torch.eye(4).roll(1, dims=1)  # task i prefers policy i + 1 (mod 4) to all others
OWN = torch.arange(4)


def make_mixture(args, use_switch=True, table=RING, log_std=(-20.0,) * 4, **options):
    """A Mixture of constant policies with mean MEANS before tanh and scores table [N, P]."""
    actor = Actor(len(table), 2, 1, ())
    (layer,) = layers(actor)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([MEANS, log_std]).T.unsqueeze(1))

    def qf(obs, actions):  # [N, B, 1]
        policies = (actions - torch.tensor(MEANS).tanh()).abs().argmin(-1)  # [N, B]
        return table.gather(1, policies).expand(2, -1, -1)

    agent = SimpleNamespace(actor=actor, qf=qf, log_alpha=torch.zeros(len(table)))
    return Mixture(agent, args, use_switch, **options)


def act(mixture, episode_lengths=(0, 0, 0, 0)):
    """Act in states of zeros; the actions [N, 1] as a tensor."""
    return torch.as_tensor(mixture.act(np.zeros((4, 2), np.float32), np.array(episode_lengths)))


def who_acted(actions):
    """Which of the constant policies, if they are narrow, gave each action [N, 1]."""
    return (actions - torch.tensor(MEANS).tanh()).abs().argmin(1)


def is_standard_normal(draws):
    bound = 4 / draws.numel() ** 0.5
    return abs(draws.mean()) < bound and abs(draws.std() - 1) < bound


@torch.no_grad()
@pytest.mark.parametrize("K, entropy", [(0, False), (1, True), (3, False), (3, True)])
def test_what_the_mixture_gives_to_the_switch(K, entropy):
    """Every policy in the state of every task, noise for samples, temperatures for entropy."""
    torch.manual_seed(0)
    N, O, A = 3, 5, 2
    args = Args(hidden_sizes=(16,), switch_samples=K, switch_entropy=entropy)
    agent = Agent(N, O, A, args)
    agent.log_alpha.copy_(torch.randn(N))
    mixture, noises = Mixture(agent, args, use_switch=True), []
    obs = np.random.default_rng(0).normal(size=(N, O))
    states = torch.as_tensor(obs, dtype=torch.float32)
    for _ in range(100 if K else 1):
        with mock.patch.object(qmp_sac, "q_switch", wraps=q_switch) as switch:
            mixture.act(obs, np.zeros(N, int))
        (mean, log_std, qf, given_obs, alpha, noise), _ = switch.call_args
        assert switch.call_count == 1 and qf is agent.qf and torch.equal(given_obs, states)
        every_state = agent.actor(states.expand(N, N, O))
        for got, expected in zip((mean, log_std), every_state, strict=True):
            assert_close(got, expected)
        assert torch.equal(mixture.policies, q_switch(*switch.call_args[0])[0])
        assert torch.equal(alpha, agent.log_alpha.exp()) if entropy else alpha is None
        assert noise.shape == (K, N, N, A) if K else noise is None
        noises += [noise.flatten()] if K else []
    assert not K or is_standard_normal(torch.cat(noises))


@pytest.mark.parametrize("K", [0, 1, 3])
def test_a_fresh_draw_of_the_chosen_policy_is_executed(K):
    """Not its mean, nor a scored sample: those that made it win are better than its draws."""
    torch.manual_seed(0)
    means, stds, steps = torch.tensor(MEANS), torch.tensor([0.2, 0.3, 0.5, 0.4]), 1000
    mixture = make_mixture(Args(switch_samples=K), log_std=stds.log().tolist())
    mixture.agent.qf = lambda obs, actions: actions.sum(-1).expand(2, -1, -1)
    noise, policies = torch.zeros(steps, 4), torch.zeros(steps, 4, dtype=torch.long)
    for step in range(steps):
        x = act(mixture).atanh()[:, 0]
        policies[step] = mixture.policies
        noise[step] = (x - means[mixture.policies]) / stds[mixture.policies]
    assert is_standard_normal(noise[policies == 3])  # which wins most often
    assert K or (policies == 3).all()  # its mean action is scored best
    assert K != 1 or (policies != 3).any()
    correlation = torch.corrcoef(noise.T).fill_diagonal_(0)  # of the tasks
    assert correlation.abs().max() < 4 / steps**0.5


def test_mean_actions():
    """The mean action of the policy that acts, whatever the random numbers are."""
    means = torch.tensor(MEANS).tanh()
    for use_switch, policies in ((True, [1, 2, 3, 0]), (False, [0, 1, 2, 3])):
        mixture = make_mixture(Args(), use_switch, log_std=[1.0] * 4, mean_actions=True)
        for seed in (0, 1):
            torch.manual_seed(seed)
            assert_close(act(mixture), means[policies].unsqueeze(1))
            assert mixture.policies.tolist() == policies


@pytest.mark.parametrize("table", [RING, torch.full((4, 4), -1e5)])
def test_uniform_draws_whatever_the_scores_are(table):
    """Chi-square of who acts, own policies too: their precedence is the argmax rule's."""
    torch.manual_seed(0)
    mixture = make_mixture(Args(switch_rule="uniform"), table=table)
    counts = torch.zeros(4, 4)
    for _ in range(1000):
        assert torch.equal(who_acted(act(mixture)), mixture.policies)
        counts[OWN, mixture.policies] += 1
    # 3 degrees of freedom, one in ten thousand
    assert ((counts - 250).square() / 250).sum(1).max() < 21.1


@pytest.mark.parametrize("period", [1, 3])
def test_choice_is_kept_for_a_period_of_the_episode(period):
    """Each task chooses where the period divides its own episode's steps, and keeps its choice."""
    torch.manual_seed(0)
    table, lengths, kept = torch.zeros(4, 4), torch.arange(4), 0
    mixture = make_mixture(Args(switch_period=period), table=table)
    assert mixture.policies.tolist() == [0, 1, 2, 3]  # until they choose, own policies act
    for _ in range(300):
        before = mixture.policies.clone()
        table.copy_(torch.rand(4, 4))
        assert torch.equal(who_acted(act(mixture, lengths)), mixture.policies)
        due = lengths % period == 0
        assert torch.equal(mixture.policies, torch.where(due, table.argmax(1), before))
        kept += (~due & (table.argmax(1) != before)).sum()
        lengths = torch.where(torch.rand(4) < 0.1, 0, lengths + 1)
    assert kept == 0 if period == 1 else kept > 300


@pytest.mark.parametrize("period", [1, 5])
def test_frequency_of_own_policy(period):
    """With a probability, apart from the other tasks; the choice is kept for a period too."""
    torch.manual_seed(0)
    mixture, own = make_mixture(Args(switch_period=period, own_policy_prob=0.7)), []
    for step in range(1000):
        policies = who_acted(act(mixture, [step % 20] * 4))
        assert torch.equal(policies, mixture.policies)
        assert ((policies == OWN) | (policies == (OWN + 1) % 4)).all()
        own.append(policies == OWN)
    skipped = torch.stack(own).view(-1, period, 4).double().mean(1)  # [choices, N]
    assert ((skipped == 0) | (skipped == 1)).all()
    assert ((skipped.mean(0) - 0.7).abs() < 4 * (0.7 * 0.3 / len(skipped)) ** 0.5).all()
    correlation = torch.corrcoef(skipped.T).fill_diagonal_(0)
    assert correlation.abs().max() < 4 / len(skipped) ** 0.5


def test_an_evaluated_mixture_never_skips_the_switch():
    torch.manual_seed(0)
    agent = Agent(4, 3, 2, Args(hidden_sizes=(16,)))
    seen = set()
    for states in np.random.default_rng(0).normal(size=(20, 4, 3)):
        chosen = []
        for probability in (0.0, 1.0):
            args = Args(own_policy_prob=probability)
            mixture = Mixture(agent, args, use_switch=True, mean_actions=True)
            mixture.act(states, np.zeros(4, dtype=int))
            chosen.append(mixture.policies)
        assert torch.equal(*chosen)
        seen.update((chosen[0] == OWN).tolist())
    assert seen == {True, False}  # own policies are chosen, and others


def test_own_policies_act_as_single_policies_without_critics():
    """As the base method has it: from the global random numbers, a draw for each task."""
    N, O, A = 4, 3, 2
    torch.manual_seed(0)
    agent = Agent(N, O, A, Args(hidden_sizes=(16,)))
    agent.qf = None
    mixture = Mixture(agent, Args(qmp=False), use_switch=False)
    for step in range(20):
        obs = torch.randn(N, O)
        torch.manual_seed(step)
        actions, state = mixture.act(obs.numpy(), np.arange(N)), torch.get_rng_state()
        assert torch.equal(mixture.policies, OWN)
        torch.manual_seed(step)
        noise = torch.randn(N, A)
        assert torch.equal(torch.get_rng_state(), state)
        for i in range(N):
            mean, log_std = unstack(agent.actor.net, i)(obs[i]).detach().chunk(2)
            assert_close(torch.tensor(actions[i]), torch.tanh(mean + log_std.exp() * noise[i]))
    np.testing.assert_array_equal(mixture.pop_statistics(), np.eye(N))


def test_shares_are_a_plain_count_since_the_last_time():
    torch.manual_seed(0)
    args = Args(switch_rule="uniform", switch_period=3, own_policy_prob=0.3)
    mixture = make_mixture(args)
    assert np.isnan(mixture.pop_statistics()).all()  # of no steps
    for steps in (60, 30):
        counts = np.zeros((4, 4))
        for step in range(steps):
            act(mixture, OWN.numpy() + step)
            counts[OWN, mixture.policies] += 1
        copy = make_mixture(args)
        copy.load_state_dict(mixture.state_dict())
        for one in (copy, mixture):
            np.testing.assert_allclose(one.pop_statistics(), counts / steps)
