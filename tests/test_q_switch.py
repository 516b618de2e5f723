"""The Q-switch of qmp_sac.py: q_switch against a plain double loop, and what select_actions makes of it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

import qmp_sac
from qmp_sac import Actor, Args, Critic, q_switch, select_actions, squash

F64 = torch.float64


def standard_gumbel(*shape):
    return -torch.empty(*shape, dtype=F64).exponential_().log()


def constant_actor(mean, log_std=-20.0):
    """Policies that do not look: policy j's mean before tanh is mean[j] (or [j][A]), its log std the one given."""
    mean = torch.as_tensor(mean, dtype=F64).view(len(mean), 1, -1)  # [N, 1, A]
    actor = Actor(len(mean), 2, mean.shape[-1], ()).double()
    with torch.no_grad():
        actor.net[0].weight.zero_()
        actor.net[0].bias.copy_(torch.cat([mean, torch.full_like(mean, log_std)], dim=-1))
    return actor


def linear_critic(slopes, A=1):
    """Critics Q_c,i(s, a) = slopes[c][i] * (sum of a)."""
    slopes = torch.as_tensor(slopes, dtype=F64)  # [2, N]
    N = slopes.shape[1]
    qf = Critic(N, 2, A, ()).double()
    with torch.no_grad():
        qf.net[0].bias.zero_()
        qf.net[0].weight.zero_()
        qf.net[0].weight[:, 2:] = slopes.view(2 * N, 1, 1)
    return qf


def preferring_critic(actor, table, width=0.01):
    """Critics, both alike, that score policy j of a `constant_actor` (A = 1) at table[i][j] in task i.

    A sum of one hat function of the action for each policy, made of three ReLUs each.
    """
    table = torch.as_tensor(table, dtype=F64)  # [N, P]
    N = len(table)
    centres = torch.tanh(actor.net[0].bias[:, 0, 0].detach())  # [P]
    assert torch.pdist(centres[:, None]).min() > 2 * width
    qf = Critic(N, 2, 1, (3 * N,)).double()
    first, last = qf.net[0], qf.net[2]
    with torch.no_grad():
        first.weight.zero_()
        first.weight[:, 2] = 1 / width
        first.bias.copy_((torch.tensor([1.0, 0, -1]) - centres[:, None] / width).view(1, 1, 3 * N))
        hats = table[:, :, None] * torch.tensor([1.0, -2, 1])  # [N, P, 3]
        last.weight.copy_(hats.view(N, 3 * N, 1).repeat(2, 1, 1))
        last.bias.zero_()
    return qf


def switch(actor, qf, args, alpha=None, gumbel=None, noise=None):
    """q_switch with no noise, no Gumbel and alpha 1 unless given; the observations are zeros, float64."""
    N, A = actor.net[-1].bias.shape[0], actor.net[-1].bias.shape[-1] // 2
    alpha = torch.ones(N, dtype=F64) if alpha is None else alpha
    noise = torch.zeros(N, N, max(args.switch_samples, 1), A, dtype=F64) if noise is None else noise
    gumbel = torch.zeros(N, N, dtype=F64) if gumbel is None else gumbel
    return q_switch(actor, qf, alpha, torch.zeros(N, 2, dtype=F64), noise, gumbel, args)


# The double loop


def loop_q_switch(policies, critics, alpha, obs, noise, gumbel, args):
    """Eq. 2 of the paper by single networks and single actions.

    policies[j] and critics[c][i] are plain networks. Returns lists: what decides [N][P], first actions, scores [N][P].
    """
    N, K = len(policies), args.switch_samples
    all_keys, first_actions, all_scores = [], [], []
    for i in range(N):
        scores, actions = [], []
        for j in range(N):
            mean, log_std = policies[j](obs[i]).chunk(2)
            std = log_std.clamp(-20, 2).exp()
            policy = TransformedDistribution(Normal(mean, std), TanhTransform(cache_size=1))
            samples = []
            for n in [torch.zeros_like(mean)] if K == 0 else noise[j, i]:
                action = policy.transforms[0](mean + std * n)
                x = torch.cat([obs[i], action])
                score = min(critics[0][i](x).item(), critics[1][i](x).item())
                if args.switch_entropy:
                    score -= alpha[i].item() * policy.log_prob(action).sum().item()
                samples.append(score)
            scores.append(sum(samples) / len(samples))
            actions.append(torch.tanh(mean + std * noise[j, i, 0]))
        if args.switch_rule == "argmax":
            keys = scores
        elif args.switch_rule == "softmax":
            keys = [scores[j] / args.switch_temperature + gumbel[i, j].item() for j in range(N)]
        else:
            keys = gumbel[i].tolist()
        all_keys.append(keys)
        first_actions.append(torch.stack(actions))
        all_scores.append(scores)
    return all_keys, first_actions, all_scores


