"""Theorem 5.1 of the paper, in numbers, on random tabular MDPs.

N tasks share S states, A actions and transitions P(s'|s, a), and differ in reward r_i, discount and
temperature alpha_i. The soft value of a policy pi in task i solves, here by a linear solve,

    V(s) = sum_a pi(a|s) Q(s, a) + alpha_i H[pi(.|s)]
    Q(s, a) = r_i(s, a) + gamma_i sum_s' P(s'|s, a) V(s')

Proved (to rounding, on every MDP tried):

- One step of the mixture is an improvement: with Q_i the soft Q-value of pi_i, acting in every
  state with the policy that maximises E_{a ~ pi'}[Q_i(s, a)] + alpha_i H[pi'(.|s)] has a soft
  Q-value >= Q_i everywhere, a soft value >= that maximum, and strictly more than pi_i's wherever
  another policy is strictly better. Drawing uniformly instead does not have this property.
- Soft policy iteration that evaluates the mixture in place of each task's policy converges, never
  falling, to the same optimal soft values as plain soft policy iteration and soft value iteration.
- So does what the script does: every task learns about its own policy, only at the states and
  actions that its mixture visits.

The choice itself, its tie-break included, is the script's own `q_switch`. It scores continuous
actions by critics, which cannot hold a table, so two stand-ins take their places: policy j's mean
action carries the number j, and task i's critic answers (i, s, j) with the exact expectation and
entropy, which the script estimates. Those estimates are tested in test_q_switch.py.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmp_sac import q_switch

TIE = 1e-4  # less may count as a tie for the script, which rounds


@dataclass
class MDPs:
    """N tasks over one state and action space: r [N, S, A], P [S, A, S], alpha and gamma [N]."""

    r: np.ndarray
    P: np.ndarray
    alpha: np.ndarray
    gamma: np.ndarray


def random_mdps(rng, N=3, S=5, A=3, gamma=None, alpha=None):
    """Sparse random transitions, rewards in [-1, 1]; gamma in [0, 0.95], alpha in [0.01, 1]."""
    return MDPs(
        r=rng.uniform(-1, 1, (N, S, A)),
        P=rng.dirichlet(np.full(S, 0.3), (S, A)),
        alpha=10 ** rng.uniform(-2, 0, N) if alpha is None else np.full(N, alpha),
        gamma=rng.uniform(0, 0.95, N) if gamma is None else np.full(N, gamma),
    )


def random_policies(rng, N=3, S=5, A=3):
    """[N, S, A], from nearly uniform to nearly deterministic."""
    concentration = 10 ** rng.uniform(-1, 1, (N, S, 1))
    policies = rng.gamma(np.broadcast_to(concentration, (N, S, A))) + 1e-6
    return policies / policies.sum(-1, keepdims=True)


def entropy(policies):
    """[..., A] -> [...]; 0 log 0 = 0, for greedy policies at small temperatures."""
    return -(policies * np.log(np.maximum(policies, 1e-300))).sum(-1)


def backup(mdps, V):
    """Q [N, S, A] of acting once, with V [N, S] from there on."""
    return mdps.r + mdps.gamma[:, None, None] * np.einsum("sat,nt->nsa", mdps.P, V)


def evaluate(mdps, policies):
    """Exact soft Q [N, S, A] and V [N, S] of policy i [N, S, A] in task i."""
    N, S, _ = policies.shape
    V = np.empty((N, S))
    for i in range(N):
        transition = np.einsum("sa,sat->st", policies[i], mdps.P)
        income = (policies[i] * mdps.r[i]).sum(-1) + mdps.alpha[i] * entropy(policies[i])
        V[i] = np.linalg.solve(np.eye(S) - mdps.gamma[i] * transition, income)
    return backup(mdps, V), V


def soft_greedy(mdps, Q):
    """pi_i = softmax(Q_i / alpha_i), the improvement step of soft policy iteration: [N, S, A]."""
    logits = Q / mdps.alpha[:, None, None]
    policies = np.exp(logits - logits.max(-1, keepdims=True))
    return policies / policies.sum(-1, keepdims=True)


def soft_max(mdps, Q):
    """alpha log sum exp(Q / alpha) over actions, the optimal soft value of acting once: [N, S]."""
    top = Q.max(-1)
    alpha = mdps.alpha[:, None]
    return top + alpha * np.log(np.exp((Q - top[..., None]) / alpha[..., None]).sum(-1))


def soft_value_iteration(mdps):
    """The optimal soft V [N, S]."""
    V = np.zeros(mdps.r.shape[:2])
    for _ in range(2000):
        last, V = V, soft_max(mdps, backup(mdps, V))
        if np.abs(V - last).max() < 1e-13:
            return V
    raise AssertionError("soft value iteration did not converge")


class TableCritic:
    """Stands for `Critic`: task i's score of the policy that the action tells, in the state obs."""

    def __init__(self, scores):
        self.scores = torch.as_tensor(scores)  # [N, P, S]

    def __call__(self, obs, actions):
        task = torch.arange(len(obs)).unsqueeze(1)  # [N, 1]
        policy = (torch.atanh(actions[..., 0]) - 1).round().long()  # [N, B]
        return self.scores[task, policy, obs[..., 0].long()].repeat(2, 1, 1)  # [2, N, B]


