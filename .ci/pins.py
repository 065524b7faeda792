"Exit with 1 and a line if a package of this environment is not pinned in constraints.txt, or is there in another version."
import re, sys
from importlib.metadata import distributions
from pathlib import Path

PLATFORM = re.compile(r"(nvidia|cuda|triton|colorama|appnope|pywin32)") # come with a system or a device, not with us
OURS = "advft", "pip"

name = lambda s: re.sub(r"[-_.]+", "-", s).lower()
pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (Path(__file__).parent.parent/"constraints.txt").read_text(), re.M))
pins = {name(k): v for k, v in pins.items()}
here = {name(d.metadata["Name"]): d.version.split("+")[0] for d in distributions()}
odd = [f"{k} {v} (pinned: {pins.get(k, 'no')})" for k, v in sorted(here.items())
       if k not in OURS and not PLATFORM.match(k) and pins.get(k) != v]
if odd: sys.exit("constraints.txt does not describe this environment: " + ", ".join(odd))