@torch.no_grad()
@given(
    N=st.integers(1, 5),
    O=st.integers(1, 4),
    A=st.integers(1, 3),
    K=st.sampled_from([0, 1, 3]),
    hidden_sizes=st.sampled_from([(), (8,), (7, 5)]),
    rule=st.sampled_from(["argmax", "softmax", "uniform"]),
    entropy=st.booleans(),
    temperature=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_q_switch_equals_double_loop(unstack, N, O, A, K, hidden_sizes, rule, entropy, temperature, seed):
    torch.manual_seed(seed)
    actor, qf = Actor(N, O, A, hidden_sizes).double(), Critic(N, O, A, hidden_sizes).double()
    for parameter in [*actor.parameters(), *qf.parameters()]:
        parameter *= 3  # so that policies and critics differ by more than a start's
    alpha, obs = torch.rand(N, dtype=F64) + 0.01, 2 * torch.randn(N, O, dtype=F64)
    noise, gumbel = torch.randn(N, N, max(K, 1), A, dtype=F64), standard_gumbel(N, N)
    args = Args(switch_samples=K, switch_rule=rule, switch_entropy=entropy, switch_temperature=temperature)

    chosen, actions, scores = q_switch(actor, qf, alpha, obs, noise, gumbel, args)

    policies = [unstack(actor.net, j) for j in range(N)]
    critics = [[unstack(qf.net, c * N + i) for i in range(N)] for c in range(2)]
    all_keys, first_actions, all_scores = loop_q_switch(policies, critics, alpha, obs, noise, gumbel, args)
    assert chosen.shape == (N,) and actions.shape == (N, N, A) and scores.shape == (N, N)
    for choice, keys in zip(chosen.tolist(), all_keys, strict=True):
        assert keys[choice] > max(keys) - 1e-4 * max(1, abs(max(keys)))  # ties have their own tests
    assert_close(actions, torch.stack(first_actions), rtol=1e-9, atol=1e-12)
    assert_close(scores, torch.tensor(all_scores, dtype=F64), rtol=1e-8, atol=1e-8)


def test_double_loop_sees_every_choice():
    """At random networks the switch does choose others and own, so that the comparison above is not of constants."""
    torch.manual_seed(0)
    N, chosen = 4, []
    for _ in range(50):
        actor, qf = Actor(N, 2, 1, (8,)).double(), Critic(N, 2, 1, (8,)).double()
        chosen.append(switch(actor, qf, Args(), noise=torch.randn(N, N, 1, 1, dtype=F64))[0])
    counts = torch.stack([torch.bincount(row, minlength=N) for row in torch.stack(chosen).T])
    assert (counts >= 3).all()


# Ties


@pytest.mark.parametrize("K", [0, 1, 3])
@pytest.mark.parametrize("N", [1, 2, 5])
def test_tie_of_all_goes_to_own_policy(N, K):
    """Critics that answer the same to every action."""
    torch.manual_seed(0)
    actor, qf = Actor(N, 2, 3, (8,)).double(), linear_critic([[0.0] * N] * 2, A=3)
    noise = torch.randn(N, N, max(K, 1), 3, dtype=F64)
    chosen, _, scores = switch(actor, qf, Args(switch_samples=K, switch_entropy=False), noise=noise)
    assert chosen.tolist() == list(range(N))
    assert (scores == 0).all()


def test_tie_with_own_policy_goes_to_own_and_of_others_to_the_lowest():
    """Five policies; 0, 2 and 4 do one thing, 1 and 3 another."""
    actor = constant_actor([-1.0, 1, -1, 1, -1])
    args = Args(switch_entropy=False)
    chosen, _, _ = switch(actor, linear_critic([[1.0] * 5] * 2), args)
    assert chosen.tolist() == [1, 1, 1, 3, 1]
    chosen, _, _ = switch(actor, linear_critic([[-1.0] * 5] * 2), args)
    assert chosen.tolist() == [0, 0, 2, 0, 4]


def identical_policies(dtype):
    """q_switch of copies of one policy with one noise each: yields what it chose and its scores."""
    for N in range(1, 12):
        for K in (0, 1, 3):
            torch.manual_seed(N)
            actor, qf = Actor(N, 7, 3, (64, 64)).to(dtype), Critic(N, 7, 3, (64, 64)).to(dtype)
            with torch.no_grad():
                for parameter in actor.parameters():
                    parameter.copy_(parameter[:1].clone().expand_as(parameter))
            noise = torch.randn(1, N, max(K, 1), 3, dtype=dtype).expand(N, -1, -1, -1)
            obs, alpha, gumbel = torch.randn(N, 7, dtype=dtype), torch.ones(N, dtype=dtype), torch.zeros(N, N)
            chosen, _, scores = q_switch(actor, qf, alpha, obs, noise, gumbel, Args(switch_samples=K))
            yield chosen, scores


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_identical_policies_score_alike(dtype, tolerance):
    for _, scores in identical_policies(dtype):
        assert_close(scores, scores[:, :1].expand_as(scores), rtol=tolerance, atol=tolerance)


def test_identical_policies_act_for_their_own_task():
    for dtype in (torch.float32, torch.float64):
        for chosen, _ in identical_policies(dtype):
            assert chosen.tolist() == list(range(len(chosen)))


# What is scored, what is executed


def test_minimum_of_the_twins_scores():
    """Actions near -1, 0, 1; Q1 = a and Q2 = -a each would choose an end, their mean ties, the minimum is best at 0."""
    actor, args = constant_actor([-2.0, 0, 2]), Args(switch_entropy=False)
    chosen, _, scores = switch(actor, linear_critic([[1.0] * 3, [-1.0] * 3]), args)
    assert chosen.tolist() == [1, 1, 1]
    assert_close(scores, torch.tensor([[-math.tanh(2), 0, -math.tanh(2)]] * 3, dtype=F64))


def test_task_scores_by_its_own_critic_and_temperature():
    """Task 0 likes large actions, task 1 small ones, task 2 nothing but entropy."""
    actor = constant_actor([-1.0, 0, 1])
    with torch.no_grad():
        actor.net[0].bias[:, 0, 1] = torch.tensor([-3.0, -2, -1])
    qf = linear_critic([[1.0, -1, 0]] * 2)
    alpha = torch.tensor([1e-6, 1e-6, 0.7], dtype=F64)
    chosen, _, scores = switch(actor, qf, Args(), alpha=alpha)
    assert chosen[:2].tolist() == [2, 0]
    density = [
        -s - math.log(2 * math.pi) / 2 - math.log(1 - math.tanh(m) ** 2) for m, s in ((-1, -3), (0, -2), (1, -1))
    ]
    assert_close(scores[2], torch.tensor([-0.7 * d for d in density], dtype=F64))
    assert chosen[2] == max(range(3), key=lambda j: -density[j])
    assert torch.equal(switch(actor, qf, Args(switch_entropy=False), alpha=alpha)[2][2], torch.zeros(3, dtype=F64))


@pytest.mark.parametrize("K", [0, 1, 3])
def test_first_sample_is_executed(K):
    """And not the mean action, the best sample, or the last; with K = 0 it does not enter the score."""
    torch.manual_seed(0)
    actor = constant_actor([[-0.5, 0.2], [0.1, 0.4], [0.7, -0.3]], log_std=0.0)
    qf = linear_critic([[1.0] * 3] * 2, A=2)
    noise = torch.randn(3, 3, max(K, 1), 2, dtype=F64)  # [P, N, K, A]
    args = Args(switch_samples=K, switch_entropy=False)
    chosen, actions, scores = switch(actor, qf, args, noise=noise)
    mean = actor.net[0].bias[:, 0, :2].detach()  # [P, A]
    for i in range(3):
        for j in range(3):
            assert_close(actions[i, j], torch.tanh(mean[j] + noise[j, i, 0]))
            scored = torch.tanh(mean[j] + (noise[j, i] if K else 0)).sum(-1).mean()
            assert_close(scores[i, j], scored)
    if K != 1:
        noise[:, :, 0] += 100 if K == 0 else 0
        noise[:, :, 1:] += 100
        _, changed_actions, changed_scores = switch(actor, qf, args, noise=noise)
        assert torch.equal(changed_actions, actions) is (K == 3)
        assert torch.equal(changed_scores, scores) is (K == 0)


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
        noise = torch.randn(N, N, K, 1, dtype=F64)
        args = Args(switch_samples=K)
        chosen, _, scores = q_switch(actor, qf, alpha, obs, noise, torch.zeros(N, N), args)
        assert ((scores - integral).abs() < 4 * deviation / K**0.5).all()
    gaps = integral.topk(2).values
    assert (gaps[:, 0] - gaps[:, 1] > 0.02).all()
    assert torch.equal(chosen, integral.argmax(1))


# Rules that draw


@pytest.mark.parametrize("rule, temperature", [("softmax", 0.5), ("softmax", 2.0), ("uniform", 1.0)])
def test_draws_follow_the_rule(rule, temperature):
    """Chi-square of the choices of select_actions, so that its Gumbel noise is tested too."""
    actor = constant_actor([-1.5, -0.5, 0.5, 1.5])
    table = torch.tensor([[0.0, 0.3, 0.6, 0.9], [1, 1, 1, 1], [0, -1, 0.5, 0.2], [-0.5, 0.5, 0, 0.1]], dtype=F64)
    qf = preferring_critic(actor, table)
    args = Args(switch_rule=rule, switch_temperature=temperature, switch_entropy=False)
    assert_close(switch(actor, qf, args)[2], table, rtol=0, atol=1e-6)  # the critics do say what the table says
    generator, turns = torch.Generator().manual_seed(0), 2500
    counts, own = torch.zeros(4, 4, dtype=F64), torch.arange(4)
    obs, due, log_alpha = torch.zeros(4, 2, dtype=F64), torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=F64)
    for _ in range(turns):
        _, policies = select_actions(actor, qf, log_alpha, obs, own, due, args, generator)
        counts[own, policies] += 1
    expected = turns * (torch.softmax(table / temperature, dim=1) if rule == "softmax" else torch.full((4, 4), 0.25))
    chi_square = ((counts - expected).square() / expected).sum(1)
    assert (chi_square < 21.1).all()  # 3 degrees of freedom, one in ten thousand
    # The other rule, or another temperature, would not pass.
    wrong = turns * (
        torch.softmax(2 * table / temperature, dim=1) if rule == "softmax" else torch.softmax(table, dim=1)
    )
    assert ((counts - wrong).square() / wrong).sum(1).max() > 100


