"""The Q-switch of qmp_sac.py: q_switch against a plain double loop, and what Mixture makes of it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

import qmp_sac
from qmp_sac import Actor, Agent, Args, Critic, Mixture, q_switch

F64 = torch.float64


def constant_policies(mean, log_std=-20.0):
    """Policies that do not look at the states: mean and log_std [P, N, A] of policies j with mean[j] (or [j][A])."""
    mean = torch.as_tensor(mean, dtype=F64).view(len(mean), 1, -1).expand(-1, len(mean), -1)
    return mean, torch.full_like(mean, log_std)


def linear_critic(slopes):
    """Critics Q_c,i(s, a) = slopes[c][i] * (sum of a)."""
    slopes = torch.as_tensor(slopes, dtype=F64)  # [2, N]
    return lambda obs, actions: slopes[:, :, None] * actions.sum(-1)


def rate(policies, qf, alpha=None, noise=None):
    """q_switch in states of zeros."""
    return q_switch(*policies, qf, torch.zeros(len(policies[0]), 2, dtype=F64), alpha, noise)


# The double loop


def loop_q_switch(policies, critics, obs, alpha=None, noise=None):
    """Eq. 2 of the paper by single networks and single actions: scores [N][P].

    policies[j] maps a state to mean and log std before tanh, critics[i] are two functions of state and action.
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
                score = min(q1(x).item(), q2(x).item())
                if alpha is not None:
                    score -= alpha[i].item() * squashed.log_prob(action).sum().item()
                samples.append(score)
            scores[i].append(sum(samples) / len(samples))
    return scores


@pytest.fixture(scope="session")
def plain_networks(unstack):
    """A function (actor, qf) -> their policies and pairs of critics, as `loop_q_switch` takes them."""

    def plain_networks(actor, qf):
        nets = [unstack(actor.net, j) for j in range(actor.N)]
        policies = [lambda x, net=net: net(x).chunk(2) for net in nets]
        return policies, [(unstack(qf.net, i), unstack(qf.net, actor.N + i)) for i in range(actor.N)]

    return plain_networks


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
def test_q_switch_equals_double_loop(plain_networks, N, O, A, K, hidden_sizes, entropy, seed):
    torch.manual_seed(seed)
    actor, qf = Actor(N, O, A, hidden_sizes).double(), Critic(N, O, A, hidden_sizes).double()
    for parameter in [*actor.parameters(), *qf.parameters()]:
        parameter *= 3  # so that policies and critics differ by more than a start's
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


def test_double_loop_sees_every_choice():
    """At random networks the switch does choose others and own, so that the comparison above is not of constants."""
    torch.manual_seed(0)
    N, obs, chosen = 4, torch.zeros(4, 2, dtype=F64), []
    for _ in range(50):
        actor, qf = Actor(N, 2, 1, (8,)).double(), Critic(N, 2, 1, (8,)).double()
        chosen.append(q_switch(*actor(obs.unsqueeze(0)), qf, obs)[0])
    counts = torch.stack([torch.bincount(row, minlength=N) for row in torch.stack(chosen).T])
    assert (counts >= 3).all()


class PlainPolicy(nn.Module):
    """A policy of one task, as a program without stacks has it: obs [B, O] -> mean and log std [B, A]."""

    def __init__(self, O, A):
        super().__init__()
        self.mean, self.log_std = nn.Sequential(nn.Linear(O, 8), nn.Tanh(), nn.Linear(8, A)), nn.Linear(O, A)

    def forward(self, obs):
        return self.mean(obs), self.log_std(obs)


