"Kills, damage and several commands at once: what a notebook cannot show."
import json, shutil, signal, subprocess, sys, time

import psutil, pytest

from advft.ladder import read_trial

COMMAND = [sys.executable, "-c", "from advft.cli import main; main()", "ladder", "table.csv", "--folds", "2", "--group", "topic", "--jobs", "2"]
RECIPES = [a for r in ("layer_decay(0.9)", "layer_decay(0.5)") for a in ("--recipe", f"recipe(learning_rate=1e-3, epochs=2, batch_size=4, max_length=32) + {r}")]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_bert, passages):
    folder = tmp_path_factory.mktemp("ladder")
    passages.to_csv(folder/"table.csv", index=False)
    return folder, COMMAND + ["--model", str(tiny_bert)] + RECIPES


def start(place, out): return subprocess.Popen([*place[1], "--out", out], cwd=place[0], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(place, out):
    done = start(place, out)
    stdout, stderr = done.communicate(timeout=300)
    assert done.returncode == 0, stderr
    return stdout


def trials(place, out): return {p.name: p for p in (place[0]/out/"trials").glob("*.json")}


def outcome(place, out): return {n: {k: v for k, v in json.loads(p.read_text()).items() if k != "cost"} for n, p in trials(place, out).items()}


@pytest.fixture(scope="module")
def whole(place):
    finish(place, "whole")
    return outcome(place, "whole")


def wait_for(place, out, count, process):
    "Wait for `count` finished trials; every file seen on the way is whole."
    while len(found := trials(place, out)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert all(read_trial(p) for p in found.values())
        time.sleep(0.02)


def end(process, how):
    "Send a signal; the command ends at once, and within five seconds its workers are gone."
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    code = process.wait(timeout=15)
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not [p for p in alive if "resource_tracker" not in " ".join(p.cmdline())]
    return code, process.communicate(timeout=15)[1]


def test_killed_again_and_again_it_ends_like_an_uninterrupted_run(place, whole):
    kept = {}
    for count, how in (0, signal.SIGKILL), (3, signal.SIGKILL), (6, signal.SIGINT), (9, signal.SIGKILL):
        process = start(place, "killed")
        while not psutil.Process(process.pid).children(): time.sleep(0.02)
        wait_for(place, "killed", count, process)
        code, stderr = end(process, how)
        assert code == (130 if how == signal.SIGINT else -9) and "Traceback" not in stderr
        now = {n: p.read_bytes() for n, p in trials(place, "killed").items()}
        assert count <= len(now) < len(whole) and kept.items() <= now.items()
        kept = now
    finish(place, "killed")
    assert outcome(place, "killed") == whole
    assert kept.items() <= {n: p.read_bytes() for n, p in trials(place, "killed").items()}.items()
    assert not list((place[0]/"killed"/"trials").glob("*.tmp"))


def test_damaged_trials_are_set_aside_and_run_again(place, whole):
    shutil.copytree(place[0]/"whole", place[0]/"damaged")
    names = sorted(trials(place, "damaged"))
    folder = place[0]/"damaged"/"trials"
    (folder/names[0]).write_text('{"rung": ')
    (folder/names[1]).with_suffix(".csv").write_text("part,row\n")
    process = start(place, "damaged")
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == 0 and stderr.count("is damaged") == 2
    assert outcome(place, "damaged") == whole
    assert len(list(folder.glob("*.broken"))) == 4


SCRIPT = """
import sys, time
from pathlib import Path
from advft.core import Rung
from advft.ladder import MeanRung, run_ladder

class Logged(Rung):
    "Writes a line for each fit."
    def __init__(self, name): self.name = name
    def fit(self, train, valid, seed):
        with open("fits.txt", "a") as f: f.write(f"{self.name} {len(train)} {seed}\\n")
        time.sleep(0.3)
        return MeanRung().fit(train, valid, seed)

print(run_ladder("table.csv", [Logged(n) for n in "abcd"], folds=2, seeds=(0, 1), group="topic", model=sys.argv[1], out="both", jobs=2, progress=False).show())
"""


def test_two_commands_do_no_trial_twice(place, tiny_bert):
    folder = place[0]
    (folder/"both.py").write_text(SCRIPT)
    both = [subprocess.Popen([sys.executable, "both.py", str(tiny_bert)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    fits = (folder/"fits.txt").read_text().splitlines()
    assert len(fits) == 16 and len(trials(place, "both")) == 16


WARNS = """
import sys, warnings
from advft.core import Rung
from advft.ladder import MeanRung, run_ladder

class Warns(Rung):
    name = "warns"
    def fit(self, train, valid, seed):
        for text in ("this is\\nodd", "that too", "this is\\nodd"): warnings.warn(text)
        return MeanRung().fit(train, valid, seed)

run_ladder("table.csv", [Warns()], folds=2, group="topic", model=sys.argv[1], out="warned", jobs=1, progress=False)
"""


def test_a_worker_says_each_warning_once_in_one_line(place, tiny_bert):
    (place[0]/"warns.py").write_text(WARNS)
    done = subprocess.run([sys.executable, "-W", "always", "warns.py", str(tiny_bert)], cwd=place[0], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines() == ["note: this is odd", "note: that too"]
