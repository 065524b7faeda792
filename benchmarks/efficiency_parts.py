"""The parts of efficiency.py: each is a generator of rows, and takes (quick, repeats)."""
import os, tempfile, time
from collections import deque
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import numpy as np, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import (AutoModelForSequenceClassification, BertConfig, DataCollatorWithPadding, PrinterCallback, RobertaConfig, Trainer,
                          TrainerCallback, TrainingArguments, get_linear_schedule_with_warmup)

from advft.core import Recipe, Rung
from advft.data import clear_corpus, leveled_passages
from advft.evaluation import EvaluateEvery
from advft.ladder import run_ladder
from advft.layer_decay import LayerDecay, layer_decay_groups
from advft.train import AdvTrainer, best_device, in_length_order, load_model, load_tokenizer, tokenise

PEAKS = dict(H100=989e12, H200=989e12, A100=312e12) # operations a second in bfloat16, dense, as the maker gives them
tokenizer, minilm = cache(load_tokenizer), partial(load_model, num_labels=1, problem_type="regression")

def clock():
    "Seconds, once the device has done what it was given."
    if torch.accelerator.is_available(): torch.accelerator.synchronize()
    return time.perf_counter()

def seconds(call):
    start = clock(); call()
    return clock() - start

def fastest(call, often=5): return min(seconds(call) for _ in range(often))

def in_turn(runs, repeats):
    "Name -> what each run gave for 0, 1, ... (its seed); every other time the runs come in turned order."
    found = {name: [] for name in runs}
    for r in range(repeats):
        for name in list(runs)[::-1 if r % 2 else 1]: found[name].append(runs[name](r))
    return found

def row(what, above, below, target="", facts="", **raw):
    "A row: the median of the paired ratios above / below, and what it rests on."
    ratios = np.divide(above, below)
    return dict(what=what, ratio=float(np.median(ratios)), quartiles=np.quantile(ratios, [0.25, 0.75]).tolist(), target=target, facts=facts,
                above=np.asarray(above).tolist(), below=np.asarray(below).tolist(), **raw)

def column(runs, name): return np.array([r[name] for r in runs])
def losses(runs): return f"{column(runs, 'loss').mean():.3f}" + (f" (sd {column(runs, 'loss').std(ddof=1):.3f})" if len(runs) > 1 else "")

def labelled(table, max_length, text="text"):
    "Tokenised rows with standardised labels."
    y = (table.target - table.target.mean()) / table.target.std()
    return [r | dict(labels=v) for r, v in zip(tokenise(table, text, tokenizer(), max_length), y.tolist())]

def arguments(folder, recipe, **more):
    "A recipe's settings by TrainingArguments' names, and a quiet terminal."
    own = dict(learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, num_train_epochs=recipe.epochs, report_to="none",
               per_device_train_batch_size=recipe.batch_size, logging_steps=10, save_strategy="no", disable_tqdm=True)
    return own | dict(output_dir=folder, dataloader_pin_memory=torch.cuda.is_available()) | more

def trainer_for(cls, model, folder, recipe, rows, collate=None, callbacks=(), valid=None, **more):
    "A silent Trainer or AdvTrainer."
    args = TrainingArguments(**arguments(folder, recipe, remove_unused_columns=False, **more))
    trainer = cls(model, args, train_dataset=rows, eval_dataset=valid, data_collator=collate or DataCollatorWithPadding(tokenizer()),
                  callbacks=list(callbacks), **(dict(recipe=recipe) if cls is AdvTrainer else {}))
    trainer.remove_callback(PrinterCallback)
    return trainer

def clocked(trainer, name, spent):
    "Add up the seconds inside a method of a trainer."
    method, spent[name] = getattr(trainer, name), 0.0
    def call(*args, **kwargs):
        start, found = clock(), method(*args, **kwargs)
        spent[name] += clock() - start
        return found
    setattr(trainer, name, call)

def mean_loss(model, rows):
    "The mean squared error of a trained model."
    inputs = [{k: v for k, v in r.items() if k != "labels"} for r in rows]
    out = in_length_order(inputs, tokenizer(), 64, lambda batch: model.eval()(**batch).logits, best_device())
    return float(np.mean((out[:, 0] - [r["labels"] for r in rows]) ** 2))