@torch.no_grad()
@pytest.mark.parametrize("K", [0, 2])
def test_q_switch_of_lists_of_modules(K):
    """q_switch serves other programs too, whose policies and critics are lists of modules."""
    torch.manual_seed(0)
    N, O, A = 4, 3, 2
    policies = [PlainPolicy(O, A).double() for _ in range(N)]
    critics = [[nn.Sequential(nn.Linear(O + A, 8), nn.ReLU(), nn.Linear(8, 1)).double() for _ in "12"] for _ in "1234"]
    obs = torch.randn(N, O, dtype=F64)
    alpha, noise = (torch.rand(N, dtype=F64), torch.randn(K, N, N, A, dtype=F64)) if K else (None, None)

    mean, log_std = (torch.stack(outputs) for outputs in zip(*(policy(obs) for policy in policies), strict=True))

    def qf(obs, actions):
        pairs = zip(critics, torch.cat([obs, actions], dim=-1), strict=True)
        return torch.stack([torch.stack([q1(x), q2(x)]).squeeze(-1) for (q1, q2), x in pairs], dim=1)

    chosen, scores = q_switch(mean, log_std, qf, obs, alpha, noise)
    expected = torch.tensor(loop_q_switch(policies, critics, obs, alpha, noise), dtype=F64)
    assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(chosen, expected.argmax(1)) and len(chosen.unique()) > 1


# Ties


@pytest.mark.parametrize("K", [0, 1, 3])
@pytest.mark.parametrize("N", [1, 2, 5])
def test_tie_of_all_goes_to_own_policy(N, K):
    """Critics that answer the same to every action."""
    torch.manual_seed(0)
    policies = constant_policies(torch.randn(N, 3), log_std=0.0)
    noise = torch.randn(K, N, N, 3, dtype=F64) if K else None
    chosen, scores = rate(policies, linear_critic([[0.0] * N] * 2), noise=noise)
    assert chosen.tolist() == list(range(N))
    assert (scores == 0).all()


def test_tie_with_own_policy_goes_to_own_and_of_others_to_the_lowest():
    """Five policies; 0, 2 and 4 do one thing, 1 and 3 another."""
    policies = constant_policies([-1.0, 1, -1, 1, -1])
    assert rate(policies, linear_critic([[1.0] * 5] * 2))[0].tolist() == [1, 1, 1, 3, 1]
    assert rate(policies, linear_critic([[-1.0] * 5] * 2))[0].tolist() == [0, 0, 2, 0, 4]


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_what_counts_as_a_tie(offset):
    """A hundred-thousandth of the largest score, or of 1 if that is smaller: more than rounding, less than a choice."""
    tolerance = 1e-5 * max(1, abs(offset))
    policies = constant_policies([0.0, 0.5, 1])
    for gain, winner in ((0.5, 0), (2.0, 1)):
        table = offset + tolerance * torch.tensor([[0, gain, -gain]] * 3, dtype=F64)
        chosen, scores = rate(policies, lambda obs, actions, table=table: table.expand(2, -1, -1))
        assert torch.equal(scores, table)
        assert chosen[0] == winner and chosen[1] == 1


def identical_policies(dtype):
    """q_switch of copies of one policy with one noise each: yields what it chose and its scores."""
    for N in range(1, 12):
        for K in (0, 1, 3):
            torch.manual_seed(N)
            actor, qf = Actor(N, 7, 3, (64, 64)).to(dtype), Critic(N, 7, 3, (64, 64)).to(dtype)
            with torch.no_grad():
                for parameter in actor.parameters():
                    parameter.copy_(parameter[:1].clone().expand_as(parameter))
            noise = torch.randn(K, 1, N, 3, dtype=dtype).expand(-1, N, -1, -1) if K else None
            obs, alpha = torch.randn(N, 7, dtype=dtype), torch.ones(N, dtype=dtype)
            yield q_switch(*actor(obs.unsqueeze(0)), qf, obs, alpha, noise)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_identical_policies_score_alike(dtype, tolerance):
    for _, scores in identical_policies(dtype):
        assert_close(scores, scores[:, :1].expand_as(scores), rtol=tolerance, atol=tolerance)


def test_identical_policies_act_for_their_own_task():
    for dtype in (torch.float32, torch.float64):
        for chosen, _ in identical_policies(dtype):
            assert chosen.tolist() == list(range(len(chosen)))


