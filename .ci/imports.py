"Import the installed wheel, outside of the checkout and without anything for development."
import contextlib, importlib, importlib.util, io, pkgutil, sys

said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said): import advft.layer_decay
heavy = [m for m in sys.modules if m.partition(".")[0] == "datasets" or (m.startswith("transformers.models.") and ".modeling_" in m)]
assert not said.getvalue(), f"import advft.layer_decay prints {said.getvalue()!r}"
assert not heavy, f"import advft.layer_decay brings {heavy[:5]}"
assert "site-packages" in advft.__file__, f"this is no installed wheel: {advft.__file__}"
assert importlib.util.find_spec("nbdev") is None, "nbdev is here: the environment is not empty"

from advft.data import leveled_passages

assert len(leveled_passages()) == 300, f"{len(leveled_passages())} passages, not 300"
for m in pkgutil.iter_modules(advft.__path__): importlib.import_module(f"advft.{m.name}")
print("advft", advft.__version__, "with", *(m.name for m in pkgutil.iter_modules(advft.__path__)))
