"""Whole runs of the four scripts: they learn, log and repeat; their common parts are equal."""

import ast
import difflib
import functools
import importlib
import json
import re
from dataclasses import fields
from types import SimpleNamespace
from unittest import mock

import gymnasium as gym
import numpy as np
import pandas as pd
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

    names = {"qf1_values", "qf2_values", "qf1_loss", "qf2_loss", "actor_loss", "entropy"}
    names |= {"alpha", "alpha_loss"}
    names |= {"qmp_dnc": {"kl_penalty"}, "qmp_uds": {"shared"}}.get(script, set())
    logged = {tag: x for tag, x in scalars(tmp_path / "run").items() if tag.startswith("losses/")}
    ends = ("", *(f"/{task}" for task in TASKS))
    assert logged.keys() == {f"losses/{name}{end}" for name in names for end in ends}
    assert all(np.isfinite(event.value) for events in logged.values() for event in events)


class Aim(gym.Env):
    """An episode is one action, which must meet the task's own number."""

    observation_space, action_space = Box(0, 2, (1,)), Box(-1, 1, (1,))

    def __init__(self, task):
        self.task = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(1, self.task, np.float32), {}

    def step(self, action):
        miss = float(action[0]) - (-0.7, 0.7, 0.0)[self.task]
        info = {"success": abs(miss) < 0.35}
        return np.full(1, self.task, np.float32), -(miss**2), True, False, info