# What is rated


def test_minimum_of_the_twins_scores():
    """Actions near -1, 0, 1; Q1 = a and Q2 = -a each would choose an end, their mean ties, the minimum is best at 0."""
    chosen, scores = rate(constant_policies([-2.0, 0, 2]), linear_critic([[1.0] * 3, [-1.0] * 3]))
    assert chosen.tolist() == [1, 1, 1]
    assert_close(scores, torch.tensor([[-math.tanh(2), 0, -math.tanh(2)]] * 3, dtype=F64))


def test_task_scores_by_its_own_critic_and_temperature():
    """Task 0 likes large actions, task 1 small ones, task 2 nothing but entropy."""
    mean, log_std = constant_policies([-1.0, 0, 1])
    log_std = torch.tensor([-3.0, -2, -1], dtype=F64).view(3, 1, 1).expand_as(mean)
    qf = linear_critic([[1.0, -1, 0]] * 2)
    alpha = torch.tensor([1e-6, 1e-6, 0.7], dtype=F64)
    chosen, scores = rate((mean, log_std), qf, alpha)
    assert chosen[:2].tolist() == [2, 0]
    density = [
        -s - math.log(2 * math.pi) / 2 - math.log(1 - math.tanh(m) ** 2) for m, s in ((-1, -3), (0, -2), (1, -1))
    ]
    assert_close(scores[2], torch.tensor([-0.7 * d for d in density], dtype=F64))
    assert chosen[2] == max(range(3), key=lambda j: -density[j])
    assert torch.equal(rate((mean, log_std), qf)[1][2], torch.zeros(3, dtype=F64))


@pytest.mark.parametrize("K", [0, 1, 3])
def test_all_samples_or_the_mean_action_are_rated(K):
    torch.manual_seed(0)
    mean, log_std = constant_policies([[-0.5, 0.2], [0.1, 0.4], [0.7, -0.3]], log_std=-0.3)
    noise = torch.randn(K, 3, 3, 2, dtype=F64) if K else None  # [K, P, N, A]
    _, scores = rate((mean, log_std), linear_critic([[1.0] * 3] * 2), noise=noise)
    for i in range(3):
        for j in range(3):
            samples = mean[j, i] + math.exp(-0.3) * noise[:, j, i] if K else mean[j, i]
            assert_close(scores[i, j], torch.tanh(samples).sum(-1).mean())


@torch.no_grad()
def test_many_samples_approach_the_integral(unstack):
    """For A = 1 the score tends to E_{a ~ pi_j}[min Q_i(s, a)] + alpha_i H[pi_j], by quadrature before the tanh."""
    torch.manual_seed(3)
    N, O = 3, 2
    actor, qf = Actor(N, O, 1, (16,)).double(), Critic(N, O, 1, (16,)).double()
    for parameter in [*actor.parameters(), *qf.parameters()]:
        parameter *= 2
    alpha, obs = torch.tensor([0.1, 0.5, 1.0], dtype=F64), torch.randn(N, O, dtype=F64)

    grid = torch.linspace(-9, 9, 40_001, dtype=F64)
    weight = Normal(torch.zeros((), dtype=F64), 1.0).log_prob(grid).exp()
    integral, deviation = torch.zeros(N, N, dtype=F64), torch.zeros(N, N, dtype=F64)
    for i in range(N):
        for j in range(N):
            mean, log_std = unstack(actor.net, j)(obs[i])
            x = mean + log_std.exp() * grid
            policy = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
            a = policy.transforms[0](x)
            inputs = torch.cat([obs[i].expand(len(a), O), a[:, None]], dim=1)
            q = torch.minimum(unstack(qf.net, i)(inputs), unstack(qf.net, N + i)(inputs))[:, 0]
            value = q - alpha[i] * policy.log_prob(a)
            integral[i, j] = torch.trapezoid(weight * value, grid)
            deviation[i, j] = torch.trapezoid(weight * (value - integral[i, j]).square(), grid).sqrt()

    assert (deviation > 0.05).all()  # so that the bound shrinks to something that a wrong score does not meet
    for K in (1, 100, 50_000):
        noise = torch.randn(K, N, N, 1, dtype=F64)
        chosen, scores = q_switch(*actor(obs.unsqueeze(0)), qf, obs, alpha, noise)
        assert ((scores - integral).abs() < 4 * deviation / K**0.5).all()
    gaps = integral.topk(2).values
    assert (gaps[:, 0] - gaps[:, 1] > 0.02).all()
    assert torch.equal(chosen, integral.argmax(1))


