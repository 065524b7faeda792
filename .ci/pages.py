"""Check the pages of the site.

python .ci/pages.py         every notebook stands once in nbs/sidebar.yml, and nothing else does; none has an error or a path of a machine saved
python .ci/pages.py _proc   every notebook, and all that Quarto needs beside them, was processed into that folder
"""
import json, re, sys
from collections import Counter
from pathlib import Path
import yaml

NBS = Path(__file__).resolve().parent.parent/"nbs"


def entries(contents):
    "The files of a sidebar, sections opened."
    for c in contents:
        if isinstance(c, str): yield c
        elif "contents" in c: yield from entries(c["contents"])
        else: yield c["href"]


there = {p.name for p in NBS.glob("[!_.]*.ipynb")}
if sys.argv[1:]:
    need = there | {"_quarto.yml", "nbdev.yml", "sidebar.yml", "styles.css"} | {p.name for p in NBS.glob("images/*")}
    made = {p.name for p in Path(sys.argv[1]).rglob("*") if p.is_file() and p.stat().st_size}
    if need - made: sys.exit(f"not in {sys.argv[1]}: {', '.join(sorted(need - made))}")
else:
    listed = Counter(entries(yaml.safe_load((NBS/"sidebar.yml").read_text())["website"]["sidebar"]["contents"]))
    wrong = {"missing": there - set(listed), "no such file": set(listed) - there, "twice": {k for k, n in listed.items() if n > 1}}
    lines = [f"{what}: {', '.join(sorted(files))}" for what, files in wrong.items() if files]
    if lines: sys.exit("nbs/sidebar.yml: " + "; ".join(lines))
    saved = {p.name: [o for c in json.loads(p.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])] for p in NBS.glob("*.ipynb")}
    errors = [n for n, outputs in saved.items() if any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs)]
    paths = [n for n, outputs in saved.items() if re.search(r"/(tmp|root|home|Users)/\w", json.dumps(outputs))]
    if errors or paths: sys.exit(f"saved outputs: errors or warnings in {', '.join(errors) or 'none'}; paths of a machine in {', '.join(paths) or 'none'}")
