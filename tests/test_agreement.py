"""Whether the switch knows or guesses: switch_agreement; and what else came with it: chunks, precision, frequencies."""

from importlib import import_module
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from test_sac_update import SETTINGS, SingleAgent, random_batch
from torch.testing import assert_close

import qmp_sac

F64 = torch.float64
SCRIPTS = ("qmp_sac", "qmp_mtsac", "qmp_dnc", "qmp_uds")
N, O, A = 4, 3, 2
TINY = "--no-cuda --batch-size 4 --hidden-sizes 8 --eval-episodes 1".split()


@pytest.fixture(params=SCRIPTS)
def script(request):
    return import_module(request.param)


def make_agent(script, N=N, **flags):
    """An agent in float64 whose policies and critics differ by more than a start's."""
    torch.manual_seed(0)
    agent = script.Agent(N, O, A, script.Args(hidden_sizes=(16,), **flags)).double()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter *= 3
    return agent


def make_states(N=N, B=25):
    torch.manual_seed(1)
    return 2 * torch.randn(N, B, O, dtype=F64)


# Plain loops


def choose(row, own):
    """The best of a row of scores; the own one, unless another is better by more than rounding."""
    tolerance = 1e-5 * max(1, *map(abs, row))
    if row[own] > max(row) - tolerance:
        return own
    return row.index(max(row))


@torch.no_grad()
def loop_scores(agent, state, i):
    """[2][P]: what each of task i's critics says of the mean action of every policy in one state [O]."""
    state = state.expand(N, 1, O)
    scores = [[], []]
    for j in range(N):
        mean, _ = agent.actor(state)
        action = mean[j].tanh().expand(N, 1, A)
        q1, q2 = agent.qf(state, action)
        scores[0].append(q1[i].item())
        scores[1].append(q2[i].item())
    return scores


def loop_agreement(agent, obs):
    """agreement [N] and gap [N], state by state, in the numbers of Python."""
    agreement, gap = [], []
    for i in range(N):
        agreed, gaps = [], []
        for state in obs[i]:
            q1, q2 = loop_scores(agent, state, i)
            j1, j2 = choose(q1, i), choose(q2, i)
            agreed.append(j1 == j2)
            gaps.append(q2[j1] - q2[i])
            gaps.append(q1[j2] - q1[i])
        agreement.append(sum(agreed) / len(agreed))
        gap.append(sum(gaps) / len(gaps))
    return agreement, gap


# Agreement and gap


def test_best_policies_equal_a_loop(script):
    """In states whose scores have different sizes, with ties and with near ones."""
    torch.manual_seed(0)
    B = 400
    scores = torch.randn(N, B, N, dtype=F64) * 10.0 ** torch.randint(-3, 6, (N, B, 1))
    for i in range(N):
        size = scores[i].abs().amax(-1).clamp(min=1)
        below = torch.tensor([0, 0.9, 1.1, 5000])[torch.randint(4, (B,))]
        scores[i, :, i] = scores[i].amax(-1) - 1e-5 * below * size
    chosen = script.best_policies(scores)
    expected = [[choose(row, i) for row in scores[i].tolist()] for i in range(N)]
    assert chosen.tolist() == expected
    own = (chosen == torch.arange(N)[:, None]).double().mean()
    assert 0.4 < own < 0.6


@pytest.mark.parametrize("cache_rows", [8, 1024])
def test_agreement_equals_plain_loops(script, monkeypatch, cache_rows):
    """Batches of all at once, and in chunks."""
    monkeypatch.setattr(script, "CACHE_ROWS", cache_rows)
    agent, obs = make_agent(script), make_states()
    agreement, gap = script.switch_agreement(agent, obs)
    expected_agreement, expected_gap = loop_agreement(agent, obs)
    assert_close(agreement.tolist(), expected_agreement, rtol=0, atol=1e-7)  # of a count, in single precision
    assert_close(gap.tolist(), expected_gap, rtol=1e-11, atol=1e-12)
    # The comparison is not of critics that all agree, or of choices that are all alike.
    assert 0 < agreement.min() and agreement.min() < 1
    assert (gap.abs() > 1e-3).all() and gap.unique().numel() == N