# The mixture


MEANS = [-1.5, -0.5, 0.5, 1.5]
RING = torch.eye(4).roll(1, dims=1)  # task i prefers policy i + 1 (mod 4) to all others


def make_mixture(args, own_policy_prob=0.0, table=RING, log_std=(-20.0,) * 4, **options):
    """A Mixture of constant policies with mean MEANS before tanh, which critics of task i rate by table[i] [N, P]."""
    actor = Actor(len(table), 2, 1, ())
    with torch.no_grad():
        actor.net.layers[0].weight.zero_()
        actor.net.layers[0].bias.copy_(torch.tensor([MEANS, log_std]).T.unsqueeze(1))

    def qf(obs, actions):  # [N, B, 1]
        policies = (actions - torch.tensor(MEANS).tanh()).abs().argmin(-1)  # [N, B]
        return table.gather(1, policies).expand(2, -1, -1)

    agent = SimpleNamespace(actor=actor, qf=qf, log_alpha=torch.zeros(len(table)))
    return Mixture(agent, args, own_policy_prob, **options)


def act(mixture, episode_lengths=(0, 0, 0, 0)):
    """Act in states of zeros; the actions [N, 1] as a tensor."""
    return torch.as_tensor(mixture.act(np.zeros((4, 2), np.float32), np.array(episode_lengths)))


def who_acted(actions):
    """Which of the constant policies, if they are narrow, gave each action [N, 1]."""
    return (actions - torch.tensor(MEANS).tanh()).abs().argmin(1)


def test_defaults_are_the_papers_experiments():
    args = Args()
    assert (args.qmp, args.switch_samples, args.switch_entropy, args.switch_rule) == (True, 0, False, "argmax")
    assert (args.switch_period, args.own_policy_prob, args.alpha) == (1, 0.0, 1.0)


@torch.no_grad()
@pytest.mark.parametrize("K, entropy", [(0, False), (1, True), (3, False), (3, True)])
def test_what_the_mixture_gives_to_the_switch(monkeypatch, K, entropy):
    """Every policy in the state of every task, noise for K samples, temperatures if entropy counts; the best acts."""
    torch.manual_seed(0)
    N, O, A = 3, 5, 2
    args = Args(hidden_sizes=(16,), switch_samples=K, switch_entropy=entropy)
    agent = Agent(N, O, A, args)
    agent.log_alpha.copy_(torch.randn(N))
    mixture, calls, noises = Mixture(agent, args, 0.0), [], []
    monkeypatch.setattr(qmp_sac, "q_switch", lambda *inputs: calls.append((inputs, q_switch(*inputs))) or calls[-1][1])
    for _ in range(200 if K else 1):
        obs, calls[:] = np.random.default_rng(0).normal(size=(N, O)), []
        mixture.act(obs, np.zeros(N, int))
        (((mean, log_std, qf, given_obs, alpha, noise), (chosen, _)),) = calls
        states = torch.as_tensor(obs, dtype=torch.float32)
        assert qf is agent.qf and torch.equal(given_obs, states)
        for j in range(N):
            for got, expected in zip((mean, log_std), agent.actor(states.expand(N, N, O)), strict=True):
                assert_close(got[j], expected[j])
        assert torch.equal(mixture.policies, chosen)
        assert torch.equal(alpha, agent.log_alpha.exp()) if entropy else alpha is None
        assert noise.shape == (K, N, N, A) if K else noise is None
        noises += [noise.flatten()] if K else []
    if K:
        draws = torch.cat(noises)
        assert abs(draws.mean()) < 4 / len(draws) ** 0.5 and abs(draws.std() - 1) < 4 / len(draws) ** 0.5


