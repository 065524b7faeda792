"""Train a tiny model with averaging in FOLDER, resuming if there is a checkpoint; die by SIGKILL at STEP in EVENT if asked to.

python averaged_training.py FOLDER [EVENT STEP]      writes FOLDER/end.pt: raw weights of the last step, final weights, log
"""
import os, signal, sys
from pathlib import Path

import torch, transformers
from transformers import DataCollatorWithPadding, PrinterCallback, TrainingArguments

from advft.core import Callback, Recipe, tiny_model, tiny_tokenizer
from advft.evaluation import EvaluateEvery
from advft.layer_decay import LayerDecay
from advft.swa import SWA
from advft.train import AdvTrainer


class Last(Callback):
    "Runs after the others: copies the raw weights of each step, and kills the process where it is told to."
    runs_last = True
    def __init__(self, event, step): self.event, self.step = event, step
    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.raw = {k: v.clone() for k, v in model.state_dict().items()}
        self.die("step_end", state)
    def on_before_save(self, args, state, control, **kwargs): self.die("before_save", state)
    def on_after_save(self, args, state, control, **kwargs): self.die("after_save", state)
    def on_evaluate(self, args, state, control, **kwargs): self.die("evaluate", state)
    def on_save(self, args, state, control, **kwargs): self.die("save", state)
    def die(self, event, state):
        if event == self.event and state.global_step == self.step: os.kill(os.getpid(), signal.SIGKILL)


def main(folder, event=None, step=0):
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    rows = [dict(input_ids=[2] + [10 + i] * (2 + i % 5) + [3], attention_mask=[1] * (4 + i % 5), labels=float(i % 3)) for i in range(22)]
    recipe = Recipe(learning_rate=1e-3, epochs=4, batch_size=4) + LayerDecay(0.8) + SWA(0.5, 0.5) + EvaluateEvery(2)
    args = TrainingArguments(folder, save_steps=1, gradient_accumulation_steps=2, report_to="none", use_cpu=True, logging_steps=1, disable_tqdm=True)
    last = Last(event, int(step))
    trainer = AdvTrainer(tiny_model("bert"), args, recipe=recipe, train_dataset=rows, eval_dataset=rows[:7],
                         data_collator=DataCollatorWithPadding(tiny_tokenizer()), callbacks=[last])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=any(Path(folder).glob("checkpoint-*/trainer_state.json")))
    log = [{k: v for k, v in h.items() if "runtime" not in k and "per_second" not in k and "flos" not in k} for h in trainer.state.log_history[:-1]]
    torch.save(dict(raw=last.raw, final=trainer.model.state_dict(), log=log), Path(folder)/"end.pt")


if __name__ == "__main__": main(*sys.argv[1:])