def test_equal_twins_agree_on_the_best(script):
    """Then the gap is what the plain maximum of the scores is above the own policy's."""
    agent, obs = make_agent(script), make_states()
    with torch.no_grad():
        for parameter in agent.qf.parameters():
            first, second = parameter.chunk(2)
            second.copy_(first)
    agreement, gap = script.switch_agreement(agent, obs)
    assert agreement.tolist() == [1.0] * N
    for i in range(N):
        advantages = []
        for state in obs[i]:
            scores, same = loop_scores(agent, state, i)
            assert scores == pytest.approx(same, rel=1e-12)
            advantage = max(scores) - scores[i]
            tie = advantage < 1e-5 * max(1, *map(abs, scores))  # goes to the own policy
            advantages.append(0.0 if tie else advantage)
        assert max(advantages) > 0.01
        assert gap[i].item() == pytest.approx(sum(advantages) / len(advantages), rel=1e-11)


def critics(signal, noise, states):
    """Twin critics that ignore what they are asked: a table [N, P] that both know, and noise of their own."""
    torch.manual_seed(2)
    values = signal[None, :, None] + noise * torch.randn(2, N, states, N, dtype=F64)  # [2, N, B, P]
    return lambda obs, actions: values.flatten(2)


def test_twins_of_noise_guess(script):
    B = 20_000
    guessing = SimpleNamespace(actor=make_agent(script).actor, qf=critics(torch.zeros(N, N, dtype=F64), 1.0, B))
    agreement, gap = script.switch_agreement(guessing, make_states(B=B))
    assert ((agreement - 1 / N).abs() < 4 * (1 / N * (1 - 1 / N) / B) ** 0.5).all()
    # A term is 0 where the own policy is chosen, else a difference of two normal numbers; a state's two are not apart.
    assert (gap.abs() < 4 * (2 * (1 - 1 / N) / B) ** 0.5).all()


def test_noise_that_hides_the_best_own_policy_has_a_negative_gap(script):
    """Where the other policies are worse by 0.5, what is lost is that, as often as another one is chosen."""
    B = 20_000
    qf = critics(0.5 * torch.eye(N, dtype=F64), 1.0, B)
    agreement, gap = script.switch_agreement(SimpleNamespace(actor=make_agent(script).actor, qf=qf), make_states(B=B))
    q = qf(None, None).view(2, N, B, N)
    others = (q.argmax(-1) != torch.arange(N)[:, None]).double().mean((0, 2))  # [N]
    assert (others > 0.3).all()
    assert ((gap + 0.5 * others).abs() < 4 * (2 * others / B) ** 0.5).all()


def test_twins_that_know_agree(script):
    """Little noise leaves the policy that both put first, and its advantage."""
    B = 2_000
    signal = torch.eye(N, dtype=F64).roll(1, dims=1)  # task i does best by policy i + 1 (mod N)
    knowing = SimpleNamespace(actor=make_agent(script).actor, qf=critics(signal, 0.01, B))
    agreement, gap = script.switch_agreement(knowing, make_states(B=B))
    assert agreement.tolist() == [1.0] * N
    assert_close(gap, torch.ones(N, dtype=F64), rtol=0, atol=0.01 * 4 * (2 / (2 * B)) ** 0.5)


def test_a_single_task_agrees_with_itself(script):
    agreement, gap = script.switch_agreement(make_agent(script, N=1), make_states(N=1))
    assert agreement.tolist() == [1.0] and gap.tolist() == [0.0]


def test_a_shared_policy_is_nobody_elses():
    """All tasks' policies are one, so that every choice is a tie, and goes to the own."""
    script = import_module("qmp_mtsac")
    agent = make_agent(script, qmp=False, fully_shared=True)
    agreement, gap = script.switch_agreement(agent, make_states())
    assert agreement.tolist() == [1.0] * N and gap.tolist() == [0.0] * N


# In a run


def fill(script, steps=50):
    """A replay with random numbers in it."""
    rb = script.ReplayBuffer(N, O, A, steps, torch.device("cpu"))
    for field in rb.data:
        field.uniform_(-1, 1)
    rb.added = steps
    return rb