def score_table(mdps, policies, Q):
    """E_{a ~ pi_j(.|s)}[Q_i(s, a)] + alpha_i H[pi_j(.|s)]: [N, P, S]."""
    scores = np.einsum("jsa,isa->ijs", policies, Q) + mdps.alpha[:, None, None] * entropy(policies)
    return scores.round(12)  # so that equal policies tie, whatever the order of the sums was


def choose(scores):
    """Which policy acts for each task in each state [N, S], by `q_switch` on scores [N, P, S]."""
    N, _, S = scores.shape
    # Whatever they see, policy j's mean action is tanh(j + 1).
    mean = torch.arange(1.0, N + 1, dtype=torch.float64).view(N, 1, 1).expand(N, N, 1)  # [P, N, A]
    choice = np.empty((N, S), dtype=int)
    for s in range(S):
        obs = torch.full((N, 1), float(s), dtype=torch.float64)
        policies, scored = q_switch(mean, torch.zeros_like(mean), TableCritic(scores), obs)
        # The stand-ins do carry the table.
        np.testing.assert_array_equal(scored.numpy(), scores[:, :, s])
        choice[:, s] = policies.numpy()
    return choice


def shared(scores, choice):
    """In how many tasks and states another policy was chosen for a gain that is no tie."""
    N, _, S = scores.shape
    own = np.arange(N)
    return (scores[own[:, None], choice, np.arange(S)] > scores[own, own] + TIE).sum()


def mixture(policies, choice):
    """pi_i^mix [N, S, A] from the policies [P, S, A] and who acts [N, S]."""
    return policies[choice, np.arange(policies.shape[1])]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["random", "greedy", "copies"]))
def test_mixture_improves_at_every_state_and_action(seed, kind):
    rng = np.random.default_rng(seed)
    mdps, policies = random_mdps(rng), random_policies(rng)
    if kind == "greedy":  # as late in training, when each policy is good at its own task
        policies = soft_greedy(mdps, evaluate(mdps, policies)[0])
    if kind == "copies":
        policies = np.broadcast_to(policies[:1], policies.shape)
    Q, V = evaluate(mdps, policies)
    scores = score_table(mdps, policies, Q)
    own = np.arange(len(V))
    # Acting once with the own policy is worth its own value.
    np.testing.assert_allclose(scores[own, own], V, rtol=1e-9, atol=1e-9)
    choice = choose(scores)
    if kind == "copies":
        assert (choice == own[:, None]).all()

    Q_mix, V_mix = evaluate(mdps, mixture(policies, choice))
    assert (Q_mix >= Q - 1e-9).all()
    assert (V_mix >= scores.max(1) - TIE).all()
    gain = scores.max(1) - scores[own, own]  # [N, S]
    assert (V_mix > V)[gain > TIE].all()
    assert (choice != own[:, None])[gain > TIE].all() and (choice == own[:, None])[gain == 0].all()


def test_improvement_is_strict_and_from_the_rule():
    """In twenty MDPs QMP is never worse, most often better; drawing uniformly is often worse."""
    gains, uniform_gains = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mdps, policies = random_mdps(rng), random_policies(rng)
        Q, V = evaluate(mdps, policies)
        scores = score_table(mdps, policies, Q)
        gains.append(evaluate(mdps, mixture(policies, choose(scores)))[1] - V)
        uniform_gains.append(
            evaluate(mdps, mixture(policies, rng.integers(len(V), size=V.shape)))[1] - V
        )
    gains, uniform_gains = np.array(gains), np.array(uniform_gains)  # [seeds, N, S]
    assert gains.min() > -1e-9 and (gains.max(axis=(1, 2)) > 0.1).all()
    assert (uniform_gains.min(axis=(1, 2)) < -0.1).mean() > 0.5