def train(cls, recipe, rows, valid, seed, padding=True, **more):
    "Train MiniLM: seconds, those inside evaluation and saving, steps, tokens with padding, the loss on `valid` afterwards."
    torch.manual_seed(seed)
    model, pad, tokens, spent = minilm(), DataCollatorWithPadding(tokenizer(), padding, recipe.max_length), [], {}
    def collate(batch):
        tokens.append((padded := pad(batch))["input_ids"].numel())
        return padded
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(cls, model, folder, recipe, rows, collate, valid=valid, seed=seed, **more)
        for name in ("evaluate", "_save_checkpoint"): clocked(trainer, name, spent)
        took = seconds(trainer.train)
    return dict(seconds=took, evaluate=spent["evaluate"], save=spent["_save_checkpoint"], steps=trainer.state.global_step, tokens=sum(tokens),
                loss=mean_loss(trainer.model, valid))

class Products(TorchDispatchMode):
    "Each kind of matrix product made inside, by its operands' shapes: a call that makes it again, and how often it was made."
    def __init__(self): super().__init__(); self.kinds = {}
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if f.overloadpacket in flop_registry:
            shapes = [(a.shape, a.stride()) if torch.is_tensor(a) else a for a in args]
            self.kinds.setdefault(str((f, shapes)), [partial(f, *args, **kwargs or {}), 0])[1] += 1
        return f(*args, **kwargs or {})

def floor(step):
    "(operations of a step's matrix products, counted from shapes; seconds that these products alone take)."
    with FlopCounterMode(display=False) as counted, Products() as made: step()
    with torch.no_grad(): return counted.get_total_flops(), sum(n * fastest(call) for call, n in made.kinds.values())

class Beside(TrainerCallback):
    "After each step of a training another loop's step, with the same random numbers; the seconds of both."
    def __init__(self, other=lambda: None): self.other, self.ours, self.theirs = other, [], []
    def on_train_begin(self, *args, **kwargs): self.since = clock()
    def on_step_begin(self, args, state, control, **kwargs): torch.manual_seed(state.global_step)
    def on_step_end(self, args, state, control, **kwargs):
        self.ours.append(clock() - self.since)
        torch.manual_seed(state.global_step - 1)
        self.theirs.append(seconds(self.other))
        self.since = clock()

def bare_loop(model, batches, recipe, steps):
    "The next step of a plain loop: fused AdamW with layer decay, clipping, a linear schedule."
    optimizer = torch.optim.AdamW(layer_decay_groups(model, recipe.learning_rate, 0.9, weight_decay=recipe.weight_decay), fused=True)
    schedule, pad = get_linear_schedule_with_warmup(optimizer, 0, steps), DataCollatorWithPadding(tokenizer())
    model.train()
    def step():
        model(**pad(batches.popleft()).to(best_device())).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(); schedule.step(); optimizer.zero_grad()
    return step

def part_step(quick, repeats):
    "our step against a bare loop's, MiniLM, batches of 8 x 64"
    steps, recipe = 5 if quick else 40, Recipe(epochs=1, batch_size=8, max_length=64) + LayerDecay(0.9)
    whole = [r for r in labelled(leveled_passages(), 64) if len(r["input_ids"]) == 64]
    rows, batches, pad = (whole * 2)[:8 * steps], deque(), DataCollatorWithPadding(tokenizer())
    model, other = minilm().to(best_device()), minilm().to(best_device())
    other.load_state_dict(model.state_dict())
    def collate(batch):
        batches.append(batch) # for the bare loop
        return pad(batch)
    beside = Beside(bare_loop(other, batches, recipe, steps))
    with tempfile.TemporaryDirectory() as folder: trainer_for(AdvTrainer, model, folder, recipe, rows, collate, [beside]).train()
    apart = max((p - q).abs().max().item() for p, q in zip(model.parameters(), other.parameters()))
    batch, ours = pad(rows[:8]).to(best_device()), np.median(beside.ours[1:])
    operations, least = floor(lambda: other(**batch).loss.backward())
    yield row("ours / bare loop, a step", beside.ours[1:], beside.theirs[1:], "<= 1.03",
              f"{ours:.4f} s. Floor: the matrix products alone, {operations / 1e9:.1f} GFLOP at {operations / least / 1e9:.0f} GFLOP/s: "
              f"{least:.4f} s; we take {ours / least:.2f} times that. After {steps} steps the weights differ by {apart:.1g} at most.",
              operations=operations, floor_seconds=least, largest_difference=apart)

