"A training that is killed while it averages goes on as if nothing had happened."
import os, signal, subprocess, sys
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("averaged_training.py")


def train(folder, *kill):
    "Exit code of a training in a process of its own."
    done = subprocess.run([sys.executable, SCRIPT, folder, *map(str, kill)], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    return done.returncode


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert train(folder) == 0
    return folder, torch.load(folder/"end.pt")


def test_the_phase_is_averaged_and_saved(unbroken):
    folder, end = unbroken
    assert not same(end["raw"], end["final"])
    best = min((h for h in end["log"] if "eval_loss" in h and h["step"] > 12), key=lambda h: h["eval_loss"])["step"]
    assert same(load_file(folder/f"checkpoint-{best}/model.safetensors"), end["final"]), "the final weights are the best average"


# 24 steps, averaged from the 13th on, evaluated at every second and each epoch's end, saved at each
@pytest.mark.parametrize("event, step", [("step_end", 13), ("before_save", 14), ("after_save", 15), ("evaluate", 16), ("save", 18), ("before_save", 24), ("save", 6)])
def test_a_killed_training_ends_the_same(event, step, unbroken, tmp_path):
    assert train(tmp_path, event, step) == -signal.SIGKILL
    assert not (tmp_path/"end.pt").exists()
    assert train(tmp_path) == 0
    end = torch.load(tmp_path/"end.pt")
    assert same(end["raw"], unbroken[1]["raw"])
    assert same(end["final"], unbroken[1]["final"])
    assert end["log"] == unbroken[1]["log"]


def test_killed_twice(unbroken, tmp_path):
    assert train(tmp_path, "evaluate", 14) == train(tmp_path, "step_end", 20) == -signal.SIGKILL
    assert train(tmp_path) == 0
    assert same(torch.load(tmp_path/"end.pt")["final"], unbroken[1]["final"])
