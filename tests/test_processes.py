"One trial on two CPU processes equals one process."
import subprocess, sys
from pathlib import Path

import pytest, torch

SCRIPT = Path(__file__).with_name("two_processes.py")


def run(folder, name, micro, accumulation, world):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    out = folder/name
    done = subprocess.run([sys.executable, *launch, SCRIPT, str(out), str(micro), str(accumulation), str(world)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory): return run(tmp_path_factory.mktemp("alone"), "one", 8, 1, 1)


@pytest.mark.parametrize("micro, accumulation, world", [(2, 4, 1), (4, 1, 2), (2, 2, 2)])
def test_parts_equal_the_whole(tmp_path, alone, micro, accumulation, world):
    parts = run(tmp_path, "parts", micro, accumulation, world)
    assert len(parts["logs"]) == len(alone["logs"]) == 3
    torch.testing.assert_close(parts["logs"], alone["logs"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts["weights"], alone["weights"], rtol=1e-5, atol=1e-5)
    assert abs(parts["eval"] - alone["eval"]) < 1e-5
