"""Whole runs of the four scripts: they learn, log and repeat; their common parts are equal."""

import ast
import difflib
import functools
import importlib
import itertools
import json
import re
from types import SimpleNamespace
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from gymnasium.spaces import Box
from helpers import ROOT, SCRIPTS, SHORT, TASKS, N, checkpoint, rows, same_weights, scalars, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import qmp_sac

CASES = [
    ("qmp_sac", ""),
    ("qmp_mtsac", ""),
    ("qmp_mtsac", "--pcgrad"),
    ("qmp_dnc", "--kl-coef 0.1 --distill-period 200 --distill-steps 3"),
    ("qmp_uds", "--sharing-quantile 0.5"),
]
SHORTER = "--total-timesteps 300"


def shares(table):
    """Who acted: [evaluations, tasks, policies]."""
    return table.filter(like="acted/").to_numpy().reshape(-1, N, N)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function (script, flags) -> agent and folder of a run that is made once."""

    def run(script, flags=""):
        run_dir = tmp_path_factory.mktemp("runs") / "run"
        return train(script, run_dir, flags), run_dir

    return functools.cache(run)


@pytest.mark.parametrize("script, flags", [*CASES, ("qmp_mtsac", "--fully-shared --no-qmp")])
def test_a_run_learns(tmp_path, script, flags):
    module = importlib.import_module(script)
    flags += " --total-timesteps 1e3 --train-frequency 2 --gradient-steps 3"
    flags += " --policy-lr 1e-3 --q-lr 2e-3"
    args = tyro.cli(module.Args, args=[*SHORT, *flags.split()])
    torch.manual_seed(args.seed)
    before = module.Agent(N, 2, 2, args)  # as `train` makes it
    with mock.patch.object(module, "update", wraps=module.update) as update:
        after = train(script, tmp_path / "run", flags)
    phases = [i for i in range(80 // N + 1, 1000 // N + 1) if i % 2 == 0]
    assert update.call_count == 3 * len(phases)
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        assert b.isfinite().all()
        # every slice of every layer moved
        assert all(not torch.equal(x, y) for x, y in zip(a, b, strict=True)), name

    losses = []
    for tag, events in scalars(tmp_path / "run").items():
        if tag.startswith("losses/"):
            losses += [event.value for event in events]
    assert losses and np.isfinite(losses).all()

    state = checkpoint(tmp_path / "run")
    rates = {name: state[name]["param_groups"][0]["lr"] for name in ("q", "actor", "alpha")}
    assert rates == {"q": 2e-3, "actor": 1e-3, "alpha": 2e-3}


class Aim(gym.Env):
    """An episode is one action, which must meet the task's own number."""

    observation_space, action_space = Box(-1, 1, (1,)), Box(-1, 1, (1,))

    def __init__(self, number):
        self.number = number

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        miss = abs(float(action[0]) - self.number)
        return np.zeros(1, np.float32), -(miss**2), True, False, {"success": miss < 0.35}


