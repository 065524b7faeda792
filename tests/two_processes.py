"Two epochs of AdvTrainer for each case, as one process or as two under torchrun; rank 0 saves what came out."
import os, sys

import numpy as np, torch, transformers
from transformers import BertConfig, BertForMaskedLM, DataCollatorWithPadding, TrainingArguments

from advft.core import Recipe, tiny_model, tiny_tokenizer
from advft.layer_decay import LayerDecay
from advft.train import AdvTrainer

STILL = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
CASES = {1: [("recipe", 24, 8, 1), ("recipe", 24, 2, 4), ("recipe", 9, 8, 1), ("plain", 10, 8, 1), ("plain", 14, 8, 1), ("plain", 1, 8, 1),
             ("tokens", 10, 8, 1), ("tokens", 14, 8, 1), ("tokens", 14, 1, 8)],
         2: [("recipe", 24, 4, 1), ("recipe", 24, 2, 2), ("recipe", 9, 4, 1), ("plain", 10, 4, 1), ("plain", 10, 2, 2), ("plain", 14, 4, 1), ("plain", 1, 4, 1),
             ("tokens", 10, 4, 1), ("tokens", 14, 2, 2)]} # processes -> kind, rows, rows a micro-batch, micro-batches an update


def sequences(rows):
    "A regression over texts of five lengths."
    texts = tiny_tokenizer()(["We learn. " * (1 + i % 5) for i in range(rows)])["input_ids"]
    data = [dict(input_ids=r, attention_mask=[1] * len(r), labels=float(i % 7)) for i, r in enumerate(texts)]
    return tiny_model("bert", **STILL), data, DataCollatorWithPadding(tiny_tokenizer())


def tokens(rows):
    "A language model with 0 to 3 labels a row."
    config = BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **STILL)
    label = lambda i: [-100] + [5 + i + j if j < i % 4 else -100 for j in range(6)]
    data = [dict(input_ids=[2] + [10 + i] * 6, attention_mask=[1] * 7, labels=label(i)) for i in range(rows)]
    return BertForMaskedLM(config), data, lambda rs: {k: torch.tensor([r[k] for r in rs]) for k in rs[0]}


def train(folder, world, kind, rows, micro, accumulation):
    torch.manual_seed(0)
    model, data, collate = (tokens if kind == "tokens" else sequences)(rows)
    args = TrainingArguments(folder, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, num_train_epochs=2, logging_steps=1,
                             learning_rate=1e-3, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False)
    assert args.world_size == world, f"{args.world_size} processes, not {world}"
    recipe = Recipe(learning_rate=1e-3, epochs=2, batch_size=8) + LayerDecay(0.9) if kind == "recipe" else None
    trainer = AdvTrainer(model, args, recipe=recipe, train_dataset=data, data_collator=collate)
    trainer.train()
    logs = [(h["loss"], h["grad_norm"], h["learning_rate"]) for h in trainer.state.log_history if "loss" in h]
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return dict(logs=torch.tensor(logs), weights=weights, predictions=torch.tensor(trainer.predict(data[:9]).predictions),
                eval_loss=torch.tensor([trainer.evaluate(data[:n])["eval_loss"] for n in (1, 4, 7, 9)]))


class Shuffled:
    "A sampler of one's own, from numpy's global generator."
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __iter__(self): return iter(np.random.permutation(self.n))


class Noted(AdvTrainer):
    "Notes the labels of each micro-batch, and has a sampler of its own."
    def _get_train_sampler(self, *_): return Shuffled(16)
    def training_step(self, model, inputs, *args):
        self.labels = getattr(self, "labels", []) + (inputs["labels"].tolist() if "filler" not in inputs else [])
        return super().training_step(model, inputs, *args)


def of_its_own(folder):
    "What processes draw apart, and what they must draw alike: rows, steps, the first numbers after `model_init`."
    data = [dict(r, labels=float(i)) for i, r in enumerate(sequences(16)[1])]
    def trainer(**more):
        args = TrainingArguments(folder, per_device_train_batch_size=4, num_train_epochs=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, **more)
        return Noted(args=args, model_init=lambda *_: tiny_model("bert", **STILL), train_dataset=data, data_collator=DataCollatorWithPadding(tiny_tokenizer()))
    noted, split = trainer(), trainer(accelerator_config=dict(split_batches=True))
    noted.train(); split.train()
    torch.manual_seed(0); drawn = noted.call_model_init().classifier.weight.sum().item(), torch.rand(1).item()
    return dict(labels=noted.labels, steps=(noted.state.global_step, split.state.global_step), drawn=drawn)


if __name__ == "__main__":
    out, world = sys.argv[1], int(sys.argv[2])
    transformers.utils.logging.set_verbosity_error()
    found = {case: train(out + ".folder", world, *case) for case in CASES[world]}
    torch.save(of_its_own(out + ".folder"), f"{out}.{os.environ.get('RANK', 0)}")
    if int(os.environ.get("RANK", 0)) == 0: torch.save(found, out)
    if world > 1:
        torch.distributed.barrier()
        sys.stdout.flush(); os._exit(0) # gloo's threads may abort a process that ends in the usual way