# select_actions


@pytest.fixture
def ring():
    """Policies told apart by their actions, and critics that make task i prefer policy i + 1 (mod 4) to all others."""
    actor = constant_actor([-1.5, -0.5, 0.5, 1.5])
    table = torch.eye(4, dtype=F64).roll(1, dims=1)
    return actor, preferring_critic(actor, table), torch.zeros(4, dtype=F64)


def actor_of(actor, actions):
    """Which policy of a `constant_actor` gave each action [N, 1]."""
    return (actions - torch.tanh(actor.net[0].bias[:, 0, 0]).detach()).abs().argmin(1)


@pytest.mark.parametrize("own_policy_prob", [0.0, 0.5, 1.0])
def test_only_tasks_that_are_due_choose_anew(ring, own_policy_prob):
    actor, qf, log_alpha = ring
    args = Args(own_policy_prob=own_policy_prob, switch_entropy=False)
    generator, own, obs = torch.Generator().manual_seed(0), torch.arange(4), torch.zeros(4, 2, dtype=F64)
    torch.manual_seed(0)
    seen = set()
    for _ in range(300):
        policies, due = torch.randint(4, (4,)), torch.rand(4) < 0.4
        before = policies.clone()
        actions, after = select_actions(actor, qf, log_alpha, obs, policies, due, args, generator)
        assert torch.equal(policies, before)
        assert torch.equal(after[~due], policies[~due])
        assert torch.equal(actor_of(actor, actions), after)
        for i in torch.nonzero(due)[:, 0].tolist():
            assert after[i] in (i, (i + 1) % 4)
            seen.add(after[i].item() == i)
    assert seen == {0.0: {False}, 0.5: {False, True}, 1.0: {True}}[own_policy_prob]
    due = torch.zeros(4, dtype=torch.bool)
    assert torch.equal(select_actions(actor, qf, log_alpha, obs, own, due, args, generator)[1], own)