def part_evaluation(quick, repeats):
    "frequent evaluation, stock with load_best_model_at_end"
    every, n, held = 2, *((32, 8) if quick else (160, 40))
    rows = labelled(leveled_passages().sample(n + held, random_state=0), 64)
    recipe = Recipe(learning_rate=2e-4, epochs=1, batch_size=8, max_length=64)
    same = dict(rows=rows[:n], valid=rows[n:], per_device_eval_batch_size=64)
    looks = dict(eval_strategy="steps", eval_steps=every, save_strategy="steps", save_steps=every, load_best_model_at_end=True, save_total_limit=1)
    runs = dict(ours=lambda seed: train(AdvTrainer, recipe + EvaluateEvery(every), seed=seed, **same),
                stock=lambda seed: train(Trainer, recipe, seed=seed, **same, **looks))
    train(Trainer, recipe, rows[:8], rows[:8], 0) # warms up
    found = in_turn(runs, repeats)
    took = {name: column(runs, "seconds") for name, runs in found.items()}
    shares = lambda name: " and ".join(f"{np.median(column(runs, name) / took[who]):.0%} of {who}" for who, runs in found.items())
    above = np.median(took["ours"] / (took["stock"] - column(found["stock"], "save")))
    yield row("stock / ours, whole training", took["stock"], took["ours"], ">= 1.1",
              f"{n // 8} steps, {n // 8 // every} evaluations. Evaluating is {shares('evaluate')}, saving {shares('save')}. "
              f"Floor: stock less its saving; we take {above:.2f} times that. "
              f"Loss: ours {losses(found['ours'])}, stock {losses(found['stock'])}.", runs=found)

def mixed(table, most=190, least=6):
    "The table with each text cut after some words; how many is drawn log-uniformly, up to `most`."
    words = np.exp(np.random.default_rng(0).uniform(np.log(least), np.log(most), len(table))).astype(int)
    return table.assign(text=[" ".join(t.split()[:n]) for t, n in zip(table.text, words)])

def cross_encoder(folder, recipe, table, seed):
    "sentence-transformers' trainer, ready to train, and the transformers model in it."
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments, losses
    model = CrossEncoder(folder, num_labels=1, max_length=recipe.max_length, device=str(best_device()), local_files_only=True)
    args = CrossEncoderTrainingArguments(**arguments(f"{folder}/out", recipe, seed=seed))
    trainer = CrossEncoderTrainer(model, args, train_dataset=Dataset.from_dict(table.to_dict("list")), loss=losses.MSELoss(model))
    trainer.remove_callback(PrinterCallback)
    return trainer, model[0].model

