"Three optimizer steps of AdvTrainer, as one process or as two under torchrun; rank 0 saves what came out."
import os, sys

import torch, transformers
from transformers import DataCollatorWithPadding, TrainingArguments

from advft.core import Recipe, tiny_model, tiny_tokenizer
from advft.layer_decay import LayerDecay
from advft.train import AdvTrainer

out, micro, accumulation, world = sys.argv[1], *map(int, sys.argv[2:])
transformers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
texts = ["We learn. " * (1 + i % 5) for i in range(24)]
rows = [dict(input_ids=r, attention_mask=[1] * len(r), labels=float(i % 7)) for i, r in enumerate(tiny_tokenizer()(texts)["input_ids"])]
args = TrainingArguments(out + ".folder", per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, num_train_epochs=1, logging_steps=1,
                         save_strategy="no", report_to="none", train_sampling_strategy="sequential", use_cpu=True, disable_tqdm=True)
assert args.world_size == world, f"{args.world_size} processes, not {world}"
trainer = AdvTrainer(model, args, recipe=Recipe(learning_rate=1e-3, epochs=1, batch_size=8) + LayerDecay(0.9), train_dataset=rows,
                     eval_dataset=rows[:8], data_collator=DataCollatorWithPadding(tiny_tokenizer()))
trainer.train()
logs = [(h["loss"], h["grad_norm"]) for h in trainer.state.log_history if "loss" in h]
result = dict(logs=torch.tensor(logs), weights=torch.cat([p.detach().flatten() for p in model.parameters()]), eval=trainer.evaluate()["eval_loss"])
if trainer.is_world_process_zero(): torch.save(result, out)
if world > 1:
    torch.distributed.barrier()
    sys.stdout.flush(); os._exit(0) # gloo's threads may abort a process that ends in the usual way
