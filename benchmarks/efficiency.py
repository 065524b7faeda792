"""How fast fine-tuning with advft is, as ratios of runs that take turns: their
median, the quartiles of the pairs, and the floor below each.

python benchmarks/efficiency.py [--only step batching ...] [--quick]
    [--threads N] [--repeats N] [--out nbs/results/efficiency.json]
On a GPU if torch sees one. What lacks is left out: `cross_encoder` needs
pip install -c constraints.txt -e ".[dev,benchmarks]", `mixed` the CLEAR corpus
($ADVFT_CLEAR, or a download). The parts stand in efficiency_parts.py. About 18
minutes on two idle cores with one thread, and 4 GB.
"""
import argparse, json, logging, os, subprocess, sys, textwrap, time, warnings
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ |= dict(TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1", TORCHINDUCTOR_FORCE_DISABLE_CACHES="1") # before the libraries read them
import torch, transformers

from advft.core import write_whole
from advft.train import best_device
from efficiency_parts import PARTS
from options import count, new_file

def line(row):
    "A row of the table, and the facts below it."
    low, high = row["quartiles"]
    head = f"{row['what']:<46}{row['ratio']:>7.3f}  {f'{low:.3f}-{high:.3f}':<13} {row['target']}".rstrip()
    return "\n".join([head] + textwrap.wrap(row["facts"], 80, initial_indent="   ", subsequent_indent="   "))

def measure(name, quick, repeats):
    "Run a part and show its rows as they come. One that lacks a package or a file is left out, and says so."
    print(f"\n{name}: {PARTS[name].__doc__}", flush=True)
    start, found = time.perf_counter(), dict(rows=[], left_out=None)
    try:
        for row in PARTS[name](quick, repeats):
            found["rows"].append(row)
            print(line(row), flush=True)
    except (ImportError, OSError) as e:
        found["left_out"] = " ".join(f"{type(e).__name__}: {e}".split())
        print(textwrap.fill(f"left out: {found['left_out']}", 80, initial_indent="   ", subsequent_indent="   ", break_long_words=False, break_on_hyphens=False))
    return found | dict(seconds=round(time.perf_counter() - start, 1))

def about(args):
    "What the figures depend on."
    def installed(package):
        try: return version(package)
        except PackageNotFoundError: return None
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None
    packages = "advft", "torch", "transformers", "accelerate", "sentence-transformers", "datasets", "numpy"
    return dict(command=" ".join(["python benchmarks/efficiency.py", *sys.argv[1:]]), date=date.today().isoformat(), commit=commit,
                device=torch.cuda.get_device_name() if torch.cuda.is_available() else best_device().type, cores=os.cpu_count(), threads=args.threads,
                repeats=args.repeats, quick=args.quick, versions=dict(python=sys.version.split()[0]) | {p: installed(p) for p in packages},
                note="ratio: median of the pairs above / below, which are seconds unless `what` says otherwise; runs: all that each training gave.")

if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    ask.add_argument("--quick", action="store_true", help="a few steps, once, to see that it runs; its figures mean nothing")
    ask.add_argument("--threads", type=count, default=1, help="of torch; `ladder` has its own")
    ask.add_argument("--repeats", type=count, default=3, help="of whole trainings, each with its own seed")
    ask.add_argument("--out", type=new_file, help="a JSON file for the figures")
    args = ask.parse_args()
    if args.quick: args.repeats = 1
    warnings.simplefilter("ignore"); logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    result = about(args) | dict(parts={})
    print(f"{result['device']}, {args.threads} thread(s). Columns: ratio, quartiles, target")
    for name in args.only:
        result["parts"][name] = measure(name, args.quick, args.repeats)
        if args.out: write_whole(args.out, json.dumps(result, indent=1) + "\n")
