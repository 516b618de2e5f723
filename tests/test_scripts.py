"""What the four scripts have in common: the same letters where the methods agree, and the same contract."""

import difflib
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import equal
from test_resume import SHORT, crash, crash_at, rows, snapshot

ROOT = Path(__file__).parent.parent
CASES = [
    ("qmp_mtsac", ""),
    ("qmp_mtsac", "--pcgrad"),
    ("qmp_dnc", "--kl-coef 0.1 --distill-period 200"),
    ("qmp_uds", "--sharing-quantile 0.5"),
]
# What may differ from qmp_sac.py: these definitions, of which "train" by at most so many lines.
DIFFERENT = {
    "qmp_mtsac": {"Args", "Actor", "Critic", "project_conflicts", "step_optimizer", "update_critic", "update_actor"}
    | {"update"},
    "qmp_dnc": {"Args", "kl_divergences", "kl_penalty", "update_actor", "distill", "Agent", "make_agent", "update"}
    | {"read_kl_coef", "train", "check_args"},
    "qmp_uds": {"Args", "ReplayBuffer", "share", "weighted_mean", "update_critic", "update_actor", "update", "train"}
    | {"check_args"},
}


def main(script, run_dir, *flags):
    """The command line of a script, short; returns what `train` returned."""
    module, result = importlib.import_module(script), []
    train = module.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", lambda *args: result.append(train(*args)))
        module.main([*SHORT, "--run-dir", str(run_dir), *flags])
    return result[0] if result else None


TEXTS = [*(ROOT / "docs").glob("*.md"), ROOT / "benchmark" / "README.md"]
COMMANDS = {command.strip() for text in TEXTS for command in re.findall(r"^python qmp_.*$", text.read_text(), re.M)}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_of_the_pages(tmp_path, monkeypatch, command):
    """As written, but short; Meta-World's ten tasks stand for fifty."""
    monkeypatch.chdir(tmp_path)
    script, *flags = command.replace("MT50", "MT10").split()[1:]
    steps = "--total-timesteps 120 --learning-starts 60 --batch-size 4 --hidden-sizes 8".split()
    steps += "--eval-episodes 1 --eval-frequency 120".split()
    importlib.import_module(script.removesuffix(".py")).main([*flags, *steps, "--run-dir", "run"])
    assert int(rows(tmp_path / "run", "evaluations")[-1]["global_step"]) >= 120


def definitions(script):
    """{name: source} of the classes, functions and constants of a script, and its imports."""
    text = (ROOT / f"{script}.py").read_text()
    body = text.partition('"""\n\nimport ')[2]
    blocks = re.split(r"\n\n\n|\n(?=[A-Z]\w+ = |@dataclass\nclass Args)", body)
    named = {}
    for block in blocks:
        name = re.search(r"^(?:def|class) (\w+)|^(\w+) = ", block, re.M)
        named[(name[1] or name[2]) if name else "imports"] = block
    return named


@pytest.mark.parametrize("script", DIFFERENT)
def test_same_letters(script):
    ours, theirs = definitions("qmp_sac"), definitions(script)
    assert len(ours) > 40
    differing = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    if script == "qmp_uds":  # imports one name more
        differing.discard("imports")
    assert differing == DIFFERENT[script]
    order = [name for name in theirs if name in ours]
    assert order == list(ours)
    if "train" in differing:
        diff = difflib.ndiff(ours["train"].splitlines(), theirs["train"].splitlines())
        assert sum(line[0] in "+-" for line in diff) <= 10
    readers = [re.sub(r"\b(qmp_\w+)\.py", "", (ROOT / f"{name}.py").read_text()) for name in ("qmp_sac", script)]
    letters = [re.search(r"^Letters: .*$", text, re.M)[0] for text in readers]
    assert letters[0] == letters[1]


@pytest.mark.parametrize("script, flags", CASES)
def test_a_run_learns(tmp_path, script, flags):
    module = importlib.import_module(script)
    torch.manual_seed(1)
    before = module.make_agent(4, 2, 2, module.Args(hidden_sizes=(16, 16)), torch.device("cpu"))
    after = main(script, tmp_path / "run", *flags.split())
    for name in ("actor", "qf", "qf_target"):
        for a, b in zip(getattr(before, name).parameters(), getattr(after, name).parameters(), strict=True):
            assert b.isfinite().all()
            assert all(not torch.equal(x, y) for x, y in zip(a, b, strict=True))  # every slice of every layer moved
    assert [row["global_step"] for row in rows(tmp_path / "run", "evaluations")] == ["300"] * 4 + ["600"] * 4
    mixture = rows(tmp_path / "run", "mixture")
    assert len(mixture) == 2 * 16
    assert any(row["task"] != row["policy"] and float(row["probability"]) > 0 for row in mixture)


