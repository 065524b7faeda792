"""WK pooling against the last one sentence-transformers had (1.2.1):
interleaved runs on the same hidden states, on the CPU.

python benchmarks/wk_pooling.py [--threads 1 2] [--repeats 5] [--archive FILE]
    [--out nbs/results/wk_speed.json]
The old file is read out of the archive, a wheel or a source archive, and
nothing else of it is run; where there is no archive yet, pip fetches it. About
3 minutes.
"""
import argparse, importlib.util, json, statistics, subprocess, sys, tarfile, tempfile, time, zipfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch

import advft
from advft.core import write_whole
from advft.wk import WKPooling
from options import count, new_file

RELEASE, MEMBER = "sentence-transformers==1.2.1", "sentence_transformers/models/WKPooling.py"


def fetch(archive):
    "The archive, by pip if it is not there."
    if archive.exists(): return archive
    print(f"no {archive}: pip fetches {RELEASE}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as d:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", d, RELEASE], check=True)
        archive.parent.mkdir(parents=True, exist_ok=True)
        write_whole(archive, next(Path(d).iterdir()).read_bytes())
    return archive


def source(archive):
    "The one file, as text."
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z: return z.read(MEMBER).decode()
    with tarfile.open(archive) as t: return t.extractfile(next(m for m in t if m.name.endswith(MEMBER))).read().decode()


def old_pooling(archive, width):
    "The old class, without its package. It calls torch.qr, which is torch.linalg.qr by now."
    torch.qr = torch.linalg.qr
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)/"old_wk.py"
        path.write_text(source(archive))
        spec = importlib.util.spec_from_file_location("old_wk", path)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.WKPooling(width)


def hidden_states(layers, *shape):
    "Random states whose neighbours have a cosine of 0.85, about as in BERT."
    torch.manual_seed(0)
    found = [torch.randn(shape)]
    for _ in range(layers - 1): found.append(0.85 * found[-1] + 0.5268 * torch.randn(shape))
    return tuple(found)


def seconds(f):
    start = time.perf_counter(); f()
    return time.perf_counter() - start


def fastest(f): return min(seconds(f) for _ in range(10))


def floor(states):
    "What it takes to read the used states once, and what the operations take at this machine's rate for large matrices."
    big = torch.stack(states)
    square = torch.randn(1024, 1024, dtype=torch.float64)
    operations = 2 * states[0].numel() * len(states) * ((len(states) + 1) / 2 + 1) # each inner product once, and the weighted sum
    return dict(bytes=big.nbytes, read_seconds=fastest(big.sum), operations=operations,
                operation_seconds=operations / (2 * 1024 ** 3) * fastest(lambda: square @ square))


def measure(threads, repeats, states, mask, ours, old):
    "A row of the table."
    torch.set_num_threads(threads)
    times, found = dict(ours=[], old=[]), {}
    runs = dict(ours=lambda: ours(states, mask), old=lambda: old(dict(all_layer_embeddings=list(states), attention_mask=mask, cls_token_embeddings=None))["sentence_embedding"])
    for f in runs.values(): f()
    for _ in range(repeats):
        for name, often in dict(ours=5, old=1).items():
            for _ in range(often): times[name].append(seconds(lambda: found.update({name: runs[name]()})))
    middle = {f"{n}_seconds": statistics.median(t) for n, t in times.items()}
    apart = ((found["ours"] - found["old"]).abs().amax(1) / found["old"].abs().amax(1)).max().item()
    return dict(threads=threads, **middle, ratio=middle["old_seconds"] / middle["ours_seconds"], largest_relative_difference=apart,
                **floor(states[ours.layer_start:]), all_ours=times["ours"], all_old=times["old"])


def show(row):
    print(f"{row['threads']} thread{'s' * (row['threads'] > 1)}")
    print(f"  old {row['old_seconds']:8.3f} s   ours {row['ours_seconds']:7.4f} s   ratio {row['ratio']:6.1f}")
    print(f"  floor: {row['bytes'] / 1e6:.0f} MB read in {row['read_seconds'] * 1e3:.1f} ms,"
          f" {row['operations'] / 1e9:.2f} GFLOP in {row['operation_seconds'] * 1e3:.1f} ms")
    print(f"  largest difference between the two, relative: {row['largest_relative_difference']:.1e}", flush=True)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--threads", type=count, nargs="+", default=sorted({1, torch.get_num_threads()}), help="default: 1, and what torch takes")
    ask.add_argument("--repeats", type=count, default=5, help="of the old one, each with five of ours")
    ask.add_argument("--shape", type=count, nargs=4, default=[13, 32, 128, 768], help="states, sentences, tokens, width")
    ask.add_argument("--archive", "--wheel", type=Path, default=Path.home()/".cache/advft/sentence-transformers-1.2.1", help="wheel or source archive")
    ask.add_argument("--out", type=new_file, help="a JSON file for the figures")
    args = ask.parse_args()
    layers, sentences, tokens, width = args.shape
    states, mask = hidden_states(*args.shape), torch.ones(sentences, tokens, dtype=torch.long)
    ours, old = WKPooling(SimpleNamespace(hidden_size=width, num_hidden_layers=layers - 1)), old_pooling(fetch(args.archive), width)
    rows = []
    with torch.inference_mode():
        for threads in args.threads: rows.append(measure(threads, args.repeats, states, mask, ours, old)); show(rows[-1])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip() or None
    about = dict(command="python benchmarks/wk_pooling.py", date=date.today().isoformat(), commit=commit, device="cpu",
                 note=f"{RELEASE} against advft's wk, medians of interleaved runs; states, sentences, tokens, width are {args.shape}, no padding.",
                 versions=dict(advft=advft.__version__, python=sys.version.split()[0], torch=torch.__version__, numpy=version("numpy")))
    if args.out: args.out.write_text(json.dumps(about | dict(shape=args.shape, layer_start=ours.layer_start, rows=rows), indent=1) + "\n")
