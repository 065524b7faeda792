"""Make README.md from nbs/index.ipynb.

python .ci/readme.py            write README.md
python .ci/readme.py --check    exit with 1 and a line if README.md is not what would be written, or links to a file that is not there
"""
import json, posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"^#\s*\|\s*(.+?)\s*$", re.M)
LINK = re.compile(r"(`[^`]*`)|(\]\()([^)\s]+)") # code spans are matched first, and left alone
WHOLE = re.compile(r"[a-z][a-z+.-]*:|[#/]", re.I) # an address, an anchor, or absolute: nothing to rewrite


def relink(text):
    "Rewrite links relative to nbs/ so that they work from the root; fenced code is left alone."
    def sub(m): return m[0] if m[1] or WHOLE.match(m[3]) else m[2] + posixpath.normpath("nbs/" + m[3])
    parts = re.split(r"(^```.*?^```\s*?$)", text, flags=re.M | re.S)
    return "".join(p if i % 2 else LINK.sub(sub, p) for i, p in enumerate(parts))


def fence(text, language=""): return f"```{language}\n{text.rstrip()}\n```"


def output(o):
    "One output of a cell as markdown, or None."
    if o["output_type"] == "stream": return fence("".join(o["text"])) if o["name"] == "stdout" else None
    data = {k: "".join(v) if isinstance(v, list) else v for k, v in o.get("data", {}).items()}
    if "text/markdown" in data: return relink(data["text/markdown"].strip())
    if any(k.startswith("image/") for k in data):
        sys.exit("index.ipynb holds a picture as output; save it in nbs/images and show it from a markdown cell")
    return fence(data["text/plain"]) if "text/plain" in data else None


def code(cell):
    "A code cell's source and outputs as blocks of markdown."
    source = "".join(cell["source"])
    directives = {d.split(":")[0].split()[0]: d.split(":")[-1].strip() for d in DIRECTIVE.findall(source)}
    if {"hide", "default_exp", "export", "exporti"} & set(directives) or directives.get("include") == "false": return []
    source = re.sub(r"^#\s*\|.*\n?", "", source, flags=re.M).strip()
    shown = [fence(source, "python")] if source and directives.get("echo") != "false" else []
    return shown + ([] if directives.get("output") == "false" else list(filter(None, map(output, cell["outputs"]))))


def readme(notebook):
    "README.md's text."
    blocks = ["<!-- Made from nbs/index.ipynb by .ci/readme.py; edit that notebook instead. -->"]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown": blocks.append(relink("".join(cell["source"]).strip()))
        elif cell["cell_type"] == "code": blocks += code(cell)
    return "\n\n".join(filter(None, blocks)) + "\n"


def dead_links(text):
    "Relative links to files that do not exist."
    targets = [m[3].split("#")[0] for m in LINK.finditer(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)) if m[2]]
    return [t for t in targets if not WHOLE.match(t) and not (ROOT/t).exists()]


if __name__ == "__main__":
    new, file = readme(ROOT/"nbs/index.ipynb"), ROOT/"README.md"
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    if sys.argv[1:] == ["--check"]:
        if new != old: sys.exit("README.md differs from nbs/index.ipynb: run python .ci/readme.py")
        if dead := dead_links(new): sys.exit(f"README.md links to files that do not exist: {', '.join(dead)}")
    elif sys.argv[1:]: sys.exit(__doc__)
    elif new != old: file.write_text(new, encoding="utf-8")
