"Importing the package does nothing that the importer can notice, and --help waits for no big library."
import subprocess, sys

import pytest

BIG = {"torch", "transformers", "pandas", "datasets", "sklearn", "accelerate", "matplotlib", "scipy"}
LATER = {"transformers", "datasets", "accelerate"} # may wait until something is trained

WATCH = """
import os, random, sys, threading, warnings
import numpy as np, torch
opened = []
def watch(event, args):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"): opened.append(event)
sys.addaudithook(watch)
def state():
    return (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(), torch.cuda.is_initialized(),
            dict(os.environ), list(warnings.filters), warnings.showwarning, os.listdir("."))
before = state()
import advft.{module}
assert state() == before, "the import changed a generator, a setting, the environment, or a file"
assert not opened, opened
assert threading.active_count() == 1, threading.enumerate()
"""
NO_MODELS = """
import sys
found = [m for m in sys.modules if m.partition(".")[0] == "datasets" or m == "transformers.modeling_utils"
         or (m.startswith("transformers.models.") and ".modeling_" in m)]
assert not found, found
"""
ABSENT = """
import sys
found = sorted({big} & {{m.partition(".")[0] for m in sys.modules}})
assert not found, found
"""
MAIN = """
import contextlib, io
from advft.cli import main
said = io.StringIO()
with contextlib.redirect_stdout(said):
    try: main({args})
    except SystemExit as end: assert not end.code, end.code
assert "{says}" in said.getvalue(), said.getvalue()
"""


def runs(code, folder, absent):
    "Run code in a fresh process and an empty folder: it succeeds, prints nothing, and does not import these packages."
    code = [sys.executable, "-c", code + ABSENT.format(big=absent)]
    done = subprocess.run(code, cwd=folder, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["layer_decay", "all"])
def test_an_import_leaves_no_trace(module, tmp_path): runs(WATCH.format(module=module) + NO_MODELS, tmp_path, LATER)


@pytest.mark.parametrize("module, absent", [("core", BIG), ("data", BIG - {"pandas"})])
def test_an_import_is_light(module, absent, tmp_path): runs(f"import advft.{module}\n", tmp_path, absent)


@pytest.mark.parametrize("args, says, absent", [
    (["--help"],           "ladder", BIG),
    (["ladder", "--help"], "Example: advft ladder", BIG),
    (["techniques"],       "layer_decay(", LATER)])
def test_help_is_light(args, says, absent, tmp_path): runs(MAIN.format(args=args, says=says), tmp_path, absent)


def test_all_has_every_public_name():
    import advft.all
    assert {"Recipe", "LayerDecay", "run_ladder", "fine_tune", "AdvTrainer", "read_table"} <= set(advft.all.__all__)
    for name in advft.all.__all__: assert getattr(advft.all, name) is not None