@pytest.mark.parametrize("K", [0, 1, 3])
def test_a_fresh_draw_of_the_chosen_policy_is_executed(K):
    """Not its mean, nor a sample that was rated: those that made it win are better than its draws."""
    torch.manual_seed(0)
    means, stds, turns = torch.tensor(MEANS), torch.tensor([0.2, 0.3, 0.5, 0.4]), 3000
    mixture = make_mixture(Args(switch_samples=K), log_std=stds.log().tolist())
    mixture.agent.qf = lambda obs, actions: actions.sum(-1).expand(2, -1, -1)
    noise, policies = torch.zeros(turns, 4), torch.zeros(turns, 4, dtype=torch.long)
    for turn in range(turns):
        x = act(mixture).atanh()[:, 0]
        policies[turn] = mixture.policies
        noise[turn] = (x - means[mixture.policies]) / stds[mixture.policies]
    for policy in (2, 3) if K == 1 else (3,):  # the others do not win often enough
        draws = noise[policies == policy]
        assert len(draws) > 200
        assert abs(draws.mean()) < 4 / len(draws) ** 0.5 and abs(draws.std() - 1) < 4 / len(draws) ** 0.5
    assert K or (policies == 3).all()  # its mean action is rated best
    correlation = torch.corrcoef(noise.T).fill_diagonal_(0)  # of the tasks
    assert correlation.abs().max() < 4 / turns**0.5


def test_mean_actions():
    """The mean action of the policy that acts, whatever the random numbers are, by mixture and by own policies."""
    means = torch.tensor(MEANS).tanh()
    for own_policy_prob, policies in ((0.0, [1, 2, 3, 0]), (1.0, [0, 1, 2, 3])):
        mixture = make_mixture(Args(), own_policy_prob, log_std=[1.0] * 4, mean_actions=True)
        for seed in (0, 1):
            torch.manual_seed(seed)
            assert_close(act(mixture), means[policies].unsqueeze(1))
            assert mixture.policies.tolist() == policies


def test_draws_follow_the_uniform_rule():
    """Chi-square of who acts, whatever the scores are."""
    table = torch.tensor([[0.0, 0.3, 0.6, 0.9], [1, 1, 1, 1], [0, -1, 0.5, 0.2], [-0.5, 0.5, 0, 0.1]])
    mixture = make_mixture(Args(switch_rule="uniform"), table=table)
    torch.manual_seed(0)
    turns = 2500
    counts, own = torch.zeros(4, 4), torch.arange(4)
    for _ in range(turns):
        assert torch.equal(who_acted(act(mixture)), mixture.policies)
        counts[own, mixture.policies] += 1
    assert torch.equal(mixture.counts, counts.double())
    chi_square = ((counts - turns / 4).square() / (turns / 4)).sum(1)
    assert (chi_square < 21.1).all()  # 3 degrees of freedom, one in ten thousand
    wrong = turns * torch.softmax(table, dim=1)  # draws by the scores would not pass
    assert ((counts - wrong).square() / wrong).sum(1).max() > 100


@pytest.mark.parametrize("period", [1, 3])
def test_choice_is_kept_for_a_period_of_the_episode(period):
    """Each task chooses in the steps of its own episode that the period divides, and keeps its choice between them."""
    torch.manual_seed(0)
    table = torch.zeros(4, 4)
    mixture, lengths, kept = make_mixture(Args(switch_period=period), table=table), torch.arange(4), 0
    assert mixture.policies.tolist() == [0, 1, 2, 3]  # until they choose, tasks act by their own policies
    for _ in range(300):
        before = mixture.policies.clone()
        table.copy_(torch.rand(4, 4))
        assert torch.equal(who_acted(act(mixture, lengths)), mixture.policies)
        due = lengths % period == 0
        assert torch.equal(mixture.policies, torch.where(due, table.argmax(1), before))
        kept += (~due & (table.argmax(1) != before)).sum()
        lengths = torch.where(torch.rand(4) < 0.1, 0, lengths + 1)
    assert kept == 0 if period == 1 else kept > 300