def test_entropy_term_belongs_to_the_theorem():
    """Without it the soft value can fall below the own policy's."""
    losses = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mdps, policies = random_mdps(rng, alpha=1.0), random_policies(rng)
        Q, V = evaluate(mdps, policies)
        choice = choose(np.einsum("jsa,isa->ijs", policies, Q))
        losses.append((evaluate(mdps, mixture(policies, choice))[1] - V).min())
    assert min(losses) < -0.1


def soft_policy_iteration(mdps, policies, switch):
    """Improve and evaluate until values stand still; with `switch`, evaluate the mixture instead.

    Returns V of every round [rounds, N, S], and how often another task's policy was chosen.
    """
    Q, V = evaluate(mdps, policies)
    values, count = [V], 0
    for _ in range(200):
        policies = soft_greedy(mdps, Q)
        Q, V = evaluate(mdps, policies)
        if switch:
            scores, own_V = score_table(mdps, policies, Q), V
            choice = choose(scores)
            count += shared(scores, choice)
            Q, V = evaluate(mdps, mixture(policies, choice))
            assert (V >= own_V - 1e-9).all()
        values.append(V)
        if np.abs(values[-1] - values[-2]).max() < 1e-12:
            return np.array(values), count
    raise AssertionError("soft policy iteration did not converge")


def test_mixture_policy_iteration_has_the_same_fixed_point():
    counts = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mdps, policies = random_mdps(rng), random_policies(rng)
        optimal = soft_value_iteration(mdps)
        for switch in (False, True):
            values, count = soft_policy_iteration(mdps, policies, switch)
            assert (np.diff(values, axis=0) > -1e-9).all()
            np.testing.assert_allclose(values[-1], optimal, rtol=0, atol=1e-8)
            assert np.abs(values[0] - optimal).max() > 0.1  # there was something to learn
        counts.append(count)
    assert np.count_nonzero(counts) >= 5  # and mixtures that differ from the policies


@pytest.mark.parametrize("seed", range(3))
def test_learning_from_the_mixtures_data_has_the_same_fixed_point(seed):
    """As in the script the mixture acts, and each task evaluates and improves its own policy.

    Each round every task walks with its mixture, backs Q_i up towards its own pi_i, at the pairs it
    visits and at no others, and moves pi_i part of the way to softmax(Q_i / alpha_i), as a gradient
    step does. (At the whole way pi_i would be the best of all policies for Q_i, and no other ever
    chosen.) The values still reach the optimal ones.
    """
    rng = np.random.default_rng(seed)
    mdps, policies = random_mdps(rng, gamma=0.6, alpha=0.5), random_policies(rng)
    mdps.P = 0.5 * mdps.P + 0.5 / mdps.P.shape[-1]  # so that a walk sees every state
    N, S, A = mdps.r.shape
    optimal = soft_value_iteration(mdps)
    Q, states, count = np.zeros((N, S, A)), np.zeros(N, dtype=int), 0
    for _ in range(150):
        scores = score_table(mdps, policies, Q)
        choice = choose(scores)
        count += shared(scores, choice)
        acting = mixture(policies, choice)
        uniform = rng.random((40, N, 2))
        for i in range(N):
            for u, w in uniform[:, i]:
                s = states[i]
                a = min(int(np.searchsorted(acting[i, s].cumsum(), u)), A - 1)
                V = (policies[i] * Q[i]).sum(-1) + mdps.alpha[i] * entropy(policies[i])
                Q[i, s, a] = mdps.r[i, s, a] + mdps.gamma[i] * mdps.P[s, a] @ V
                states[i] = min(int(np.searchsorted(mdps.P[s, a].cumsum(), w)), S - 1)
        policies = np.sqrt(policies * soft_greedy(mdps, Q))  # half-way, in logits
        policies /= policies.sum(-1, keepdims=True)
    np.testing.assert_allclose(soft_max(mdps, Q), optimal, rtol=0, atol=1e-8)
    np.testing.assert_allclose(evaluate(mdps, policies)[1], optimal, rtol=0, atol=1e-8)
    assert count > 10
