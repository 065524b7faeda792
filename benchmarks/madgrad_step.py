"""A step of MADGRAD beside pytorch_optimizer's, with and without its foreach route, and torch's fused AdamW, on bert-base's 110 million weights.

The optimizers take turns on the same weights and gradients. `cpu` is processor time over threads, which other work on the machine
changes least; `wall` is the clock's. The floor is the traffic that a step cannot avoid, at the rate at which this machine adds one
large tensor to another. Needs 6 GB and, on idle cores, two minutes.
python benchmarks/madgrad_step.py --out nbs/results/madgrad_speed.json
"""
import argparse, json, platform, subprocess, time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import pandas as pd, torch, pytorch_optimizer

from advft.madgrad import MADGRAD
from options import count, new_file

MADGRAD_FLOATS, ADAMW_FLOATS = 8, 7 # moved a weight: weight, gradient, sums (and start) read; weight and sums written
ADDED = 2**26 # numbers of the tensors whose addition gives the memory rate; 12 bytes each

def bert_base(layers=12, width=768, inner=3072, words=30522, positions=512):
    "The shapes of bert-base's parameters."
    dense = lambda rows, columns: [(rows, columns), (rows,)]
    norm = [(width,), (width,)]
    layer = dense(width, width) * 4 + norm + dense(inner, width) + dense(width, inner) + norm
    return [(words, width), (positions, width), (2, width), *norm, *layer * layers, *dense(width, width)]

def steps(params):
    "Name -> (a call that makes a step, floats it must move a weight); the MADGRADs have the same settings."
    theirs = pytorch_optimizer.MADGRAD(params, lr=1e-3)
    def their_step(foreach):
        theirs.param_groups[0]["foreach"] = foreach
        theirs.step()
    adamw = torch.optim.AdamW(params, lr=1e-5, fused=True)
    return {"MADGRAD": (MADGRAD(params, lr=1e-3).step, MADGRAD_FLOATS),
            "pytorch_optimizer": (lambda: their_step(None), MADGRAD_FLOATS),
            "pytorch_optimizer, foreach=False": (lambda: their_step(False), MADGRAD_FLOATS),
            "AdamW, fused": (adamw.step, ADAMW_FLOATS)}

def timed(call):
    "(wall, processor) seconds of a call."
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu

def measure(calls, rounds, threads):
    "Name -> a (wall, processor) pair a round; processor seconds a thread."
    torch.set_num_threads(threads)
    found = {name: [] for name in calls}
    for round in range(rounds + 1): # the first one warms up and is not kept
        for name, call in calls.items():
            times = [timed(call) for _ in range(5 if name == "add" else 1)]
            if round: found[name] += [(wall, cpu / threads) for wall, cpu in times]
    return found

def rows(found, floats, numbers, threads):
    "A row for each optimizer: seconds, ratios to both of pytorch_optimizer's routes, bytes and floor."
    rate = 12 * ADDED / min(cpu for _, cpu in found["add"])
    for name, moved in floats.items():
        ratio = lambda i, other: median(a[i] / b[i] for a, b in zip(found[name], found[other]))
        yield dict(optimizer=name, threads=threads, cpu=median(c for _, c in found[name]), wall=median(w for w, _ in found[name]),
                   ratio_cpu=ratio(1, "pytorch_optimizer"), ratio_wall=ratio(0, "pytorch_optimizer"),
                   ratio_cpu_no_foreach=ratio(1, "pytorch_optimizer, foreach=False"),
                   gigabytes=4e-9 * moved * numbers, rate=rate / 1e9, floor=4 * moved * numbers / rate)

def main(args):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s) * 0.02) for s in bert_base()]
    for p in params: p.grad = torch.randn_like(p) * 1e-3
    made, one, other = steps(params), torch.zeros(ADDED), torch.ones(ADDED)
    calls = {name: call for name, (call, _) in made.items()} | dict(add=lambda: one.add_(other))
    floats, numbers = {name: moved for name, (_, moved) in made.items()}, sum(p.numel() for p in params)
    print(f"{numbers:,} weights; seconds a step, gigabytes a step, gigabytes a second")
    table = []
    for threads in args.threads:
        table += rows(measure(calls, args.rounds, threads), floats, numbers, threads)
        print(pd.DataFrame(table).query("threads == @threads").round(3).to_string(index=False), flush=True)
        if args.out: args.out.write_text(json.dumps(about(numbers, args.rounds) | dict(rows=table), indent=1) + "\n")

def about(numbers, rounds):
    "What the figures depend on."
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    versions = dict(python=platform.python_version(), torch=torch.__version__, pytorch_optimizer=version("pytorch_optimizer"))
    return dict(command="python benchmarks/madgrad_step.py --out nbs/results/madgrad_speed.json", date=str(date.today()), commit=commit,
                device="cpu", versions=versions, numbers=numbers, rounds=rounds,
                note="Medians over rounds in which the optimizers take turns; cpu: processor seconds a thread; ratios to pytorch_optimizer's two routes.")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=count, default=5, help="steps of each optimizer at each number of threads")
    parser.add_argument("--threads", type=count, nargs="+", default=[1, 2], help="numbers of threads to measure at")
    parser.add_argument("--out", type=new_file, help="write the figures to this JSON file")
    main(parser.parse_args())
