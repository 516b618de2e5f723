"""Whole runs of the four scripts: they learn, log and repeat; and what is common to them is the same to the letter."""

import ast
import difflib
import functools
import importlib
import json
import platform
import re
from dataclasses import fields
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs

ROOT = Path(__file__).parent.parent
SCRIPTS = ("qmp_sac", "qmp_mtsac", "qmp_dnc", "qmp_uds")
CASES = [
    ("qmp_sac", ""),
    ("qmp_mtsac", ""),
    ("qmp_mtsac", "--pcgrad"),
    ("qmp_dnc", "--kl-coef 0.1 --distill-period 200 --distill-steps 3"),
    ("qmp_uds", "--sharing-quantile 0.5"),
]
FULLY_SHARED = ("qmp_mtsac", "--fully-shared --no-qmp")
SHORT = (
    "--total-timesteps 600 --learning-starts 80 --batch-size 8 --hidden-sizes 16 16 --eval-episodes 1 "
    "--eval-frequency 300 --checkpoint-frequency 200"
).split()
TASKS = envs.TASKS["PointReach-v0"]
N = len(TASKS)


def train(script, run_dir, flags=""):
    """A short run in this process; returns its agent."""
    return importlib.import_module(script).main([*SHORT, "--run-dir", str(run_dir), *flags.split()])


def same(a, b):
    """Whether two agents have the same weights."""
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def rows(run_dir, name="evaluations"):
    return pd.read_csv(run_dir / f"{name}.csv")


def shares(rows):
    """Who acted: [evaluations, tasks, policies]."""
    return rows.filter(like="acted/").to_numpy().reshape(-1, N, N)


class Drift(gym.Env):
    """Tells task and step in the observation, and the action too in the reward.

    The first task terminates after 2 steps, the others are cut after 3, 4.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, task):
        self.task = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.array([100 * self.task], np.float32), {}

    def step(self, action):
        self.steps += 1
        end, info = self.steps == 2 + self.task, {"success": self.steps > 2, "distance": float(self.steps)}
        obs = np.array([100 * self.task + self.steps], np.float32)
        return obs, float(obs[0] + action[0]), end and self.task == 0, end and self.task > 0, info


def make_drift(seed, vectorization, render_mode):
    vec = SyncVectorEnv([lambda i=i: Drift(i) for i in range(3)], autoreset_mode=AutoresetMode.SAME_STEP)
    vec.metadata = vec.metadata | {"metrics": ["distance"]}
    return vec


class Noisy(gym.Wrapper):
    """PointReach seen through noise from NumPy's global generator, which is drawn from at creation too."""

    def __init__(self, task):
        super().__init__(gym.make("qmp/PointReach-v0", task=task))
        self.noise = np.random.normal(scale=0.1, size=2)

    def step(self, action):
        obs, *rest = self.env.step(action)
        return (obs + self.noise + np.random.normal(scale=0.1, size=2)).astype(np.float32), *rest


