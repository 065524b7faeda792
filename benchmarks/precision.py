"""Does mixed precision pay, and from which batch size on? Steps of MiniLM in
bf16 (fp16 too on a GPU) over those in float32, which take turns.

A step is forward, backward and AdamW, fused, without Trainer; `infer` is the
forward pass alone in evaluation mode, by autocast and with the weights
converted. Ratios are medians of those of neighbouring steps; below 1, the
16-bit step is the faster one. About three minutes on two idle cores with one
thread.
python benchmarks/precision.py --out nbs/results/precision.json
"""
import argparse, json, os, platform, subprocess, sys, time
from datetime import date
from pathlib import Path

os.environ |= dict(TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import numpy as np, torch, transformers

from advft.core import find_model, model_digest, write_whole
from advft.data import leveled_passages
from advft.precision import predict_in
from advft.train import best_device, load_model, load_tokenizer, longest_input
from options import count, model, new_file

def seconds(call, device):
    "How long a call takes, its work on the device included."
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait(); start = time.perf_counter()
    call(); wait()
    return time.perf_counter() - start

def trainer(model, inputs, labels, device, number_format):
    "A call that makes a training step."
    dtype = dict(bf16=torch.bfloat16, fp16=torch.float16).get(number_format)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True) # at a rate of 0 all steps do the same work on the same weights
    scaler = torch.amp.GradScaler(device.type, enabled=number_format == "fp16")
    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype is not None): loss = (model(**inputs).logits[:, 0].float() - labels).square().mean()
        scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()
    return step

def predictor(model, inputs, number_format, weights):
    "A call that predicts a batch."
    def predict():
        with torch.inference_mode(): model(**inputs)
    def call():
        with predict_in(model, number_format, weights): predict()
    return call

def in_turn(calls, repeats, device):
    "Name -> ratio of each round to that round's fp32, whose calls take turns in changing order."
    for call in calls.values(): call(); call()
    found = {name: [] for name in calls}
    for r in range(repeats):
        for name in list(calls)[::-1 if r % 2 else 1]: found[name].append(seconds(calls[name], device))
    return found

def batch_rows(args, device, batch, formats):
    "A row for each kind of work and format at one batch size."
    tokenizer, model = load_tokenizer(args.model), load_model(args.model).to(device)
    table = leveled_passages().iloc[[i % 300 for i in range(batch)]]
    inputs = tokenizer(list(table.text), padding="max_length", truncation=True, max_length=args.max_length, return_tensors="pt").to(device)
    labels = torch.tensor(table.target.values, dtype=torch.float32, device=device)
    training = in_turn({f: trainer(model.train(), inputs, labels, device, f) for f in ("fp32", *formats)}, args.repeats, device)
    yield from rows("train", batch, training)
    model.zero_grad(); model.eval()
    calls = dict(fp32=predictor(model, inputs, "fp32", False)) | {f"{f}, autocast": predictor(model, inputs, f, False) for f in formats}
    yield from rows("infer", batch, in_turn(calls, args.repeats, device))
    for f in formats: # converted once, as a model would be for good
        pure = load_model(args.model).to(device, dict(bf16=torch.bfloat16, fp16=torch.float16)[f]).eval()
        calls = dict(fp32=predictor(model, inputs, "fp32", False), **{f"{f}, weights": predictor(pure, inputs, "fp32", False)})
        yield from rows("infer", batch, in_turn(calls, args.repeats, device))

def rows(work, batch, found):
    "The formats of one measurement beside fp32."
    for name, times in found.items():
        if name == "fp32": continue
        ratios = np.divide(times, found["fp32"])
        yield dict(work=work, batch=batch, format=name, ratio=float(np.median(ratios)), quartiles=np.quantile(ratios, [0.25, 0.75]).tolist(),
                   seconds=times, seconds_fp32=found["fp32"])

def about(args, device):
    "What the figures depend on."
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None
    return dict(command=" ".join(["python benchmarks/precision.py", *sys.argv[1:]]), date=date.today().isoformat(), commit=commit,
                device=torch.cuda.get_device_name() if device.type == "cuda" else device.type, threads=args.threads, repeats=args.repeats,
                cpu_has=[f for f in ("avx512_bf16", "amx_bf16") if f in Path("/proc/cpuinfo").read_text()] if Path("/proc/cpuinfo").is_file() else None,
                versions=dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__),
                model=args.model, model_digest=model_digest(find_model(args.model)), max_length=args.max_length,
                note="ratio: the median over rounds of 16-bit time over float32 time; quartiles of those ratios; seconds: every time.")

def main(args):
    torch.set_num_threads(args.threads)
    device, found = best_device(), []
    args.max_length = longest_input(args.max_length, load_tokenizer(args.model), load_model(args.model))
    formats = args.formats or (["bf16", "fp16"] if device.type == "cuda" else ["bf16"])
    for batch in args.batches:
        found += batch_rows(args, device, batch, formats)
        if batch == args.batches[0]: print("work   batch  format           ratio")
        for r in found[-3 * len(formats):]: print(f"{r['work']:<7}{r['batch']:>5}  {r['format']:<15}{r['ratio']:>7.3f}", flush=True)
        if args.out: write_whole(args.out, json.dumps(about(args, device) | dict(rows=found), indent=1) + "\n")

if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", type=model, default="minilm", help="name or folder")
    ask.add_argument("--batches", type=count, nargs="+", default=[1, 2, 4, 8, 16, 32])
    ask.add_argument("--max-length", type=count, default=64, help="tokens, to which all texts are padded")
    ask.add_argument("--formats", nargs="+", choices=["bf16", "fp16"], help="bf16, and on a GPU fp16 too")
    ask.add_argument("--repeats", type=count, default=5, help="rounds")
    ask.add_argument("--threads", type=count, default=1, help="of torch")
    ask.add_argument("--out", type=new_file, help="a JSON file for the figures")
    main(ask.parse_args())
