"""Coverage for every process of an environment, notebooks included; .ci/run puts this file into its own environment.

nbdev tests a notebook's own copy of the exported cells, so the module that holds the same lines would look untested.
Here such a cell is compiled under the module's name and line numbers, and what the notebook runs counts for the module.
"""
import ast, linecache, os, re, sys
from pathlib import Path

DIRECTIVES = re.compile(r"\A(?:\s*#\s*\|[^\n]*\n)*")


def blocks(package):
    "The exported cells of a package: source without directives -> (file, line before its first line)."
    found, relative = {}, re.compile(r"^(\s*from )\.", re.M) # nbdev writes `from .core` for a notebook's `from advft.core`
    for file in Path(package).resolve().glob("*.py"):
        head, *cells = re.split(r"^# %% .*\n", text := file.read_text(encoding="utf-8"), flags=re.M)
        for m, source in zip(re.finditer(r"^# %% .*\n", text, re.M), cells):
            found[relative.sub(rf"\1{package}.", source).strip()] = str(file), text[:m.end()].count("\n")
    return found


def map_cells(package):
    "Compile exported cells, wherever IPython runs them, as lines of their modules."
    from IPython.core.compilerop import CachingCompiler as Compiler
    known, cache, parse, offset = blocks(package), Compiler.cache, Compiler.ast_parse, {}

    def new_cache(self, code, number=0, raw_code=None):
        file, line = known.get(DIRECTIVES.sub("", raw_code or code).strip(), (None, 0))
        name = cache(self, code, number, raw_code)
        if file is None: return name
        linecache.cache.pop(name, None)
        offset[file] = line - DIRECTIVES.match(raw_code or code)[0].count("\n")
        return file

    def new_parse(self, source, filename="<unknown>", symbol="exec"):
        tree = parse(self, source, filename, symbol)
        return ast.increment_lineno(tree, offset[filename]) if filename in offset else tree

    Compiler.cache, Compiler.ast_parse = new_cache, new_parse


if os.environ.get("COVERAGE_PROCESS_START"):
    import coverage
    coverage.process_startup()
    if any(Path(a).name == "nbdev_test" for a in sys.orig_argv[:3]): map_cells("advft")