def test_own_policy_prob_one_is_the_base_method(unstack):
    """The same actions and the same global random numbers as --no-qmp, which are those of N single policies."""
    N, O, A = 4, 3, 2
    torch.manual_seed(0)
    actor, qf, log_alpha = Actor(N, O, A, (16,)).double(), Critic(N, O, A, (16,)).double(), torch.zeros(N, dtype=F64)
    own, due = torch.arange(N), torch.ones(N, dtype=torch.bool)
    for turn in range(20):
        obs = torch.randn(N, O, dtype=F64)
        results, states = [], []
        for args in (Args(qmp=False), Args(own_policy_prob=1.0)):
            torch.manual_seed(turn)
            actions, policies = select_actions(actor, qf, log_alpha, obs, own, due, args, torch.Generator())
            assert torch.equal(policies, own)
            results.append(actions)
            states.append(torch.get_rng_state())
        assert torch.equal(*results) and torch.equal(*states)

        torch.manual_seed(turn)
        noise = torch.randn(N, 1, A, dtype=F64)
        for i in range(N):
            mean, log_std = unstack(actor.net, i)(obs[i]).chunk(2)
            assert_close(results[0][i], torch.tanh(mean + log_std.exp() * noise[i, 0]).detach(), rtol=1e-9, atol=1e-12)