def make_noisy(seed, vectorization, render_mode):
    return SyncVectorEnv([lambda i=i: Noisy(i) for i in (0, 1)], autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function (script, flags) -> agent and folder of a run that is made once; tests leave the folder as it is."""

    def run(script, flags=""):
        run_dir = tmp_path_factory.mktemp("runs") / "run"
        return train(script, run_dir, flags), run_dir

    return functools.cache(run)


@pytest.mark.parametrize("script, flags", [*CASES, FULLY_SHARED])
def test_a_run_learns(tmp_path, monkeypatch, script, flags):
    module, updates = importlib.import_module(script), []
    flags = f"{flags} --total-timesteps 1e3 --train-frequency 2 --gradient-steps 3"
    args = tyro.cli(module.Args, args=[*SHORT, *flags.split()])
    torch.manual_seed(args.seed)
    before = module.Agent(N, 2, 2, args)  # as main makes it
    update = module.update
    monkeypatch.setattr(module, "update", lambda *args: updates.append(update(*args)) or updates[-1])
    after = train(script, tmp_path / "run", flags)
    assert len(updates) == 3 * sum(turn % 2 == 0 for turn in range(80 // N + 1, 1000 // N + 1))
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        assert b.isfinite().all()
        assert all(not torch.equal(x, y) for x, y in zip(a, b, strict=True)), name  # every slice of every layer moved

    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("losses/")}
    names = {"qf1_values", "qf2_values", "qf1_loss", "qf2_loss", "actor_loss", "entropy", "alpha", "alpha_loss"}
    names |= {"qmp_dnc": {"kl_penalty"}, "qmp_uds": {"shared"}}.get(script, set())
    assert tags == {f"losses/{name}{task}" for name in names for task in ("", *(f"/{task}" for task in TASKS))}
    assert all(np.isfinite(event.value) for tag in tags for event in events.Scalars(tag))


class Aim(gym.Env):
    """An episode is one action, which must meet the task's own number."""

    observation_space, action_space = gym.spaces.Box(0, 2, (1,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, task):
        self.task = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(1, self.task, np.float32), {}

    def step(self, action):
        miss = float(action[0]) - (-0.7, 0.7, 0.0)[self.task]
        return np.full(1, self.task, np.float32), -(miss**2), True, False, {"success": abs(miss) < 0.35}


def make_aims(seed, vectorization, render_mode):
    return SyncVectorEnv([lambda i=i: Aim(i) for i in range(3)], autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_task_is_solved(tmp_path, script):
    flags = "--env-id test_runs:make_aims --total-timesteps 900 --learning-starts 150 --batch-size 32 --alpha 0.02"
    flags += " --no-autotune --policy-lr 3e-3 --q-lr 3e-3 --hidden-sizes 32 32 --checkpoint-frequency 900"
    train(script, tmp_path / "run", flags + " --min-reward -3" * (script == "qmp_uds"))
    assert rows(tmp_path / "run")["success_rate"][-3:].tolist() == [1, 1, 1]


def test_learning_rates(runs):
    for flags, policies, critics in (("--policy-lr 1e-3", 1e-3, 3e-4), ("--q-lr 1e-3", 3e-4, 1e-3)):
        state = torch.load(runs("qmp_sac", flags)[1] / "checkpoint.pt", weights_only=True)
        rates = {name: state[name]["param_groups"][0]["lr"] for name in ("q", "actor", "alpha")}
        assert rates == {"q": critics, "actor": policies, "alpha": critics}


def test_what_is_logged_of_the_switch(tmp_path, monkeypatch):
    """Who acted since the last evaluation, and by how much they were rated above the own policy."""
    module, acted = importlib.import_module("qmp_sac"), []
    act, switch = module.Mixture.act, module.q_switch

    def recorded(mixture, *inputs):
        actions = act(mixture, *inputs)
        if not mixture.mean_actions:  # in training
            acted[-1].append(mixture.policies.cpu().numpy())
        return actions

    def recorded_switch(*inputs):
        chosen, scores = switch(*inputs)
        acted.append([scores.cpu().numpy()])
        return chosen, scores

    monkeypatch.setattr(module.Mixture, "act", recorded)
    monkeypatch.setattr(module, "q_switch", recorded_switch)
    train("qmp_sac", tmp_path / "run")
    events, own, table = EventAccumulator(str(tmp_path / "run")).Reload(), np.arange(N), rows(tmp_path / "run")
    turns = len(acted) - 300 // N
    for k, part in enumerate((acted[:turns], acted[turns:])):
        counts, advantage = np.zeros((N, N)), np.zeros(N)
        for scores, policies in part:
            counts[own, policies] += 1
            advantage += scores[own, policies] - scores.diagonal()
        np.testing.assert_allclose(shares(table)[k], counts / len(part))
        logged = [events.Scalars(f"switch/advantage/{task}")[k].value for task in TASKS]
        np.testing.assert_allclose(logged, advantage / len(part), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("flags", ["--own-policy-prob 0.5", "--no-qmp"])
def test_what_is_evaluated(tmp_path, monkeypatch, flags):
    """Own policies and the switch alone, by mean actions, in environments for evaluation."""
    module, made, calls = importlib.import_module("qmp_sac"), [], []
    make_vec, evaluate = module.make_vec, module.evaluate

    def recorded(*rest, evaluation=False):
        made.append((make_vec(*rest, evaluation=evaluation), evaluation))
        return made[-1][0]

    monkeypatch.setattr(module, "make_vec", recorded)
    monkeypatch.setattr(module, "evaluate", lambda *rest: calls.append(rest) or evaluate(*rest))
    train("qmp_sac", tmp_path / "run", f"{flags} --eval-mixture --eval-frequency 600 --eval-episodes 3")
    assert [evaluation for _, evaluation in made] == [False, True]
    assert [(actor.own_policy_prob, actor.mean_actions) for _, actor, *_ in calls] == [(1, True), (0, True)]
    assert all(envs is made[1][0] and episodes == 3 for envs, _, episodes, *_ in calls)


def test_evaluations(runs):
    _, run_dir = runs("qmp_sac")
    table = rows(run_dir)
    acted = [f"acted/{task}" for task in TASKS]
    columns = ["global_step", "acting", "task", "success_rate", "episodic_return", "episodic_length", *acted]
    assert [*table.columns] == columns
    keys = table[["global_step", "acting", "task"]].to_numpy().tolist()
    assert keys == [[step, "own", task] for step in (300, 600) for task in TASKS]
    assert (table["episodic_length"] == 50).all() and (table["episodic_return"] < 0).all()
    np.testing.assert_allclose(shares(table).sum(-1), 1)
    assert ((shares(table) > 0) & ~np.eye(N, dtype=bool)).any()
    np.testing.assert_array_equal(shares(rows(runs("qmp_sac", "--no-qmp")[1])), [np.eye(N)] * 2)


def test_nobody_acts_while_all_steps_are_random(runs, tmp_path, capsys):
    train("qmp_sac", tmp_path / "run", "--learning-starts 300")
    assert rows(tmp_path / "run").filter(like="acted/")[:N].isna().all(axis=None)
    np.testing.assert_allclose(shares(rows(tmp_path / "run"))[1].sum(-1), 1)
    tables = capsys.readouterr().out.split("step ")
    assert re.search(r"mean .* -\n", tables[1]) and not re.search(r"mean .* -\n", tables[2])


def test_mixtures_are_evaluated_too(runs):
    (own, own_dir), (both, both_dir) = runs("qmp_sac"), runs("qmp_sac", "--eval-mixture")
    assert same(own, both)
    table = rows(both_dir)
    pd.testing.assert_frame_equal(table[table["acting"] == "own"].reset_index(drop=True), rows(own_dir))
    mixtures = table[table["acting"] == "mixture"]
    assert len(mixtures) == len(rows(own_dir))
    np.testing.assert_allclose(mixtures.filter(like="acted/").sum(axis=1), 1)
    tags = EventAccumulator(str(both_dir)).Reload().Tags()["scalars"]
    assert "eval_mixture/success_rate" in tags and "eval/success_rate" in tags


def test_tensorboard_has_the_numbers_of_the_csv(runs):
    _, run_dir = runs("qmp_sac", "--env-id test_runs:make_drift")
    events, table = EventAccumulator(str(run_dir)).Reload(), rows(run_dir)
    for task, part in table.groupby("task"):
        numbers = {f"eval/{name}/{task}": part[name] for name in (*part.columns[3:6], "distance")}
        numbers[f"switch/own_policy/{task}"] = part[f"acted/{task}"]
        for tag, values in numbers.items():
            assert [event.value for event in events.Scalars(tag)] == pytest.approx([*values])
            assert [event.step for event in events.Scalars(tag)] == [300, 600]
    for name in ("success_rate", "distance"):
        values = [event.value for event in events.Scalars(f"eval/{name}")]
        assert values == pytest.approx([*table.groupby("global_step")[name].mean()])
    assert all(event.value >= -1e-4 for event in events.Scalars("switch/advantage"))  # argmax chooses no worse one
    assert all(abs(event.value - (101 + 102 + 103)) <= 3 for event in events.Scalars("charts/episodic_return/task-1"))
    assert {event.value for event in events.Scalars("charts/episodic_length/task-2")} == {4.0}
    assert events.Scalars("charts/SPS")[0].value > 0
    text = events.Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    batch_size: 8\n" in text and "    env_id: test_runs:make_drift\n" in text


def test_ends_of_episodes(runs):
    """Only terminations are stored as such; every transition has its own task's action, reward and last observation.

    The first actions are random, from -1 to 1.
    """
    _, run_dir = runs("qmp_sac", "--env-id test_runs:make_drift")
    filled = torch.load(run_dir / "checkpoint.pt", weights_only=True)["replay"]["filled"]
    obs, actions, rewards, next_obs, terminations = (x[:64] for x in filled)  # before the first checkpoint
    np.testing.assert_allclose(rewards, next_obs[..., 0] + actions[..., 0], rtol=1e-6)
    assert actions[:26].min() < -0.8 and actions[:26].max() > 0.8 and abs(actions[:26].mean()) < 0.3
    for task, length in enumerate((2, 3, 4)):
        steps = 1 + np.arange(64) % length
        np.testing.assert_array_equal(obs[:, task, 0], 100 * task + steps - 1)
        np.testing.assert_array_equal(next_obs[:, task, 0], 100 * task + steps)
        np.testing.assert_array_equal(terminations[:, task], (steps == length) & (task == 0))
    last = rows(run_dir)[["success_rate", "episodic_length", "distance"]][-3:]
    assert last.to_numpy().tolist() == [[0, 2, 2], [1, 3, 3], [1, 4, 4]]  # those of the very last step count


def test_args_json(runs):
    record = json.loads((runs("qmp_sac")[1] / "args.json").read_text())
    assert record["args"]["total_timesteps"] == 600 and record["tasks"] == list(TASKS)
    assert torch.__version__.startswith(record["versions"]["torch"])  # without the kind of build, as +cu130
    assert record["versions"].keys() >= {"numpy", "gymnasium", "mujoco", "metaworld"} and "git_commit" in record
    assert record["cpu"] in ("DEFAULT", "AVX2", "AVX512") or platform.machine() != "x86_64"


def test_console(tmp_path, capsys):
    """Also when it is not a terminal."""
    train("qmp_sac", tmp_path / "run")
    out, err = capsys.readouterr()
    start, *tables, end = out.splitlines()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert start == f"PointReach-v0: {', '.join(TASKS)}; {device}; in {tmp_path / 'run'}/evaluations.csv"
    assert end == f"step 600: results in {tmp_path / 'run'}; to plot: python benchmark/plot.py {tmp_path / 'run'}"
    assert [line for line in tables if line.startswith("step")] == ["step 300, own", "step 600, own"]
    assert tables[1].split() == ["task", "success", "return", "own", "policy"]
    last = rows(tmp_path / "run")[-N:]
    for line, (_, row) in zip(tables[-N - 1 :], last.iterrows(), strict=False):
        values = row["task"], row["success_rate"], row["episodic_return"], row[f"acted/{row['task']}"]
        assert line.split() == [value if isinstance(value, str) else f"{value:.2f}" for value in values]
    assert tables[-1].split()[:3] == ["mean", *(f"{last[key].mean():.2f}" for key in last.columns[3:5])]
    assert not err


@pytest.mark.parametrize("script, flags", CASES)
def test_without_qmp_a_run_is_the_base_method(runs, script, flags):
    (base, base_dir), (own, own_dir) = (runs(script, f"{flags} {x}") for x in ("--no-qmp", "--own-policy-prob 1"))
    assert same(base, own) and not same(base, runs(script, flags)[0])
    assert (base_dir / "evaluations.csv").read_bytes() == (own_dir / "evaluations.csv").read_bytes()


# A flag by itself, or added to those before it, changes what is learned.
FLAGS = {
    "qmp_sac": """--seed 2, --env-id PointReach2-v0, --total-timesteps 400, --learning-starts 100, --buffer-size 50,
        --batch-size 9, --gamma 0.9, --tau 0.1, --policy-lr 1e-3, --q-lr 1e-3, --train-frequency 2, --gradient-steps 2,
        --alpha 0.5, --no-autotune, --no-autotune --alpha 0.5, --no-qmp, --switch-samples 3,
        --switch-samples 3 --switch-entropy, --switch-rule uniform, --switch-rule softmax, --switch-period 5,
        --switch-rule softmax --switch-temperature 0.01, --own-policy-prob 0.5, --hidden-sizes 8,
        --checkpoint-frequency 250""",
    "qmp_mtsac": "--pcgrad, --no-qmp, --no-qmp --fully-shared, --double-tanh, --no-qmp --double-tanh",
    "qmp_dnc": "--kl-coef 0.1, --distill-period 200, --distill-period 200 --distill-steps 3",
    "qmp_uds": "--sharing-quantile 0.5, --min-reward -3",
}
# Covered by tests of their own, here and in test_resume.py.
OTHER_FLAGS = {
    "cuda",
    "num_threads",
    "compile",
    "vectorization",
    "run_dir",
    "resume",
    "eval_frequency",
    "eval_episodes",
}
OTHER_FLAGS |= {"eval_mixture", "eval_only", "capture_video", "track", "wandb_project_name", "wandb_entity"}


@pytest.mark.parametrize("script, flags", [(key, x.strip()) for key, text in FLAGS.items() for x in text.split(",")])
def test_a_flag_changes_what_is_learned(runs, script, flags):
    (agent, _), (plain, _) = runs(script, flags), runs(script, flags.rpartition("--")[0].strip())
    assert all(parameter.isfinite().all() for parameter in agent.parameters())
    shapes = [[parameter.shape for parameter in x.parameters()] for x in (agent, plain)]
    assert shapes[0] != shapes[1] or not same(agent, plain)
    if "--no-autotune" in flags:
        assert agent.log_alpha.exp().tolist() == pytest.approx([0.5 if "--alpha" in flags else 1.0] * N)


def test_every_flag_is_covered():
    names = {field.name for script in SCRIPTS for field in fields(importlib.import_module(script).Args)}
    covered = {x.removeprefix("no-").replace("-", "_") for text in FLAGS.values() for x in re.findall(r"--(\S+)", text)}
    assert {name.rstrip(",") for name in covered} | OTHER_FLAGS == names


@pytest.mark.parametrize(
    "flags",
    [
        "--vectorization async",
        "--num-threads 2",
        "--eval-frequency 100 --eval-episodes 2",
        "--eval-frequency 133",
        "--env-id test_runs:make_noisy --eval-frequency 100",
    ],
)
def test_a_flag_changes_nothing_that_is_learned(runs, monkeypatch, flags):
    """Evaluations draw from generators that they put back, also those that environments share with training."""
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    (agent, run_dir), (plain, _) = runs("qmp_sac", flags), runs("qmp_sac", " ".join(re.findall(r"--env-id \S+", flags)))
    assert same(agent, plain)
    steps = [100, 200, 300, 400, 500, 600] if "frequency 100" in flags else [300, 600]
    steps = [135, 270, 400, 535, 600] if "133" in flags else steps  # in the first turn at or after each multiple
    assert rows(run_dir)["global_step"].unique().tolist() == steps
    assert ("threads" in flags) == (2 in threads)


def test_no_cuda(tmp_path, monkeypatch):
    """As on a machine that has a GPU: with --no-cuda nothing asks for it. Without updates, in which PyTorch does."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    agent = train("qmp_sac", tmp_path / "run", "--no-cuda --train-frequency 1000")
    assert agent.log_alpha.device.type == "cpu"


@pytest.mark.parametrize("script, flags", [CASES[0], CASES[2]])
def test_a_compiled_update_learns_the_same(runs, tmp_path, monkeypatch, script, flags):
    """With PyTorch's compiler, but for the machine code that it makes at the end, which would take minutes."""
    torch.compiler.reset()
    compiled, compiler = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or compiler(f, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # else it would go on, not compiled
        other = train(script, tmp_path / "compiled", f"{flags} --compile")
    assert compiled == [importlib.import_module(script).update]
    for a, b in zip(runs(script, flags)[0].parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_video(tmp_path):
    train("qmp_sac", tmp_path / "run", "--capture-video --eval-mixture --env-id PointReach2-v0")
    videos = {path.name: path.stat().st_size for path in (tmp_path / "run" / "videos").iterdir()}
    assert videos.keys() == {f"{acting}-{step}.mp4" for acting in ("own", "mixture") for step in (300, 600)}
    assert min(videos.values()) > 1000


@pytest.mark.parametrize("text, steps", [("1e6", 1_000_000), ("1_000", 1000), ("2.5e3", 2500), ("5000", 5000)])
def test_step_counts(text, steps):
    args = tyro.cli(importlib.import_module("qmp_sac").Args, args=["--total-timesteps", text, "--learning-starts", "9"])
    assert args.total_timesteps == steps and type(args.total_timesteps) is int


# What may differ from qmp_sac.py. Of its Args, Mixture and main so many lines are missing.
DIFFERENT = {
    "qmp_sac": set(),
    "qmp_mtsac": {"Actor", "Critic", "Agent", "project_conflicts", "step_optimizer", "update", "Args", "Mixture"},
    "qmp_dnc": {"Agent", "kl_divergences", "distill", "update", "Args", "main"},
    "qmp_uds": {"ReplayBuffer", "share", "weighted_mean", "update", "Args", "main"},
}
MISSING = {("qmp_mtsac", "Mixture"): 1, ("qmp_uds", "Args"): 1, ("qmp_uds", "main"): 2}


def definitions(script):
    """{name: source with the comments above} of all statements of a script but its docstring, in their order."""
    text = (ROOT / f"{script}.py").read_text()
    lines, blocks, end = text.splitlines(), {}, None
    for node in ast.parse(text).body:
        if end is not None:
            name = getattr(node, "name", None) or ast.unparse(getattr(node, "targets", [node])[0])
            blocks[name] = [line for line in lines[end : node.end_lineno] if line]
        end = node.end_lineno
    return blocks


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_the_same_letters(script):
    ours, theirs = definitions("qmp_sac"), definitions(script)
    assert {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} == DIFFERENT[script]
    assert [name for name in theirs if name in ours] == list(ours)
    for name in {"Args", "Mixture", "main"} & DIFFERENT[script]:
        assert sum(line[0] == "-" for line in difflib.ndiff(ours[name], theirs[name])) == MISSING.get((script, name), 0)
    docstrings = [importlib.import_module(name).__doc__.splitlines() for name in ("qmp_sac", script)]
    assert docstrings[0][-1] == docstrings[1][-1]  # the letters in shapes


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_stay_short_and_explain_every_flag(script):
    text = (ROOT / f"{script}.py").read_text()
    tree = ast.parse(text)
    named = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert text.count("\n") <= (500 if script == "qmp_sac" else 580) and len(named) <= 16
    loops = [node for node in named["main"].body if isinstance(node, ast.For)]
    assert loops[-1].end_lineno - loops[-1].lineno < 60
    assert max(node.col_offset for node in ast.walk(tree) if isinstance(node, ast.stmt)) <= 4 * 4
    body = named["Args"].body
    for field, doc in zip(body, body[1:], strict=False):
        assert not isinstance(field, ast.AnnAssign) or isinstance(getattr(doc, "value", None), ast.Constant)


def test_without_divergences_dnc_is_qmp_sac(runs):
    (sac, sac_dir), (dnc, dnc_dir) = runs("qmp_sac"), runs("qmp_dnc", "--kl-coef 0")
    assert same(sac.actor, dnc.actor) and same(sac.qf, dnc.qf) and not same(sac.actor, runs("qmp_dnc")[0].actor)
    assert (sac_dir / "evaluations.csv").read_bytes() == (dnc_dir / "evaluations.csv").read_bytes()