def test_a_generator_of_its_own_leaves_the_global_one_alone(script):
    rb, agent = fill(script), make_agent(script).float()
    before = torch.get_rng_state()
    batches = [rb.sample(64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    script.switch_agreement(agent, batches[0].obs)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(batches[0].obs, batches[1].obs) and not torch.equal(batches[0].obs, batches[2].obs)
    # Without it the global one is drawn from, in the same way.
    torch.manual_seed(1)
    for field, expected in zip(rb.sample(64), batches[0], strict=True):
        assert torch.equal(field, expected)


def train(script, run_dir, flags):
    """A tiny run; returns its agent, its evaluations and its checkpoint."""
    flags = ["--run-dir", str(run_dir), *flags.split()]
    agent = script.main([*TINY, "--total-timesteps", "300", "--learning-starts", "60", *flags])
    checkpoint = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    return agent, pd.read_csv(run_dir / "evaluations.csv"), checkpoint


def test_evaluations_leave_training_as_it_is(script, tmp_path):
    """Runs that evaluate at different steps end with the same weights and the same random numbers."""
    seldom, rows, state = train(script, tmp_path / "seldom", "--eval-frequency 300 --checkpoint-frequency 300")
    often, more_rows, other = train(script, tmp_path / "often", "--eval-frequency 30 --checkpoint-frequency 300")
    assert rows["global_step"].unique().tolist() == [300]
    assert more_rows["global_step"].unique().tolist() == list(range(30, 301, 30))
    for parameter, same in zip(seldom.parameters(), often.parameters(), strict=True):
        assert torch.equal(parameter, same)
    assert torch.equal(state["rng"], other["rng"])
    last = more_rows[more_rows["global_step"] == 300]
    columns = ["task", "episodic_return", "agreement", "gap"]
    pd.testing.assert_frame_equal(last[columns].reset_index(drop=True), rows[columns])


def test_what_a_run_writes(script, tmp_path):
    """Agreement and gap in states of its replay that the step decides, in rows of own policies and of mixtures."""
    agent, rows, state = train(script, tmp_path / "run", "--eval-mixture")
    sizes = [x.shape[1:] for x in state["replay"]["filled"]]
    N, O, A = len(state["tasks"]), *sizes[0][1:], *sizes[1][1:]
    rb = script.ReplayBuffer(N, O, A, 300 // N, torch.device("cpu"))
    rb.load_state_dict(state["replay"])
    states = rb.sample(script.AGREEMENT_STATES, torch.Generator().manual_seed(300)).obs
    assert states.shape == (N, 128, O)
    agreement, gap = (x.tolist() for x in script.switch_agreement(agent, states))
    last = rows[rows["global_step"] == 300]
    assert last["acting"].tolist() == ["own"] * N + ["mixture"] * N
    assert last["agreement"].tolist() == pytest.approx(2 * agreement, rel=1e-6)
    assert last["gap"].tolist() == pytest.approx(2 * gap, rel=1e-6)
    script.main(["--resume", str(tmp_path / "run"), "--eval-only"])
    final = pd.read_csv(tmp_path / "run" / "final_evaluation.csv")
    assert final["agreement"].tolist() == last["agreement"].tolist()
    assert final["gap"].tolist() == last["gap"].tolist()


# Chunks


@pytest.fixture
def chunks(script, monkeypatch):
    """Shapes [S, B, in] of what `perceptrons` gets."""
    shapes, perceptrons = [], script.perceptrons
    monkeypatch.setattr(script, "perceptrons", lambda x, *rest: shapes.append(x.shape) or perceptrons(x, *rest))
    return shapes


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("out", [1, 4])
@pytest.mark.parametrize(
    "S, B, stacks",
    [
        (5, 7, [5]),
        (4, 256, [4]),
        (5, 256, [4, 1]),
        (10, 300, [3, 3, 3, 1]),
        (6, 512, [2, 2, 2]),
        (7, 200, [5, 2]),
        (3, 1024, [1, 1, 1]),
        (2, 1025, [1, 1]),
        (3, 2500, [1, 1, 1]),
        (1, 2500, [1]),
    ],
)
def test_a_stack_in_chunks_equals_plain_networks(script, chunks, unstack, S, B, stacks, out, shared):
    """Forward and backward; also if all networks get the same input [1, B, in], expanded."""
    assert script.CACHE_ROWS == 1024
    torch.manual_seed(0)
    net = script.StackedMLP(S, 3, 8, 5, out).double()
    x = torch.randn(1 if shared else S, B, 3, dtype=F64, requires_grad=True)
    weight = torch.randn(S, B, out, dtype=F64)
    y = net(x.expand(S, B, 3))
    (y * weight).sum().backward()
    assert chunks == [(stack, B, 3) for stack in stacks]

    x_gradient = torch.zeros_like(x)
    for i in range(S):
        plain = unstack(net, i)
        k = 0 if shared else i
        one = x[k].detach().clone().requires_grad_()
        expected = plain(one)
        (expected * weight[i]).sum().backward()
        x_gradient[k] += one.grad
        assert_close(y[i], expected, rtol=1e-12, atol=1e-12)
        for layer, linear in zip(net.layers, plain[::2], strict=True):
            assert_close(layer.weight.grad[i], linear.weight.grad.T, rtol=1e-11, atol=1e-11)
            assert_close(layer.bias.grad[i, 0], linear.bias.grad, rtol=1e-11, atol=1e-11)
    assert_close(x.grad, x_gradient, rtol=1e-11, atol=1e-11)


def test_an_update_of_a_large_batch_equals_those_of_single_agents(make_learner, fixed_noise, unstack):
    N, B, args = 3, qmp_sac.CACHE_ROWS + 76, qmp_sac.Args(**SETTINGS, hidden_sizes=(16, 12))
    torch.manual_seed(0)
    agent, optimizers = make_learner(qmp_sac, N, O, A, args)
    singles = [SingleAgent(agent, unstack, i, A, args) for i in range(N)]
    for _ in range(3):
        data, noise = random_batch(N, B, O, A), torch.randn(2, N, B, A, dtype=F64)
        with fixed_noise(noise):
            info = qmp_sac.update(agent, optimizers, data, args)
        expected = [singles[i].update(*(field[i] for field in data), noise[:, i]) for i in range(N)]
        for name, values in info.items():
            assert_close(values.tolist(), [single[name] for single in expected], rtol=1e-9, atol=1e-11)
    for i, single in enumerate(singles):
        pairs = [(unstack(agent.actor.net, i), single.actor)]
        pairs += [(unstack(agent.qf.net, i), single.qf1), (unstack(agent.qf.net, N + i), single.qf2)]
        pairs += [(unstack(agent.qf_target.net, i), single.qf1_target)]
        pairs += [(unstack(agent.qf_target.net, N + i), single.qf2_target)]
        for net, plain in pairs:
            for p, q in zip(net.parameters(), plain.parameters(), strict=True):
                assert_close(p, q, rtol=1e-9, atol=1e-12)
        assert_close(agent.log_alpha[i], single.log_alpha, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "name, flags",
    [
        ("qmp_sac", {}),
        ("qmp_mtsac", {}),
        ("qmp_mtsac", {"pcgrad": True}),
        ("qmp_mtsac", {"fully_shared": True, "qmp": False}),
        ("qmp_dnc", {"kl_coef": 0.1}),
        ("qmp_uds", {"sharing_quantile": 0.5}),
    ],
)
def test_an_update_in_chunks_equals_one_without(make_learner, monkeypatch, name, flags):
    """Of a stack that the chunks do not divide, and of a batch larger than a chunk."""
    script = import_module(name)
    args = script.Args(**SETTINGS, hidden_sizes=(16, 12), **flags)
    for cache_rows, B in ((50, 20), (50, 70)):
        learners = []
        for rows in (cache_rows, 10**9):
            monkeypatch.setattr(script, "CACHE_ROWS", rows)
            torch.manual_seed(0)
            learner = make_learner(script, N, O, A, args)
            for _ in range(3):
                batches = [random_batch(N, B, O, A) for _ in range(1 + (name == "qmp_uds"))]
                info = script.update(*learner, *batches, args)
            learners.append((learner[0], info))
        (agent, info), (at_once, expected) = learners
        for key, values in info.items():
            assert_close(values, expected[key], rtol=1e-9, atol=1e-11)
        for p, q in zip(agent.parameters(), at_once.parameters(), strict=True):
            assert_close(p, q, rtol=1e-9, atol=1e-11)


# Flags


@pytest.fixture
def matmul_precision():
    """It is the whole process's; after the test it is what it was."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_matmul_precision_is_passed_on(script, tmp_path, matmul_precision):
    short = [*TINY, "--total-timesteps", "10", "--learning-starts", "5"]
    for flags, expected in (
        (["--matmul-precision", "high"], "high"),
        (["--matmul-precision", "medium"], "medium"),
        ([], "highest"),
    ):
        script.main([*short, "--run-dir", str(tmp_path / expected), *flags])
        assert torch.get_float32_matmul_precision() == expected


@pytest.mark.parametrize(
    "total_timesteps, frequency",
    [(40_000, 4_000), (40_001, 4_001), (999_990, 99_999), (1_000_000, 100_000), (12_000_000, 100_000)],
)
def test_default_frequencies_are_a_tenth_and_capped(script, total_timesteps, frequency):
    args = script.Args(total_timesteps=total_timesteps)
    assert (args.eval_frequency, args.checkpoint_frequency) == (frequency, frequency)
    args = script.Args(total_timesteps=total_timesteps, eval_frequency=500_000)
    assert (args.eval_frequency, args.checkpoint_frequency) == (500_000, frequency)
    args = script.Args(total_timesteps=total_timesteps, checkpoint_frequency=500_000)
    assert (args.eval_frequency, args.checkpoint_frequency) == (frequency, 500_000)