def make_aims(render_mode=None):
    return {name: lambda i=i: Aim(i) for i, name in enumerate("abc")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_task_is_solved(tmp_path, script):
    flags = "--env-id test_runs:make_aims --total-timesteps 900 --learning-starts 150 --alpha 0.02"
    flags += " --batch-size 32 --no-autotune --policy-lr 3e-3 --q-lr 3e-3 --hidden-sizes 32 32"
    flags += " --checkpoint-frequency 900" + " --min-reward -3" * (script == "qmp_uds")
    train(script, tmp_path / "run", flags)
    assert rows(tmp_path / "run")["success_rate"][-3:].tolist() == [1, 1, 1]


def test_learning_rates(tmp_path):
    train("qmp_sac", tmp_path / "run", "--policy-lr 1e-3 --q-lr 2e-3 --total-timesteps 100")
    state = checkpoint(tmp_path / "run")
    rates = {name: state[name]["param_groups"][0]["lr"] for name in ("q", "actor", "alpha")}
    assert rates == {"q": 2e-3, "actor": 1e-3, "alpha": 2e-3}


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
    assert all(parameter.isfinite().all() for parameter in agent.parameters())
    shapes = [[parameter.shape for parameter in x.parameters()] for x in (agent, plain)]
    assert shapes[0] != shapes[1] or not same_weights(agent, plain)
    if "--no-autotune" in flags:
        alpha = 0.5 if "--alpha" in flags else 1.0
        assert agent.log_alpha.exp().tolist() == pytest.approx([alpha] * N)


def test_every_flag_is_covered_and_explained():
    covered = {x for list_ in FLAGS.values() for x in re.findall(r"--(?:no-)?(\S+)", str(list_))}
    covered = {re.sub(r"[^a-z-]", "", name).replace("-", "_") for name in covered} | OTHER_FLAGS
    names = set()
    for script in SCRIPTS:
        names |= {field.name for field in fields(importlib.import_module(script).Args)}
        tree = ast.parse((ROOT / f"{script}.py").read_text())
        (body,) = [node.body for node in tree.body if getattr(node, "name", "") == "Args"]
        for field, doc in zip(body, body[1:], strict=False):
            is_doc = isinstance(getattr(doc, "value", None), ast.Constant)
            assert not isinstance(field, ast.AnnAssign) or is_doc
    assert covered == names


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
    with threads as set_threads, precision as set_precision:
        agent, run_dir = runs("qmp_sac", flags)
    assert same_weights(agent, runs("qmp_sac")[0])
    assert rows(run_dir)["global_step"].unique().tolist() == steps
    set_threads.assert_called_once_with(2 if "threads" in flags else 1)
    set_precision.assert_called_once_with("high" if "high" in flags else "highest")


def test_no_cuda(tmp_path):
    """As on a machine that has a GPU: with --no-cuda nothing asks for it."""
    with mock.patch("torch.cuda.is_available", return_value=True):
        agent = train("qmp_sac", tmp_path / "run", "--train-frequency 1000")
    assert agent.log_alpha.device.type == "cpu"


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


@pytest.mark.parametrize("text, steps", [("1e6", 1_000_000), ("1_000", 1000), ("2.5e3", 2500)])
def test_step_counts_and_default_frequencies(text, steps):
    """A tenth of the training, at most 100,000 steps."""
    flags = ["--total-timesteps", text, "--learning-starts", "9"]
    args, _ = qmp_sac.parse_args(flags)
    assert args.total_timesteps == steps and type(args.total_timesteps) is int
    assert args.eval_frequency == args.checkpoint_frequency == steps // 10
    args, _ = qmp_sac.parse_args([*flags, "--total-timesteps", "4e6", "--eval-frequency", "2e5"])
    assert (args.eval_frequency, args.checkpoint_frequency) == (200_000, 100_000)


def test_what_is_logged_of_the_switch(tmp_path):
    """Who acted since the last evaluation; the twins' agreement and gap on states of replay."""
    acted, act = [], qmp_sac.Mixture.act

    def recorded(mixture, *inputs):
        actions = act(mixture, *inputs)
        if not mixture.mean_actions:  # in training
            acted.append(mixture.policies.numpy().copy())
        return actions

    agreement = qmp_sac.switch_agreement
    switch = mock.patch.object(qmp_sac, "switch_agreement", wraps=agreement)
    with mock.patch.object(qmp_sac.Mixture, "act", recorded), switch as spy:
        agent = train("qmp_sac", tmp_path / "run", "--eval-mixture --checkpoint-frequency 600")
    table, events = rows(tmp_path / "run"), scalars(tmp_path / "run")
    first = len(acted) - 300 // N
    for k, part in enumerate((acted[:first], acted[first:])):
        counts = np.zeros((N, N))
        for policies in part:
            counts[np.arange(N), policies] += 1
        for mixture in (0, 1):  # both rows of an evaluation have the same
            np.testing.assert_allclose(shares(table)[2 * k + mixture], counts / len(part))
    # At the end the agent is the one that was judged.
    states = spy.call_args.args[1]
    replay = checkpoint(tmp_path / "run")["replay"]["filled"][0]
    assert 128 <= states.shape[1] <= 256
    for i in range(N):
        seen = {tuple(x) for x in states[i].tolist()}
        assert seen <= {tuple(x) for x in replay[:, i].tolist()} and len(seen) > 50
    for name, values in zip(("agreement", "gap"), agreement(agent, states), strict=True):
        for part in (table[-2 * N : -N], table[-N:]):
            np.testing.assert_allclose(part[name], values, rtol=1e-5, atol=1e-7)
        logged = [events[f"switch/{name}/{task}"][1].value for task in TASKS]
        np.testing.assert_allclose(logged, values, rtol=1e-5, atol=1e-7)
    assert table["agreement"].between(0, 1).all()


@pytest.mark.parametrize("flags", ["--own-policy-prob 0.5", "--no-qmp"])
def test_what_is_evaluated(tmp_path, flags):
    """Own policies and the switch alone, by mean actions, in environments for evaluation."""
    made = mock.patch.object(qmp_sac, "make_vec", wraps=qmp_sac.make_vec)
    spy = mock.patch.object(qmp_sac, "evaluate", wraps=qmp_sac.evaluate)
    with made as make_vec, spy as evaluate:
        flags += f" --eval-mixture --eval-episodes 3 --seed 5 {SHORTER}"
        train("qmp_sac", tmp_path / "run", flags)
    calls = [call.args for call in evaluate.call_args_list]
    assert make_vec.call_count == 2 and calls[0][0] is calls[1][0]
    assert [(x[1].use_switch, x[1].mean_actions) for x in calls] == [(False, True), (True, True)]
    assert all(call[2:] == (3, [5, 300, 2], None) for call in calls)


def test_evaluations(runs):
    own, own_dir = runs("qmp_sac")
    both, both_dir = runs("qmp_sac", "--eval-frequency 133 --eval-mixture")
    table = rows(own_dir)
    columns = "global_step acting task success_rate episodic_return episodic_length agreement gap"
    assert [*table.columns] == [*columns.split(), *(f"acted/{task}" for task in TASKS)]
    keys = table[["global_step", "acting", "task"]].to_numpy().tolist()
    assert keys == [[step, "own", task] for step in (300, 600) for task in TASKS]
    assert (table["episodic_length"] == 50).all() and (table["episodic_return"] < 0).all()
    np.testing.assert_allclose(shares(table).sum(-1), 1)
    assert ((shares(table) > 0) & ~np.eye(N, dtype=bool)).any()

    assert same_weights(own, both)
    mixture, own_too = (rows(both_dir).query(f"acting == '{x}'")[-N:] for x in ("mixture", "own"))
    measured = columns.split()[2:6]
    pd.testing.assert_frame_equal(
        own_too[measured].reset_index(drop=True), table[-N:][measured].reset_index(drop=True)
    )
    assert mixture["episodic_return"].tolist() != own_too["episodic_return"].tolist()
    assert {"eval_mixture/success_rate", "eval/success_rate"} <= scalars(both_dir).keys()

    record = json.loads((own_dir / "args.json").read_text())
    assert record["args"]["total_timesteps"] == 600 and record["tasks"] == list(TASKS)
    assert record["versions"].keys() >= {"torch", "numpy", "gymnasium", "mujoco", "metaworld"}
    assert record["script"] == "qmp_sac" and "git_commit" in record


def test_nobody_acts_while_all_steps_are_random(tmp_path, capsys):
    train("qmp_sac", tmp_path / "run", "--learning-starts 300")
    table = rows(tmp_path / "run")
    assert table.filter(like="acted/")[:N].isna().all(axis=None)
    assert table["agreement"].notna().all()
    np.testing.assert_allclose(shares(table)[1].sum(-1), 1)
    tables = capsys.readouterr().out.split("step ")[-2:]
    assert re.search(r"mean .* -\n", tables[0]) and not re.search(r"mean .* -\n", tables[1])


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
    """Only terminations are stored as such; every transition has its own task's numbers.

    The first actions are random, from -1 to 1.
    """
    _, run_dir = runs("qmp_sac", "--env-id helpers:make_drift")
    filled = checkpoint(run_dir)["replay"]["filled"]
    obs, actions, rewards, next_obs, terminations = (x[:64] for x in filled)  # up to a checkpoint
    np.testing.assert_allclose(rewards, next_obs[..., 0] + actions[..., 0], rtol=1e-6)
    assert actions[:26].min() < -0.8 and actions[:26].max() > 0.8 and abs(actions[:26].mean()) < 0.3
    for task, length in enumerate((2, 3, 4)):
        steps = 1 + np.arange(64) % length
        np.testing.assert_array_equal(obs[:, task, 0], 100 * task + steps - 1)
        np.testing.assert_array_equal(next_obs[:, task, 0], 100 * task + steps)
        np.testing.assert_array_equal(terminations[:, task], (steps == length) & (task == 0))
    last = rows(run_dir)[["success_rate", "episodic_length", "distance"]][-3:]
    # those of the very last step count
    assert last.to_numpy().tolist() == [[0, 2, 2], [1, 3, 3], [1, 4, 4]]


def test_console(tmp_path, capsys):
    """Also when it is not a terminal."""
    run_dir = tmp_path / "run"
    train("qmp_sac", run_dir, "--checkpoint-frequency 250")
    out, err = capsys.readouterr()
    start, place, *tables, end = out.splitlines()
    assert start == f"PointReach-v0: {', '.join(TASKS)}; cpu; replay of 0.0 GiB"
    assert place == f"results in {run_dir}, from step 0 on"
    assert end.startswith(f"results in {run_dir}; to plot: python ")
    assert end.endswith(f"benchmark/plot.py {run_dir}")
    steps = [line for line in tables if line.startswith("step")]
    assert steps == ["step 300, own", "step 600, own"]
    assert tables[1].split() == ["task", "success", "return", "own", "policy"]
    last = rows(run_dir)[-N:]
    for line, (_, row) in zip(tables[-N - 1 :], last.iterrows(), strict=False):
        values = row["success_rate"], row["episodic_return"], row[f"acted/{row['task']}"]
        assert line.split() == [row["task"], *(f"{value:.2f}" for value in values)]
    means = [f"{last[key].mean():.2f}" for key in last.columns[3:5]]
    assert tables[-1].split()[:3] == ["mean", *means]
    assert not err and "Warning" not in out


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

# What may differ from qmp_sac.py; of these definitions so many of its lines are missing.
DIFFERENT = {
    "qmp_mtsac": {"Actor", "Critic", "Agent", "step_optimizer", "update", "Args", "Mixture"},
    "qmp_dnc": {"Agent", "update", "Args", "train"},
    "qmp_uds": {"ReplayBuffer", "update", "Args", "train"},
}
MISSING = {
    "qmp_mtsac": {"Args": 0, "Mixture": 1},
    "qmp_dnc": {"Agent": 0, "Args": 2, "train": 0},
    "qmp_uds": {"Args": 1, "train": 2},
}


def definitions(script):
    """{name: source with the comments above} of the statements of a script, in their order."""
    text = (ROOT / f"{script}.py").read_text()
    lines, blocks, end = text.splitlines(), {}, None
    for node in ast.parse(text).body:
        if end is not None:
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
    assert {name for name in common if ours[name] != theirs[name]} == DIFFERENT[script]
    for name, expected in MISSING[script].items():
        missing = [line for line in difflib.ndiff(ours[name], theirs[name]) if line[0] == "-"]
        assert len(missing) == expected, name
    docstrings = [importlib.import_module(name).__doc__ for name in ("qmp_sac", script)]
    letters = [text.partition("Letters in shapes")[2].split(".")[0] for text in docstrings]
    assert letters[1].startswith(letters[0])