@pytest.mark.parametrize("script, flags", CASES)
def test_resumed_is_uninterrupted(tmp_path, monkeypatch, script, flags):
    main(script, tmp_path / "whole", *flags.split())
    for turn in (70, 60):
        crash_at(monkeypatch, turn, crash, importlib.import_module(script))
        with pytest.raises(KeyboardInterrupt):
            main(script, tmp_path / "cut", *flags.split(), *(["--resume"] if turn == 60 else []))
        monkeypatch.undo()
    main(script, tmp_path / "cut", *flags.split(), "--resume")
    assert equal(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("script, flags", [("qmp_sac", ""), CASES[1], CASES[3]])
def test_compiled_update_learns_the_same(tmp_path, monkeypatch, script, flags):
    """With PyTorch's compiler, but for the machine code that it makes at the end, which would take minutes."""
    torch.compiler.reset()
    compiled, compiler = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or compiler(f, backend="eager"))
    plain = main(script, tmp_path / "plain", *flags.split())
    assert not compiled
    other = main(script, tmp_path / "compiled", "--compile", *flags.split())
    assert compiled == [importlib.import_module(script).update]
    for name in ("actor", "qf", "qf_target"):
        for a, b in zip(getattr(plain, name).parameters(), getattr(other, name).parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("script, flags", CASES)
def test_qmp_off_is_the_base_method(tmp_path, script, flags):
    main(script, tmp_path / "base", "--no-qmp", *flags.split())
    main(script, tmp_path / "own", "--own-policy-prob", "1", *flags.split())
    main(script, tmp_path / "mixed", *flags.split())
    base, own, mixed = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("base", "own", "mixed"))
    for name, value in base["agent"]["actor"].items():
        assert torch.equal(value, own["agent"]["actor"][name])
    assert any(not torch.equal(value, mixed["agent"]["actor"][name]) for name, value in base["agent"]["actor"].items())


@pytest.mark.parametrize("script", DIFFERENT)
def test_eval_only_and_bad_input(tmp_path, capsys, script):
    main(script, tmp_path / "run", "--no-qmp")
    before = snapshot(tmp_path / "run")
    assert main(script, tmp_path / "run", "--eval-only") is None
    after = snapshot(tmp_path / "run")
    assert after.pop("final_evaluation.csv") and after == before
    capsys.readouterr()
    for flags in ("--gamma 2", "--resume --no-qmp --gamma 0.5", "--env-id PointReech-v0"):
        with pytest.raises(SystemExit) as stop:
            main(script, tmp_path / ("run" if "--resume" in flags else "new"), *flags.split())
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and error.startswith(f"{script}.py: error: ")
    assert snapshot(tmp_path / "run").keys() == before.keys() | {"final_evaluation.csv"}
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_belongs_to_its_script(tmp_path, capsys):
    main("qmp_mtsac", tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        main("qmp_sac", tmp_path / "run", "--resume")
    assert stop.value.code == 2 and "qmp_mtsac.py" in capsys.readouterr().err


def test_without_divergence_dnc_is_qmp_sac(tmp_path):
    sac = main("qmp_sac", tmp_path / "sac")
    dnc = main("qmp_dnc", tmp_path / "dnc", "--kl-coef", "0")
    pulled = main("qmp_dnc", tmp_path / "pulled", "--kl-coef", "0.1")
    for a, b in ((sac.actor, dnc.actor), (sac.qf, dnc.qf)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(sac.actor.net[0].weight, pulled.actor.net[0].weight)
    for name in ("evaluations.csv", "mixture.csv"):
        assert (tmp_path / "sac" / name).read_bytes() == (tmp_path / "dnc" / name).read_bytes()
    assert np.isfinite([float(row["episodic_return"]) for row in rows(tmp_path / "pulled", "evaluations")]).all()


def test_weights_of_divergences_belong_to_the_run(tmp_path, capsys):
    """What the file says later, or whether it is still there, does not matter to a run that goes on."""
    table = tmp_path / "beta.csv"
    np.savetxt(table, np.full((4, 4), 0.5), delimiter=",")
    main("qmp_dnc", tmp_path / "run", "--kl-coef", str(table))
    table.unlink()
    agent = main("qmp_dnc", tmp_path / "run", "--resume", "--total-timesteps", "700")
    assert agent.kl_coef.tolist() == (0.5 * (1 - torch.eye(4))).tolist()
