"Two processes under torchrun train as one does: bare loops, fine_tune and the command line."
import os, subprocess, sys
from pathlib import Path

import pytest, torch

from advft.data import leveled_passages
from conftest import save_tiny
from two_devices import RECIPES, ROWS, STILL, dropped, tuned

SCRIPT = Path(__file__).with_name("two_devices.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    save_tiny(folder/"tiny", **STILL)
    save_tiny(folder/"dropout")
    leveled_passages().sample(12, random_state=1).to_csv(folder/"table.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def two(folder):
    "What each of two processes found."
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, str(folder)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=400, env=os.environ | dict(OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder/f"found.{rank}", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(folder): return tuned(f"{folder}/tiny")


def test_processes_are_seen(two):
    for rank, found in enumerate(two):
        assert found["alone"] == ("2 processes must train together, got 1 of 2 started; each would train by itself: "
                                  "without a GPU, set use_cpu=True in TrainingArguments, or cpu=True in Accelerator")
        assert tuple(found["together"])[:4] == tuple(found["after"])[:4] == (2, 2, rank, "gloo")
        assert found["three"].startswith("3 processes must train together, got 2 of 2 started; launch the script with torchrun --nproc_per_node 3")


def test_accumulate_is_exact(two):
    for found in two:
        assert {n for _, n, _ in found["parts"]} == set(ROWS) and len(found["parts"]) == 24
        losses, gradients = zip(*found["parts"].values())
        assert max(gradients) < 1e-12 and max(losses) < 1e-5, found["parts"] # a causal model gives its loss in single precision


def test_an_uneven_update_is_exact_and_a_stock_one_is_not(two):
    for name in "stock", "ours":
        assert torch.equal(two[0][name][1], two[1][name][1]) # the processes agree, rightly or wrongly
        _, gradient, whole = two[0][name]
        off = (gradient - whole).norm() / whole.norm()
        assert off > 0.3 if name == "stock" else off < 1e-6, (name, off)


def test_each_process_drops_other_units(two, folder):
    masks = {name: [found[name][0] for found in two] for name in ("stock", "ours")}
    assert torch.equal(*masks["stock"]) and not torch.equal(*masks["ours"])
    assert torch.equal(*[found["dropped"] for found in two]) # and still they train one model
    assert not torch.equal(two[0]["dropped"], dropped(f"{folder}/dropout")) # by other draws than one process makes


@pytest.mark.parametrize("recipe", RECIPES)
def test_fine_tune_is_the_training_of_one(two, one, recipe):
    for found in two:
        torch.testing.assert_close(found["tuned"][recipe]["weights"], one[recipe]["weights"], rtol=1e-4, atol=1e-4)
        assert found["tuned"][recipe]["score"] == pytest.approx(one[recipe]["score"], abs=1e-4)
        for (*at, value), (*expected_at, expected) in zip(found["tuned"][recipe]["log"], one[recipe]["log"], strict=True):
            assert at == expected_at and value == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert torch.equal(two[0]["tuned"][recipe]["weights"], two[1]["tuned"][recipe]["weights"])


def test_the_command_line_writes_once(two, folder):
    from advft.train import FineTuned
    (code, said), (other_code, silence) = (found["line"] for found in two)
    assert code == other_code == 0 and silence == "" and said.count("saved to") == 1
    assert len(FineTuned.load(folder/"model").predict(["We learn."])) == 1


def test_accelerate_launch_starts_one_on_cpus(tmp_path):
    script = tmp_path/"script.py"
    script.write_text("from accelerate import Accelerator\nfrom advft.devices import check_processes\nAccelerator(cpu=True)\ncheck_processes(2)\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", script]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=100, env=os.environ | dict(OMP_NUM_THREADS="1"))
    assert done.returncode and "2 processes must train together, got 1 of 1 started; launch the script with torchrun --nproc_per_node 2" in done.stderr
