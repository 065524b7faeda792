"One training on two CPU processes equals one process, whatever the number of rows."
import math, subprocess, sys
from pathlib import Path

import pytest, torch

from two_processes import CASES

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "(processes, *case) -> what came out"
    folder, together = tmp_path_factory.mktemp("processes"), {}
    for world in CASES:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
        done = subprocess.run([sys.executable, *launch, SCRIPT, str(folder/str(world)), str(world)], capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        together |= {("own", world): [torch.load(folder/f"{world}.{rank}") for rank in range(world)]}
        together |= {(world, *case): result for case, result in torch.load(folder/str(world)).items()}
    return together


@pytest.mark.parametrize("case", [(w, *c) for w in CASES for c in CASES[w] if (w, *c[2:]) != (1, 8, 1)], ids=str)
def test_parts_equal_the_whole(found, case):
    _, kind, rows, _, _ = case
    parts, whole = found[case], found[1, kind, rows, 8, 1]
    assert len(parts["logs"]) == len(whole["logs"]) == 2 * math.ceil(rows / 8)
    torch.testing.assert_close(parts["logs"], whole["logs"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts["weights"], whole["weights"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts["predictions"], whole["predictions"], rtol=1e-4, atol=1e-4)
    if kind != "tokens": torch.testing.assert_close(parts["eval_loss"], whole["eval_loss"], rtol=1e-4, atol=1e-4) # the filled-up rows do not count
    rates = parts["logs"][:, 2] # linear, counted in optimizer steps
    torch.testing.assert_close(rates / rates[0], torch.linspace(1, 1 / len(rates), len(rates)))


def test_a_sampler_of_ones_own_gives_each_row_once(found):
    for world in CASES:
        rows = [y for one in found["own", world] for y in one["labels"]]
        assert sorted(rows) == list(range(16)) and rows != sorted(rows)


def test_processes_draw_weights_alike_and_dropout_apart(found):
    (weight, one), (other_weight, other) = [process["drawn"] for process in found["own", 2]]
    assert weight == other_weight and one != other


def test_split_batches_makes_the_updates_that_the_arguments_name(found):
    assert [one["steps"] for one in found["own", 1]] == [(4, 4)] and [one["steps"] for one in found["own", 2]] == [(2, 4)] * 2