def part_cross_encoder(quick, repeats):
    "regression on pairs, sentence-transformers' trainer and ours"
    import datasets # which it needs
    from advft.batching import LengthBatches
    table = mixed(leveled_passages().sample(24 if quick else 160, random_state=0), 75)
    halves = [(w[:len(w) // 2], w[len(w) // 2:]) for w in table.text.str.split()]
    table = table.assign(a=[" ".join(a) for a, _ in halves], b=[" ".join(b) for _, b in halves])
    recipe, rows = Recipe(learning_rate=2e-4, epochs=1, batch_size=8, max_length=96), labelled(table, 96, "a,b")
    table = table[["a", "b"]].assign(label=[r["labels"] for r in rows])
    with tempfile.TemporaryDirectory() as folder:
        minilm().save_pretrained(folder); tokenizer().save_pretrained(folder)
        def ours(recipe, seed):
            trainer = trainer_for(AdvTrainer, minilm(folder), f"{folder}/out", recipe, rows, seed=seed)
            tokenising = seconds(lambda: tokenise(table, "a,b", tokenizer(), 96)) # which they do while they train
            return dict(seconds=tokenising + seconds(trainer.train), loss=mean_loss(trainer.model, rows))
        def theirs(seed):
            trainer, model = cross_encoder(folder, recipe, table, seed)
            return dict(seconds=seconds(trainer.train), loss=mean_loss(model, rows))
        train(AdvTrainer, recipe, rows[:8], rows[:8], 0) # warms up
        found = in_turn(dict(theirs=theirs, ours=partial(ours, recipe), length=partial(ours, recipe + LengthBatches())), repeats)
    took = {name: column(runs, "seconds") for name, runs in found.items()}
    yield row("theirs / ours, equal settings", took["theirs"], took["ours"], ">= 0.95",
              f"{len(rows) // 8} steps, lengths mixed. Final loss: theirs {losses(found['theirs'])}, ours {losses(found['ours'])}.", runs=found)
    yield row("theirs / ours with length batches", took["theirs"], took["length"], "", f"Final loss: {losses(found['length'])}.")

def batching(name, rows, longest, n, repeats, *targets):
    "Train on the first n rows in four ways, a seed a repeat; the other rows give the validation loss."
    from advft.batching import LengthBatches, TokenBudget
    recipe, real = Recipe(learning_rate=2e-4, epochs=1, batch_size=8, max_length=longest), sum(len(r["input_ids"]) for r in rows[:n])
    one = lambda recipe, padding, seed: train(AdvTrainer, recipe, rows[:n], rows[n:], seed, padding)
    ways = dict(maximum=(recipe, "max_length"), random=(recipe, True), length=(recipe + LengthBatches(), True),
                budget=(replace(recipe, batch_size=32) + TokenBudget(11 * real // n), True)) # about as many steps as the others
    train(AdvTrainer, recipe, rows[:8], rows[:8], 0) # warms up
    found = in_turn({way: partial(one, *what) for way, what in ways.items()}, repeats)
    took = {way: column(runs, "seconds") for way, runs in found.items()}
    facts = [f"{way} {column(runs, 'tokens').mean():.0f} in {runs[0]['steps']} steps, loss {losses(runs)}" for way, runs in found.items()]
    for (above, below), target in zip((("maximum", "length"), ("random", "length"), ("random", "budget")), [*targets, "", "", ""]):
        yield row(f"{name}, {above} / {below}", took[above], took[below], target)
    yield row(f"{name}, tokens, length / the floor", column(found["length"], "tokens"), [real] * repeats, "",
              f"Tokens, of which {real} are no padding: {'; '.join(facts)}.", runs=found)

def part_batching(quick, repeats):
    "passages padded to 96, to the batch, in length batches"
    yield from batching("passages", labelled(leveled_passages().sample(96, random_state=0), 96), 96, 16 if quick else 64, repeats)

def part_mixed(quick, repeats):
    "CLEAR of mixed lengths, padded to 256, to the batch, in length batches"
    n, longest = (24, 64) if quick else (128, 256)
    table = mixed(clear_corpus().sample(n + 128, random_state=0), 190 * longest // 256)
    yield from batching("mixed", labelled(table, longest), longest, n, repeats, ">= 2.0", ">= 1.15")

def part_groups(quick, repeats):
    "an AdamW step over layer decay's groups, and over a group a tensor"
    for width, often in ((128, 10 if quick else 100), (768, 2 if quick else 10)):
        config = BertConfig(hidden_size=width, num_hidden_layers=12, num_attention_heads=width // 64, intermediate_size=4 * width)
        model = AutoModelForSequenceClassification.from_config(config).to(best_device())
        for p in model.parameters(): p.grad = torch.randn_like(p) * 1e-3
        groups, numbers = layer_decay_groups(model, 1e-5), sum(p.numel() for p in model.parameters())
        each = [g | dict(params=[p]) for g in groups for p in g["params"]]
        one, other, medians = *torch.randn(2, 2 * numbers, device=best_device()), {} # together as large as what a step touches
        for way in ("foreach", "fused"):
            ours, theirs = (torch.optim.AdamW([dict(g) for g in made], **{way: True}) for made in (groups, each))
            ours.step(); theirs.step() # makes the moments
            calls = dict(ours=ours.step, theirs=theirs.step, add=lambda: one.add_(other))
            took = in_turn({name: lambda r, call=call: seconds(call) for name, call in calls.items()}, often)
            moved, rate = 28 * numbers, 12 * one.numel() / min(took["add"]) # bytes: of seven floats a number, and of three
            middle, target, medians[way] = np.median(took["ours"]), ">= 3" if (width, way) == (128, "foreach") else "", took
            yield row(f"each tensor / our groups, width {width}, {way}", took["theirs"], took["ours"], target,
                      f"{middle * 1e3:.2f} ms; {len(each)} and {len(groups)} groups. Floor: {moved / 1e6:.0f} MB at {rate / 1e9:.1f} GB/s, the rate "
                      f"of adding tensors, {moved / rate * 1e3:.2f} ms; we take {middle * rate / moved:.2f} times that.",
                      floor_seconds=moved / rate, add=took["add"])
        yield row(f"each tensor foreach / our groups fused, {width}", medians["foreach"]["theirs"], medians["fused"]["ours"], "", "Fused is our default.")

def part_compile(quick, repeats):
    "forward and backward as they are and compiled, MiniLM, 8 x 64"
    rows, pad = [r for r in labelled(leveled_passages(), 64) if len(r["input_ids"]) == 64], DataCollatorWithPadding(tokenizer())
    batch, model = pad(rows[:8]).to(best_device()), minilm().to(best_device()).train()
    compiled = torch.compile(model)
    calls = dict(plain=lambda _: seconds(lambda: model(**batch).loss.backward()), compiled=lambda _: seconds(lambda: compiled(**batch).loss.backward()))
    first, _ = calls["compiled"](0), calls["plain"](0)
    took = in_turn(calls, 3 if quick else 30)
    saved = np.median(took["plain"]) - np.median(took["compiled"])
    pays = f"it pays back after {first / saved:.0f} steps" if saved > 0 else "it never pays back"
    yield row("plain / compiled, a step", took["plain"], took["compiled"], "", f"The first compiled step took {first:.0f} s; {pays}.", first_seconds=first)

class Together(Rung):
    "Fits when a process for each worker has come, so that each has imported the libraries and trained once."
    name = "together"
    def __init__(self, folder, workers): self.folder, self.workers = folder, workers
    def fit(self, train, valid, seed):
        Path(self.folder, f"{os.getpid()}.here").touch()
        while len(list(Path(self.folder).glob("*.here"))) < self.workers: time.sleep(0.01)
        return SMALL.fit(train, valid, seed)

SMALL = Recipe(epochs=1, batch_size=8, max_length=32)

def part_ladder(quick, repeats):
    "trials a minute of a small ladder, by workers x threads"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    many, table = min(4, max(2, cores)), leveled_passages().head(50 if quick else 100)
    def timed(workers, threads, turn):
        def climb(rung, **which):
            found = run_ladder(table, [rung], folds=2, group="topic", out=out, jobs=workers, progress=False, **which)
            if found.failed: raise RuntimeError(f"a trial failed: {found.failed[0]['error']}")
        with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as meeting, patch("os.sched_getaffinity", lambda _: range(workers * threads), create=True):
            climb(Together(meeting, workers), seeds=range(workers), only=[0])
            return seconds(lambda: climb(SMALL, seeds=(100, 101)))
    sizes = [(1, 1), (many, 1)] if quick else [(1, 1), (1, many), (many, 1), (many, many)]
    (_, one), *others = in_turn({size: partial(timed, *size) for size in sizes}, 1 if quick else 2).items()
    for (w, t), times in others:
        yield row(f"1 x 1 / {w} x {t}, 4 trials", one, times, "", f"{240 / np.median(times):.1f} trials a minute, 1 x 1 {240 / np.median(one):.1f}. "
                  f"Ceiling: {min(cores, w * t, 4 if w > 1 else t)} times, on {cores} cores.")

def peak_of(name):
    "Operations a second of a GPU in bfloat16; of one that the table lacks, as large matrices show it."
    square = torch.randn(4096, 4096, dtype=torch.bfloat16, device=best_device())
    return next((rate for n, rate in PEAKS.items() if n in name), None) or 2 * 4096 ** 3 / fastest(lambda: square @ square)

def part_utilisation(quick, repeats, config=None, size=32, length=256):
    "share of the GPU's peak, roberta-base's shape, bfloat16, 32 x 256"
    if not (config or torch.cuda.is_available()): raise OSError("torch sees no GPU")
    config = config or RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=1, problem_type="regression")
    steps, model = 5 if quick else 40, AutoModelForSequenceClassification.from_config(config).to(best_device())
    ids = torch.randint(5, config.vocab_size, (size * steps, length)).tolist()
    rows, beside = [dict(input_ids=i, attention_mask=[1] * length, labels=0.5) for i in ids], Beside()
    batch = DataCollatorWithPadding(tokenizer())(rows[:size]).to(best_device())
    with FlopCounterMode(display=False) as counted: model.train()(**batch).loss.backward()
    model.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        trainer_for(AdvTrainer, model, folder, Recipe(epochs=1, batch_size=size), rows, callbacks=[beside], bf16=True).train()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    operations, peak, took = counted.get_total_flops(), peak_of(name), beside.ours[1:]
    yield row("seconds at the peak / ours, a step", [operations / peak] * len(took), took, "",
              f"{np.median(took):.4f} s, {operations / 1e12:.3g} TFLOP; the peak of {name} is {peak / 1e12:.3g} TFLOP/s.",
              operations=operations, peak=peak)

PARTS = {name.removeprefix("part_"): part for name, part in list(globals().items()) if name.startswith("part_")}