def test_no_qmp_ignores_critics_and_switch_flags(ring):
    actor, qf, log_alpha = ring
    own, due, obs = torch.arange(4), torch.ones(4, dtype=torch.bool), torch.zeros(4, 2, dtype=F64)
    for args in (Args(qmp=False), Args(qmp=False, switch_rule="uniform", switch_samples=3, own_policy_prob=0.0)):
        for seed in range(20):
            actions, policies = select_actions(
                actor, qf, log_alpha, obs, own, due, args, torch.Generator().manual_seed(seed)
            )
            assert torch.equal(policies, own) and torch.equal(actor_of(actor, actions), own)


@pytest.mark.parametrize("own_policy_prob", [0.0, 0.7])
def test_frequency_of_own_policy(ring, own_policy_prob):
    actor, qf, log_alpha = ring
    args = Args(own_policy_prob=own_policy_prob, switch_entropy=False)
    generator, turns = torch.Generator().manual_seed(0), 2000
    own, due, obs = torch.arange(4), torch.ones(4, dtype=torch.bool), torch.zeros(4, 2, dtype=F64)
    policies, skipped = own, torch.zeros(turns, 4, dtype=F64)
    for turn in range(turns):
        _, policies = select_actions(actor, qf, log_alpha, obs, policies, due, args, generator)
        assert ((policies == own) | (policies == (own + 1) % 4)).all()
        skipped[turn] = (policies == own).double()
    bound = 4 * (own_policy_prob * (1 - own_policy_prob) / turns) ** 0.5
    assert ((skipped.mean(0) - own_policy_prob).abs() <= bound).all()
    if own_policy_prob:  # tasks skip the switch apart from each other
        correlation = torch.corrcoef(skipped.T).fill_diagonal_(0)
        assert correlation.abs().max() < 4 / turns**0.5


@pytest.mark.parametrize("rule", ["argmax", "softmax", "uniform"])
@pytest.mark.parametrize("K", [0, 3])
def test_switch_leaves_the_global_generator_alone(ring, rule, K):
    """So that what else draws from it, batches and updates, does not depend on the switch's flags."""
    actor, qf, log_alpha = ring
    args = Args(switch_rule=rule, switch_samples=K)
    generator, own, obs = torch.Generator().manual_seed(0), torch.arange(4), torch.zeros(4, 2, dtype=F64)
    state = torch.get_rng_state()
    for due in ([True] * 4, [False, True, False, False]):
        before = generator.get_state()
        select_actions(actor, qf, log_alpha, obs, own, torch.tensor(due), args, generator)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(generator.get_state(), before)