def make_aims(render_mode=None):
    return {str(number): lambda number=number: Aim(number) for number in (-0.7, 0.7, 0.0)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_task_is_solved(tmp_path, script):
    flags = "--env-id test_runs:make_aims --total-timesteps 900 --learning-starts 150 --alpha 0.02"
    flags += " --batch-size 32 --no-autotune --policy-lr 3e-3 --q-lr 3e-3 --hidden-sizes 32 32"
    flags += " --checkpoint-frequency 900" + " --min-reward -3" * (script == "qmp_uds")
    train(script, tmp_path / "run", flags)
    assert rows(tmp_path / "run")["success_rate"][-3:].tolist() == [1, 1, 1]


@pytest.mark.parametrize("script, flags", CASES)
def test_without_qmp_a_run_is_the_base_method(runs, script, flags):
    flags = f"{flags} {SHORTER}"
    base, base_dir = runs(script, f"{flags} --no-qmp")
    own, own_dir = runs(script, f"{flags} --own-policy-prob 1")
    assert same_weights(base, own) and not same_weights(base, runs(script, flags)[0])
    assert rows(base_dir).equals(rows(own_dir))
    np.testing.assert_array_equal(shares(rows(base_dir)), [np.eye(N)])


# A flag by itself, or added to those before it, changes what is learned.
FLAGS = {
    "qmp_sac": """--seed 2, --env-id PointReach2-v0, --total-timesteps 250, --learning-starts 100,
        --buffer-size 20, --batch-size 9, --gamma 0.9, --tau 0.1, --policy-lr 1e-3, --q-lr 1e-3,
        --train-frequency 2, --gradient-steps 2, --alpha 0.5, --no-autotune,
        --no-autotune --alpha 0.5, --no-qmp, --switch-samples 3,
        --switch-samples 3 --switch-entropy, --switch-rule uniform,
        --switch-rule uniform --switch-period 5, --own-policy-prob 0.5, --hidden-sizes 8,
        --checkpoint-frequency 250""",
    "qmp_mtsac": """--pcgrad, --no-qmp, --no-qmp --fully-shared, --double-tanh,
        --no-qmp --double-tanh""",
    "qmp_dnc": "--kl-coef 0.1, --distill-period 200, --distill-period 200 --distill-steps 3",
    "qmp_uds": "--sharing-quantile 0.5, --min-reward -3",
}
FLAGS = {script: re.sub(r"\s+", " ", text).split(", ") for script, text in FLAGS.items()}
# Covered by tests of their own, here and in test_resume.py.
OTHER_FLAGS = {"cuda", "num_threads", "compile", "vectorization", "matmul_precision", "run_dir"}
OTHER_FLAGS |= {"resume", "eval_frequency", "eval_episodes", "eval_mixture", "capture_video"}
OTHER_FLAGS |= {"track", "wandb_project_name", "wandb_entity"}


@pytest.mark.parametrize("script, flags", [(key, x) for key, list_ in FLAGS.items() for x in list_])
def test_a_flag_changes_what_is_learned(runs, script, flags):
    agent, _ = runs(script, f"{SHORTER} {flags}")
    plain, _ = runs(script, f"{SHORTER} {flags.rpartition('--')[0]}".strip())
    assert not same_weights(agent, plain)


def test_every_flag_is_covered_and_explained():
    names = set()
    for script in SCRIPTS:
        names |= vars(importlib.import_module(script).Args()).keys()
        tree = ast.parse((ROOT / f"{script}.py").read_text())
        (body,) = [node.body for node in tree.body if getattr(node, "name", "") == "Args"]
        for field, doc in itertools.pairwise(body):
            is_doc = isinstance(getattr(doc, "value", None), ast.Constant)
            assert is_doc or not isinstance(field, ast.AnnAssign)
    covered = {flag.replace("-", "_") for flag in re.findall(r"--(?:no-)?([a-z-]+)", str(FLAGS))}
    assert covered | OTHER_FLAGS == names


@pytest.mark.parametrize(
    "flags, steps",
    [
        ("--vectorization async", [300, 600]),
        ("--num-threads 2 --matmul-precision high", [300, 600]),
        ("--eval-frequency 100 --eval-episodes 2", [100, 200, 300, 400, 500, 600]),
        # in the first iteration at or after each multiple
        ("--eval-frequency 133 --eval-mixture", [135, 270, 400, 535, 600]),
    ],
)
def test_a_flag_changes_nothing_that_is_learned(runs, flags, steps):
    """Evaluations, and the twins' agreement, draw from generators of their own."""
    threads = mock.patch("torch.set_num_threads")
    precision = mock.patch("torch.set_float32_matmul_precision")
    cuda = mock.patch("torch.cuda.is_available", return_value=True)  # but there is --no-cuda
    with threads as set_threads, precision as set_precision, cuda:
        agent, run_dir = runs("qmp_sac", flags)
    assert same_weights(agent, runs("qmp_sac")[0]) and agent.log_alpha.device.type == "cpu"
    assert rows(run_dir)["global_step"].unique().tolist() == steps
    set_threads.assert_called_once_with(2 if "threads" in flags else 1)
    set_precision.assert_called_once_with("high" if "high" in flags else "highest")


@pytest.mark.parametrize("script, flags", [CASES[0], CASES[2]])
def test_a_compiled_update_learns_the_same(runs, tmp_path, script, flags):
    """With PyTorch's compiler, but for the machine code at the end, which would take minutes."""
    torch.compiler.reset()
    compiler = torch.compile
    spy = mock.patch("torch.compile", side_effect=lambda f: compiler(f, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), spy as compiled:
        other = train(script, tmp_path / "compiled", f"{flags} {SHORTER} --compile")
    compiled.assert_called_once_with(importlib.import_module(script).update)
    plain = runs(script, f"{flags} {SHORTER}")[0]
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_step_counts_and_default_frequencies():
    """A tenth of the training, at most 100,000 steps."""
    for text, steps in (("1e6", 1_000_000), ("3_000", 3000), ("2.5e3", 2500)):
        args, _ = qmp_sac.parse_args(["--total-timesteps", text])
        assert args.total_timesteps == steps and type(args.total_timesteps) is int
        assert args.eval_frequency == args.checkpoint_frequency == steps // 10
    args, _ = qmp_sac.parse_args(["--total-timesteps", "4e6", "--eval-frequency", "2e5"])
    assert (args.eval_frequency, args.checkpoint_frequency) == (200_000, 100_000)
    with pytest.raises(SystemExit, match="2"):
        qmp_sac.parse_args(["--buffer-size", "1.5"])


def test_what_is_logged_of_the_switch(tmp_path):
    """Who acted since the last evaluation; the twins' agreement and gap on states of replay."""
    acted = []  # in training: [N, N] of each step
    modes = set()  # (use_switch, mean_actions)
    act = qmp_sac.Mixture.act

    def recorded(mixture, *inputs):
        actions = act(mixture, *inputs)
        modes.add((mixture.use_switch, mixture.mean_actions))
        if not mixture.mean_actions:  # in training
            acted.append(np.eye(N)[mixture.policies])
        return actions

    agreement = qmp_sac.switch_agreement
    switch = mock.patch.object(qmp_sac, "switch_agreement", wraps=agreement)
    with mock.patch.object(qmp_sac.Mixture, "act", recorded), switch as spy:
        agent = train("qmp_sac", tmp_path / "run", "--eval-mixture --checkpoint-frequency 600")
    # Own policies and mixtures are evaluated, by mean actions, at the same moments.
    assert modes == {(True, False), (False, True), (True, True)}
    table = rows(tmp_path / "run")
    first = len(acted) - 300 // N
    parts = [np.mean(part, axis=0) for part in (acted[:first], acted[first:])]
    np.testing.assert_allclose(shares(table), np.repeat(parts, 2, axis=0))

    # At the end the agent is the one that was judged.
    states = spy.call_args.args[1]
    replay = checkpoint(tmp_path / "run")["replay"]["filled"][0]
    assert 128 <= states.shape[1] <= 256
    for i in range(N):
        seen = {tuple(x) for x in states[i].tolist()}
        assert seen <= {tuple(x) for x in replay[:, i].tolist()} and len(seen) > 50
    expected = np.stack(agreement(agent, states), axis=1)  # [N, 2]
    last = table[["agreement", "gap"]][-2 * N :]
    np.testing.assert_allclose(last, np.tile(expected, (2, 1)), rtol=1e-5, atol=1e-7)


def test_evaluations(runs):
    _, own_dir = runs("qmp_sac")
    _, both_dir = runs("qmp_sac", "--eval-frequency 133 --eval-mixture")
    table = rows(own_dir)
    columns = "global_step acting task success_rate episodic_return episodic_length agreement gap"
    assert [*table.columns] == [*columns.split(), *(f"acted/{task}" for task in TASKS)]
    keys = table[["global_step", "acting", "task"]].to_numpy().tolist()
    assert keys == [[step, "own", task] for step in (300, 600) for task in TASKS]
    assert (table["episodic_length"] == 50).all() and (table["episodic_return"] < 0).all()
    np.testing.assert_allclose(shares(table).sum(-1), 1)
    assert ((shares(table) > 0) & ~np.eye(N, dtype=bool)).any()

    # An evaluation depends on its step alone, and the mixture's differs from it.
    last = [table[-N:], rows(both_dir)[-2 * N : -N], rows(both_dir)[-N:]]
    assert [[*part["acting"].unique()] for part in last] == [["own"], ["own"], ["mixture"]]
    own, own_too, mixture = (part[columns.split()[2:6]].to_numpy().tolist() for part in last)
    assert own == own_too != mixture

    record = json.loads((own_dir / "args.json").read_text())
    assert record["args"]["total_timesteps"] == 600 and record["tasks"] == list(TASKS)
    assert record["versions"].keys() >= {"torch", "numpy", "gymnasium", "mujoco", "metaworld"}
    assert record["script"] == "qmp_sac" and "git_commit" in record
    assert record["cpu"] == torch.backends.cpu.get_cpu_capability()


def test_tensorboard_has_the_numbers_of_the_csv(runs):
    _, run_dir = runs("qmp_sac", "--env-id helpers:make_drift")
    events, table = scalars(run_dir), rows(run_dir)
    for task, part in table.groupby("task"):
        numbers = {f"eval/{name}/{task}": part[name] for name in (*part.columns[3:6], "distance")}
        numbers |= {f"switch/{name}/{task}": part[name] for name in ("agreement", "gap")}
        numbers[f"switch/own_policy/{task}"] = part[f"acted/{task}"]
        for tag, values in numbers.items():
            assert [event.value for event in events[tag]] == pytest.approx([*values])
            assert [event.step for event in events[tag]] == [300, 600]
    for name in ("success_rate", "distance"):
        values = [event.value for event in events[f"eval/{name}"]]
        assert values == pytest.approx([*table.groupby("global_step")[name].mean()])
    returns = [event.value for event in events["charts/episodic_return/b"]]
    assert all(abs(value - (101 + 102 + 103)) <= 3 for value in returns)
    assert {event.value for event in events["charts/episodic_length/c"]} == {4.0}
    assert events["charts/SPS"][0].value > 0
    tensors = EventAccumulator(str(run_dir)).Reload().Tensors("hyperparameters/text_summary")
    text = tensors[0].tensor_proto.string_val[0].decode()
    assert "    batch_size: 8\n" in text and "    env_id: helpers:make_drift\n" in text


def test_ends_of_episodes(runs):
    """Only terminations are stored as such; every transition has its own task's numbers."""
    _, run_dir = runs("qmp_sac", "--env-id helpers:make_drift")
    filled = checkpoint(run_dir)["replay"]["filled"]
    obs, actions, rewards, next_obs, terminations = (x[:64] for x in filled)  # up to a checkpoint
    np.testing.assert_allclose(rewards, next_obs[..., 0] + actions[..., 0], rtol=1e-6)
    # the first ones are random
    assert actions[:26].min() < -0.8 and actions[:26].max() > 0.8 and abs(actions[:26].mean()) < 0.3
    for task, length in enumerate((2, 3, 4)):
        steps = 1 + np.arange(64) % length
        np.testing.assert_array_equal(obs[:, task, 0], 100 * task + steps - 1)
        np.testing.assert_array_equal(next_obs[:, task, 0], 100 * task + steps)
        np.testing.assert_array_equal(terminations[:, task], (steps == length) & (task == 0))
    last = rows(run_dir)[["success_rate", "episodic_length", "distance"]][-3:]  # last steps too
    assert last.to_numpy().tolist() == [[0, 2, 2], [1, 3, 3], [1, 4, 4]]


def test_console(tmp_path, capsys):
    """The tables show the CSV's numbers. Before the first evaluation all actions are random."""
    run_dir = tmp_path / "run"
    train("qmp_sac", run_dir, "--checkpoint-frequency 250 --learning-starts 300")
    out, err = capsys.readouterr()
    start, _, *lines, end = out.splitlines()
    assert start == f"PointReach-v0: {', '.join(TASKS)}; cpu; replay of 0.0 GiB"
    assert end.endswith(f"benchmark/plot.py {run_dir}")
    assert not err and "Warning" not in out

    table = rows(run_dir)
    assert np.isnan(shares(table)[0]).all() and table["agreement"].notna().all()
    numbers = table[["task", "success_rate", "episodic_return"]].copy()
    numbers["own_policy"] = [*shares(table)[0].diagonal(), *shares(table)[1].diagonal()]
    for step, part in numbers.groupby(table["global_step"]):
        title, head, *printed = lines[: N + 3]
        lines = lines[N + 3 :]
        assert title == f"step {step}, own"
        assert head.split() == ["task", "success", "return", "own", "policy"]
        part.loc["mean"] = ["mean", *part.iloc[:, 1:].mean()]
        for line, (task, *values) in zip(printed, part.to_numpy(), strict=True):
            words = [f"{value:.2f}".replace("nan", "-") for value in values]
            assert line.split() == [task, *words]
    assert not lines


def test_checkpoints_that_cut_every_episode_are_told(tmp_path, capsys):
    """At the start if the time limit is known, else at the first checkpoint."""
    train("qmp_sac", tmp_path / "known", SHORTER)
    start = capsys.readouterr().out.partition("step 300")[0]
    assert "Warning: episodes have up to 50 steps, but checkpoints start new ones after 40" in start
    assert "--checkpoint-frequency 250" in start
    flags = f"{SHORTER} --env-id helpers:make_drift --checkpoint-frequency 9"
    train("qmp_sac", tmp_path / "unknown", flags)
    out = capsys.readouterr().out
    assert out.count("Warning") == 1 and "none of c has ended in 3 steps" in out


def test_progress_in_a_log_file(tmp_path, capsys):
    """Every minute a line, with the time left."""
    seconds = iter(range(0, 100_000, 10))
    clock = SimpleNamespace(time=lambda: next(seconds))
    with mock.patch.object(qmp_sac, "time", clock):
        train("qmp_sac", tmp_path / "run", SHORTER)
    lines = re.findall(r"step [\d,]+ of 300, \d:\d\d:\d\d left", capsys.readouterr().out)
    assert 5 <= len(lines) <= 15


# The same letters

# What may differ from qmp_sac.py, and how many of its lines are missing there (None: any number).
DIFFERENT = {
    "qmp_mtsac": {
        "Args": 0,
        "Mixture": 1,
        "Actor": None,
        "Critic": None,
        "Agent": None,
        "step_optimizer": None,
        "update": None,
    },
    "qmp_dnc": {"Args": 2, "Agent": 0, "train": 0, "update": None},
    "qmp_uds": {"Args": 1, "train": 2, "ReplayBuffer": None, "update": None},
}


def definitions(script):
    """{name: source with the comments above} of the statements of a script, in their order."""
    text = (ROOT / f"{script}.py").read_text()
    docstring, *nodes = ast.parse(text).body
    lines, blocks, end = text.splitlines(), {}, docstring.end_lineno
    for node in nodes:
        target = getattr(node, "targets", [getattr(node, "target", node)])[0]
        name = getattr(node, "name", None) or ast.unparse(target)
        blocks.setdefault(name, [])
        blocks[name] += [line for line in lines[end : node.end_lineno] if line]
        end = node.end_lineno
    return blocks


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_the_same_letters(script):
    """Of the definitions that scripts have in common."""
    ours, theirs = definitions("qmp_sac"), definitions(script)
    common = [name for name in theirs if name in ours]
    assert common == list(ours)
    assert {name for name in common if ours[name] != theirs[name]} == DIFFERENT[script].keys()
    for name, expected in DIFFERENT[script].items():
        missing = [line for line in difflib.ndiff(ours[name], theirs[name]) if line[0] == "-"]
        assert expected in (None, len(missing)), name
