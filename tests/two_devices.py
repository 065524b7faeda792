"What one process of two does for tests/test_devices.py; each saves what it found."
import contextlib, io, os, sys, tempfile

import torch, transformers
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertForMaskedLM, DataCollatorWithPadding, GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import advft.all # registers the techniques
from advft.accumulation import accumulate
from advft.core import Recipe, tiny_model, tiny_tokenizer
from advft.data import leveled_passages
from advft.devices import check_processes, end_processes, processes
from advft.train import AdvTrainer, MicroBatches, fine_tune

STILL = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
BASE = Recipe(learning_rate=1e-3, batch_size=8, epochs=2, max_length=32)
RECIPES = ["recipe()", "layer_decay(0.9)", "evaluate_every(2)", "evaluate_every(2) + layer_decay(0.9)", "swa(0.5)", "evaluate_every(2) + swa(0.5)", "length_batches()", "accumulate(3)"]
ROWS = 1, 9, 10, 14


def tuned(folder):
    "recipe -> weights, scores and history of `fine_tune` on 29 passages, with 11 to validate."
    passages, found = leveled_passages().sample(40, random_state=0).reset_index(drop=True), {}
    for text in RECIPES:
        fitted = fine_tune(passages[:29], passages[29:], Recipe.parse(text, BASE), model=folder)
        log = [(h["step"], k, h[k]) for h in fitted.history for k in ("loss", "grad_norm", "learning_rate", "eval_rmse") if k in h]
        found[text] = dict(weights=flat(fitted.model), score=fitted.scores["valid"]["rmse"], log=log)
    return found


def dropped(folder):
    "Weights of a model with dropout."
    return flat(fine_tune(leveled_passages().head(20), recipe=BASE, model=folder).model)


def flat(model): return torch.cat([p.detach().flatten() for p in model.parameters()])
def grads(model): return torch.cat([p.grad.flatten() for p in model.parameters()])


def models():
    "kind -> model in double precision, and 14 rows."
    small = dict(vocab_size=200, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    torch.manual_seed(0)
    ids = torch.randint(5, 100, (14, 6))
    labels = torch.where(torch.arange(6) < torch.arange(14)[:, None] % 4, ids, -100)
    causal = GPT2Config(vocab_size=200, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return {"regression": (tiny_model("bert", **STILL).double(), dict(input_ids=ids, labels=torch.arange(14).double())),
            "masked": (BertForMaskedLM(BertConfig(**small)).double(), dict(input_ids=ids, labels=labels)),
            "causal": (GPT2LMHeadModel(causal).double(), dict(input_ids=ids, labels=labels))}


def in_parts(world, rank):
    "(kind, rows, accumulation) -> how far loss and gradient of `accumulate` on all processes are from those of the whole on one."
    found = {}
    for kind, (model, data) in models().items():
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        for rows in ROWS:
            for accumulation in 1, 2:
                model.zero_grad(); loss = accumulate(model, [{k: v[:rows] for k, v in data.items()}]); whole = grads(model)
                mine = list(MicroBatches([list(range(rows))], accumulation, world, rank))
                if rank and rows > 4: mine = mine[:-1] + [mine[-1][:1], mine[-1][1:]] # one part more than the other process has
                batches = [{k: v[at if at[0] >= 0 else [0]] for k, v in data.items()} | (dict(filler=True) if at[0] < 0 else {}) for at in mine]
                model.zero_grad(); again = accumulate(parallel, batches)
                found[kind, rows, accumulation] = abs(again - loss).item(), ((grads(model) - whole).norm() / whole.norm().clamp(min=1e-12)).item()
    return found


class Draw(TrainerCallback):
    "Draws a dropout mask before the first step, and keeps the first update's gradient."
    def on_step_begin(self, args, state, control, **kwargs):
        if not state.global_step: self.mask = torch.nn.functional.dropout(torch.ones(20), 0.5)
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not state.global_step: self.gradient = grads(model)


def first_update(cls):
    "A dropout mask that a trainer would use, and its first update's gradient of three rows, two a process; then the true one."
    draw, texts = Draw(), tiny_tokenizer()(["We learn. " * (1 + i % 5) for i in range(3)])["input_ids"]
    data, collate = [dict(input_ids=r, labels=float(i) + 1) for i, r in enumerate(texts)], DataCollatorWithPadding(tiny_tokenizer())
    torch.manual_seed(0)
    model = tiny_model("bert", **STILL)
    model(**collate(data)).loss.backward(); whole = grads(model); model.zero_grad()
    with tempfile.TemporaryDirectory() as d:
        args = TrainingArguments(d, per_device_train_batch_size=2, max_steps=1, max_grad_norm=0, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, train_sampling_strategy="sequential")
        cls(model, args, train_dataset=data, data_collator=collate, callbacks=[draw]).train()
    return draw.mask, draw.gradient, whole


def refused(number, **settings):
    "What `check_processes` says once TrainingArguments are made."
    TrainingArguments("unused", **settings)
    try: return check_processes(number)
    except ValueError as e: return str(e)


def command_line(folder):
    "What `advft train` printed, and its exit code."
    from advft.cli import main
    told, code = io.StringIO(), None
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try: main(["train", f"{folder}/table.csv", "--out", f"{folder}/model", "--model", f"{folder}/tiny", "--recipe", "recipe(epochs=1, max_length=16)", "--task", "regression"])
        except SystemExit as e: code = e.code
    return code, told.getvalue()


if __name__ == "__main__":
    folder, rank = sys.argv[1], int(os.environ["RANK"])
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = dict(together=refused(2, use_cpu=True), three=refused(3, use_cpu=True), parts=in_parts(2, rank), stock=first_update(Trainer), ours=first_update(AdvTrainer), tuned=tuned(f"{folder}/tiny"), dropped=dropped(f"{folder}/dropout"))
    found |= dict(after=processes(), alone=refused(2), line=command_line(folder))
    torch.save(found, f"{folder}/found.{rank}")
    end_processes()
    sys.stdout.flush(); os._exit(0) # gloo's threads may abort a process that ends in the usual way
