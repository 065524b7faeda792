"""What each way to save time or memory costs on a model:
`advft.checkpointing.cost_table`, some rounds of it, as medians.

Each setting of each round trains a few steps in a process of its own. A ratio
is to plain training of the same round. On a GPU if torch sees one. About three
minutes for MiniLM on two idle cores with one thread; `--model` takes any name
or folder.
python benchmarks/costs.py --out nbs/results/costs.json
"""
import argparse, json, os, platform, subprocess, sys
from datetime import date
from pathlib import Path

os.environ |= dict(TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import accelerate, pandas as pd, torch, transformers

from advft.checkpointing import cost_settings, cost_table
from advft.core import Recipe, find_model, model_digest, write_whole
from advft.layer_stack import layer_stack
from advft.train import best_device, load_model
from options import count, model, new_file

FIGURES = "seconds", "seconds_ratio", "memory_mb", "memory_ratio"

def about(args):
    "What the figures depend on."
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None
    device = best_device()
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__, accelerate=accelerate.__version__)
    return dict(command=" ".join(["python benchmarks/costs.py", *sys.argv[1:]]), date=date.today().isoformat(), commit=commit,
                device=torch.cuda.get_device_name() if device.type == "cuda" else device.type, threads=args.threads, versions=versions,
                model=args.model, model_digest=model_digest(find_model(args.model)), batch_size=args.batch_size, max_length=args.max_length,
                steps=args.steps, rounds=args.rounds, data="passages",
                note="Medians over rounds; a ratio is to plain training of the same round. memory_mb: what training adds to the loaded model, at its peak.")

def middle(rounds):
    "Setting -> the median of each figure over the rounds, every value, and the error if there was one."
    table = {}
    for name in rounds[0].index:
        each = pd.DataFrame([r.loc[name] for r in rounds])
        medians = {f: None if pd.isna(m := pd.to_numeric(each[f]).median()) else float(m) for f in FIGURES}
        table[name] = medians | dict(error=max(each.error, key=len), values={f: [None if pd.isna(v) else float(v) for v in each[f]] for f in FIGURES})
    return table

def main(args):
    torch.set_num_threads(args.threads)
    settings = cost_settings(len(layer_stack(load_model(args.model))))
    if args.only: settings = {"plain": ""} | {k: v for k, v in settings.items() if k in args.only}
    base, rounds = Recipe(batch_size=args.batch_size, max_length=args.max_length), []
    for i in range(args.rounds):
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
        rounds.append(cost_table(args.model, None, settings, base, args.steps))
    rows = middle(rounds)
    print(pd.DataFrame(rows).T[["seconds_ratio", "memory_ratio", "error"]].to_string(float_format=lambda v: f"{v:.3f}"))
    if args.out: write_whole(args.out, json.dumps(about(args) | dict(settings=settings, rows=rows), indent=1) + "\n")

if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", type=model, default="minilm", help="name or folder")
    ask.add_argument("--only", nargs="+", choices=list(cost_settings(2)), metavar="SETTING", help=f"some beside plain, of: {', '.join(list(cost_settings(2))[1:])}")
    ask.add_argument("--batch-size", type=count, default=16)
    ask.add_argument("--max-length", type=count, default=128, help="tokens; the passages have some ninety")
    ask.add_argument("--steps", type=count, default=3, help="timed steps of each setting")
    ask.add_argument("--rounds", type=count, default=1)
    ask.add_argument("--threads", type=count, default=1, help="of torch")
    ask.add_argument("--out", type=new_file, help="a JSON file for the figures")
    main(ask.parse_args())
