"""The quick ladder (`advft ladder`) against its floor: the operations of its
forward and backward passes at the rate that this machine reaches on this
model's own matrices, all workers at once, and one import. It also says where
the rest goes.

python benchmarks/quick_ladder.py [--jobs N] [--repeats N]
    [--out nbs/results/quick_ladder.json]
On the CPU. About 4 minutes a repeat on two idle cores; a busy machine makes
every figure worse, the ratio too.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

os.environ["THP_MEM_ALLOC_ENABLE"] = "1" # as in the ladder's workers
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import DataCollatorWithPadding

from advft.core import write_whole
from advft.data import split_folds
from advft.ladder import default_rungs, find_model, passages_preset
from advft.train import load_model, load_tokenizer, tokenise, versions
from options import count, new_file

KINDS = {"matrix products": ("aten::mm", "aten::addmm"), "attention": ("aten::bmm", "aten::_softmax", "aten::_softmax_backward_data", "aten::where", "aten::all"),
         "dropout": ("aten::bernoulli_", "aten::native_dropout", "aten::mul", "aten::div_"), "optimizer": ("aten::_fused_adamw_",),
         "memory": ("aten::fill_", "aten::copy_", "aten::zero_")}


def batch_of(rows):
    tokenizer = load_tokenizer()
    found = DataCollatorWithPadding(tokenizer)(tokenise(passages_preset()["table"][:rows], "text", tokenizer, 64))
    return dict(found, labels=torch.zeros(rows))


def operations(model, batch, backward):
    "Of one pass, counted from the shapes."
    with FlopCounterMode(display=False) as counted:
        loss = model(**batch).loss
        if backward: loss.backward()
    model.zero_grad()
    return counted.get_total_flops()


def rate(seconds, rows=8 * 64):
    "FLOP/s over the layer's matrices, forward and both backward products, for about `seconds`."
    torch.set_num_threads(1)
    shapes = [(384, 384)] * 4 + [(384, 1536), (1536, 384)]
    sets = [(torch.randn(rows, k), torch.randn(n, k), torch.randn(rows, n)) for k, n in shapes]
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for x, w, g in sets:
            torch.nn.functional.linear(x, w); g @ w; g.T @ x
            done += 6 * x.shape[0] * x.shape[1] * w.shape[0]
    return done / (time.perf_counter() - start)


def rates(jobs, seconds=3):
    "The sum over `jobs` processes at once."
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from quick_ladder import rate; rate(1); print(rate({seconds}))"
    run = lambda _: float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    with ThreadPoolExecutor(jobs) as pool: return sum(pool.map(run, range(jobs)))


def passes(table, folds, rungs):
    "Rows that go forward and backward, and forward only, in each rung over all folds."
    found = {}
    for train, valid, test in split_folds(table, folds, 0, groups="topic", target="target", task="regression"):
        for name, rung in rungs.items():
            if name in ("mean", "TF-IDF + ridge"): continue
            both, forward = found.get(name, (0, 0))
            if name == "frozen + ridge": found[name] = both, forward + len(train) + len(valid) + len(test); continue
            steps = -(-len(train) // rung.batch_size) * rung.epochs
            every = next((t.steps for t in rung.techniques if t.key == "evaluate_every"), None)
            looks = steps // max(1, round(every * steps / rung.epochs)) if every else 0
            found[name] = both + len(train) * rung.epochs, forward + len(test) + len(valid) * (looks + 1)
    return found


def import_seconds():
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import advft.train"], check=True)
    return time.perf_counter() - start


def climb(jobs):
    "Wall time of the command, and its trials."
    with tempfile.TemporaryDirectory() as d:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "from advft.cli import main; main()", "ladder", "--jobs", str(jobs), "--out", d + "/run"], check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        return wall, [json.loads(p.read_text()) for p in Path(d).glob("run/trials/*.json")]


def step_shares(model, batch):
    "Which share of a training step's time each kind of operation has."
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    def step(): model(**batch).loss.backward(); optimizer.step(); optimizer.zero_grad()
    for _ in range(3): step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(5): step()
    times = {e.key: e.self_cpu_time_total for e in seen.key_averages()}
    shares = {kind: sum(times.get(n, 0) for n in names) / sum(times.values()) for kind, names in KINDS.items()}
    return shares | {"all else": 1 - sum(shares.values())}


def preparation(table):
    "Seconds that a trial spends on what a cache could spare it."
    def fastest(call): return min((lambda start: (call(), time.perf_counter() - start)[1])(time.perf_counter()) for _ in range(3))
    tokenizer = load_tokenizer()
    return {"loading the model": fastest(load_model), "the tokenizer": fastest(load_tokenizer), "tokenising": fastest(lambda: tokenise(table, "text", tokenizer, 64))}


def runs(jobs, repeats):
    "Of each repeat the rate before, the ladder, the rate after; one's rate after is the next one's rate before."
    before = rates(jobs)
    for _ in range(repeats):
        ladder, after = climb(jobs), rates(jobs)
        yield before, ladder, after
        before = after


def beside_floor(operations, start_up, before, wall, trials, after):
    "A repeat's figures: the floor is at the mean of the two rates."
    floor = operations / statistics.mean([before, after]) + start_up
    return dict(rate=dict(before=before, after=after), floor=floor, seconds=wall, ratio=wall / floor, cpu_seconds=sum(t["cost"]["cpu_seconds"] for t in trials),
                trials=[{k: t[k] for k in ("rung", "fold", "seed", "cost", "error")} for t in trials])


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--jobs", type=count, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    ask.add_argument("--out", type=new_file, help="a JSON file for the figures")
    ask.add_argument("--repeats", type=count, default=3, help="ladders, with the rate before and after each")
    args = ask.parse_args()
    torch.set_num_threads(1)
    preset = passages_preset()
    rungs, model = default_rungs(find_model("minilm"), **preset["settings"]), load_model().train()
    both, forward = (operations(model, batch_of(8), b) / 8 for b in (True, False))
    counts = passes(preset["table"], preset["folds"], rungs)
    total = sum(b * both + f * forward for b, f in counts.values())
    start_up, repeats = statistics.median(import_seconds() for _ in range(3)), []
    print(f"{total / 1e12:.1f} TFLOP, and one import of {start_up:.1f} s", flush=True)
    for before, (wall, trials), after in runs(args.jobs, args.repeats):
        repeats.append(beside_floor(total, start_up, before, wall, trials, after))
        print("  {seconds:.0f} s, {ratio:.2f} times the floor of {floor:.0f} s; GFLOP/s".format(**repeats[-1]), f"{before / 1e9:.0f} before, {after / 1e9:.0f} after", flush=True)
    middle = sorted(repeats, key=lambda r: r["ratio"])[(args.repeats - 1) // 2] # whose figures belong together
    cpu, trials, speed = middle["cpu_seconds"], middle["trials"], statistics.mean(middle["rate"].values())
    ratio, shares, prepared = statistics.median(r["ratio"] for r in repeats), step_shares(model, batch_of(8)), preparation(preset["table"])
    print(f"the quick ladder takes {ratio:.2f} times its floor ({args.jobs} workers), the median of " + ", ".join(f"{r['ratio']:.2f}" for r in repeats))
    print(f"  in its {len(trials)} trials {cpu / args.jobs:.0f} s a worker, {cpu / args.jobs * speed / total:.2f} times their operations; around them {middle['seconds'] - cpu / args.jobs:.0f} s")
    print(f"  a trial takes {cpu / len(trials):.1f} s in the mean: " + ", ".join(f"{k} {v:.2f} s" for k, v in prepared.items()))
    print("  a training step: " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items()))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip() or None
    if args.out: write_whole(args.out, json.dumps(dict(command=f"python benchmarks/quick_ladder.py --jobs {args.jobs} --repeats {args.repeats}", date=date.today().isoformat(),
        commit=commit, device="cpu", note="The quick ladder's wall time over its floor; see the benchmark. ratio: the median of the repeats; what stands beside it is of the repeat in the middle.",
        versions=versions(), jobs=args.jobs, operations=total, import_seconds=start_up, rows={n: dict(trained=b, read=f) for n, (b, f) in counts.items()}, step_shares=shares,
        preparation_seconds=prepared, **middle | dict(ratio=ratio), repeats=repeats), indent=1) + "\n")