@pytest.mark.parametrize("own_policy_prob", [0.0, 0.7])
def test_frequency_of_own_policy(own_policy_prob):
    torch.manual_seed(0)
    args = Args(own_policy_prob=own_policy_prob)
    mixture, own, turns = make_mixture(args, own_policy_prob), torch.arange(4), 2000
    skipped = torch.zeros(turns, 4, dtype=F64)
    for turn in range(turns):
        policies = who_acted(act(mixture))
        assert torch.equal(policies, mixture.policies)
        assert ((policies == own) | (policies == (own + 1) % 4)).all()
        skipped[turn] = (policies == own).double()
    bound = 4 * (own_policy_prob * (1 - own_policy_prob) / turns) ** 0.5
    assert ((skipped.mean(0) - own_policy_prob).abs() <= bound).all()
    if own_policy_prob:  # tasks skip the switch apart from each other
        correlation = torch.corrcoef(skipped.T).fill_diagonal_(0)
        assert correlation.abs().max() < 4 / turns**0.5


def test_own_policies_are_kept_for_a_period_too():
    torch.manual_seed(0)
    mixture, own = make_mixture(Args(switch_period=5, own_policy_prob=0.5), 0.5), torch.arange(4)
    steps = torch.stack([(act(mixture, [step % 20] * 4), mixture.policies == own)[1] for step in range(1000)])
    shares = steps.view(200, 5, 4).double().mean(1)
    assert ((shares == 0) | (shares == 1)).all()
    assert ((shares.mean(0) - 0.5).abs() < 4 * (0.25 / 200) ** 0.5).all()


def test_own_policies_act_as_single_policies_without_critics(unstack):
    """With own_policy_prob 1, as the base method has it: from the global random numbers, a draw for each task."""
    N, O, A = 4, 3, 2
    torch.manual_seed(0)
    agent, own = Agent(N, O, A, Args(hidden_sizes=(16,))), torch.arange(N)
    agent.qf = None
    mixture = Mixture(agent, Args(qmp=False), own_policy_prob=1.0)
    for turn in range(20):
        obs = torch.randn(N, O)
        torch.manual_seed(turn)
        actions, state = mixture.act(obs.numpy(), np.arange(N)), torch.get_rng_state()
        assert torch.equal(mixture.policies, own)
        torch.manual_seed(turn)
        noise = torch.randn(N, A)
        assert torch.equal(torch.get_rng_state(), state)
        for i in range(N):
            mean, log_std = unstack(agent.actor.net, i)(obs[i]).detach().chunk(2)
            assert_close(torch.tensor(actions[i]), torch.tanh(mean + log_std.exp() * noise[i]))
    assert torch.equal(mixture.counts, 20 * torch.eye(N).double())


@torch.no_grad()
@pytest.mark.parametrize("rule", ["argmax", "uniform"])
def test_counts_are_plain_counts(rule):
    """Steps in which each policy acted for each task."""
    torch.manual_seed(0)
    N, O, A = 3, 2, 2
    args = Args(hidden_sizes=(16,), switch_rule=rule, switch_period=3, own_policy_prob=0.3)
    agent = Agent(N, O, A, args)
    for parameter in agent.parameters():
        parameter *= 3
    mixture, counts, lengths = Mixture(agent, args, 0.3), torch.zeros(N, N), torch.arange(N)
    for _ in range(60):
        mixture.act(torch.randn(N, O).numpy(), lengths.numpy())
        for i, j in enumerate(mixture.policies.tolist()):
            counts[i, j] += 1
        lengths += 1
    assert (counts > 0).all() and torch.equal(mixture.counts, counts.double())