@given(kept=st.lists(st.integers(0, 4), min_size=5, max_size=5), seed=st.integers(0, 2**32))
def test_kept_policies_act_without_a_rating(unstack, kept, seed):
    """Between choices each task's action is a sample of the policy it keeps, however many keep the same one."""
    torch.manual_seed(seed)
    N, O, A = len(kept), 3, 2
    actor, obs, kept = Actor(N, O, A, (16,)).double(), torch.randn(N, O, dtype=F64), torch.tensor(kept)
    generator = torch.Generator().manual_seed(seed)
    due, state = torch.zeros(N, dtype=torch.bool), torch.get_rng_state()
    actions, policies = select_actions(actor, None, torch.zeros(N), obs, kept, due, Args(), generator)
    assert torch.equal(policies, kept)
    torch.set_rng_state(state)
    noise = torch.randn(N, A, dtype=F64)
    for i, j in enumerate(kept):
        mean, log_std = unstack(actor.net, j)(obs[i]).detach().chunk(2)
        assert_close(actions[i], torch.tanh(mean + log_std.exp() * noise[i]), rtol=1e-9, atol=1e-12)


def test_switch_depends_on_its_generator_alone():
    torch.manual_seed(0)
    actor, qf = Actor(4, 2, 3, (16,)), Critic(4, 2, 3, (16,))
    own, due, obs = torch.arange(4), torch.ones(4, dtype=torch.bool), torch.randn(4, 2)
    results = [
        select_actions(actor, qf, torch.zeros(4), obs, own, due, Args(), torch.Generator().manual_seed(seed))[0]
        for seed in (5, 5, 6)
    ]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("K", [0, 1, 3])
@pytest.mark.parametrize("own_policy_prob", [0.0, 0.5])
def test_action_is_that_of_the_chosen_policy(monkeypatch, K, own_policy_prob):
    """select_actions gives q_switch what it asks for, and executes what it returns."""
    N, O, A = 3, 5, 2
    torch.manual_seed(0)
    actor, qf = Actor(N, O, A, (16,)), Critic(N, O, A, (16,))
    log_alpha = torch.randn(N)
    args = Args(switch_samples=K, own_policy_prob=own_policy_prob)
    generator, own = torch.Generator().manual_seed(0), torch.arange(N)
    calls = []

    def recorded(*inputs):
        calls.append((inputs, q_switch(*inputs)))
        return calls[-1][1]

    monkeypatch.setattr(qmp_sac, "q_switch", recorded)
    noises, gumbels, policies = [], [], own
    for _ in range(400):
        obs, due, calls[:] = torch.randn(N, O), torch.rand(N) < 0.8, []
        actions, after = select_actions(actor, qf, log_alpha, obs, policies, due, args, generator)
        if calls:
            ((given_actor, given_qf, alpha, given_obs, noise, gumbel, given_args), (chosen, candidates, _)) = calls[0]
            assert (given_actor, given_qf, given_args) == (actor, qf, args) and torch.equal(given_obs, obs)
            assert_close(alpha, log_alpha.exp())
            assert noise.shape == (N, N, max(K, 1), A) and gumbel.shape == (N, N)
            for i in range(N):
                assert torch.equal(actions[i], candidates[i, after[i]])
                if due[i]:
                    assert after[i] == chosen[i] or (own_policy_prob and after[i] == i)
                # The same action, once more, from the chosen policy and the noise.
                j = after[i]
                mean, log_std = (x[j, 0] for x in actor(obs[i].expand(N, 1, O)))
                assert_close(actions[i], squash(mean, log_std, noise[j, i, 0])[0].detach(), rtol=1e-4, atol=1e-5)
            noises.append(noise.flatten())
            gumbels.append(gumbel.flatten())
        policies = after
    assert len(noises) > 150
    for draws, mean, std in (
        (torch.cat(noises), 0.0, 1.0),
        (torch.cat(gumbels), 0.57722, math.pi / 6**0.5),  # of the standard Gumbel
    ):
        assert abs(draws.mean().item() - mean) < 4 * std / len(draws) ** 0.5
        assert abs(draws.std().item() - std) < 8 * std / len(draws) ** 0.5
