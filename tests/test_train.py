"Every architecture: fine-tuned, saved, loaded in a fresh process and by transformers alone; resumed after a kill."
import json, subprocess, sys
from dataclasses import dataclass

import numpy as np, pandas as pd, pytest, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainerCallback, TrainingArguments

from advft.core import TINY, Recipe, Technique, tiny_model, tiny_tokenizer
from advft.layer_decay import LayerDecay
from advft.train import AdvTrainer, FineTuned, fine_tune, model_outputs, tokenise
from conftest import save_tiny

RECIPE = Recipe(learning_rate=1e-3, epochs=1, batch_size=4, max_length=24) + LayerDecay(0.9)
CLASSIFIERS = [a for a in TINY if a != "t5"]
FRESH = """
import json, sys, pandas as pd
from advft.train import FineTuned
print(json.dumps({f: FineTuned.load(f).predict(pd.read_csv("table.csv")).tolist() for f in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, passages):
    folder = tmp_path_factory.mktemp("train")
    passages.to_csv(folder/"table.csv", index=False)
    return folder, passages.assign(grade=np.select([passages.target < 2, passages.target < 4], ["low", "middle"], "high"))


@pytest.fixture(scope="module")
def tuned(place):
    folder, table = place
    found = {}
    for a in CLASSIFIERS:
        model = str(save_tiny(folder/f"tiny-{a}", a))
        for target in "target", "grade":
            found[f"{a}-{target}"] = fitted = fine_tune(table[:16], table[16:], RECIPE, model, target=target)
            fitted.save(folder/f"{a}-{target}")
    return found


def test_fresh_process_predicts_the_same(place, tuned):
    folder, table = place
    done = subprocess.run([sys.executable, "-c", FRESH, *tuned], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, values in json.loads(done.stdout).items():
        here = tuned[name].predict(table)
        if tuned[name].task == "regression": np.testing.assert_allclose(values, here, atol=1e-5, err_msg=name)
        else: assert values == here.tolist(), name


@pytest.mark.parametrize("name", [f"{a}-{t}" for a in CLASSIFIERS for t in ("target", "grade")])
def test_transformers_alone_gives_the_same(place, tuned, name):
    folder, table = place
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder/name).eval(), AutoTokenizer.from_pretrained(folder/name)
    inputs = tokenizer(table.text.tolist()[:4], truncation=True, max_length=24, padding=True, return_tensors="pt")
    with torch.no_grad(): out = model(**inputs).logits.numpy()
    np.testing.assert_allclose(tuned[name].raw(table[:4]), out, atol=1e-4)
    if tuned[name].task != "regression": assert [model.config.id2label[i] for i in out.argmax(1)] == tuned[name].predict(table[:4]).tolist()


@pytest.mark.parametrize("a", CLASSIFIERS)
def test_predictions_keep_the_order_and_ignore_batch_mates(place, tuned, a):
    texts = [" ".join(t.split()[:n]) for t, n in zip(place[1].text, (2, 9, 1, 5, 3, 7))]
    one_by_one = np.concatenate([tuned[f"{a}-target"].predict([t]) for t in texts])
    np.testing.assert_allclose(tuned[f"{a}-target"].predict(texts, batch_size=4), one_by_one, atol=1e-4)


def test_targets_far_from_zero_are_learned_in_their_units(place, tiny_bert):
    table = place[1].assign(target=place[1].target * 1000 + 50000)
    fitted = fine_tune(table, recipe=RECIPE, model=str(tiny_bert))
    assert abs(fitted.predict(table).mean() - table.target.mean()) < 1000


class Kill(TrainerCallback):
    def __init__(self, step): self.step = step
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step: raise KeyboardInterrupt


@pytest.mark.parametrize("step, order", [(3, "random"), (6, "random"), (9, "group_by_length")])
def test_resume_continues_the_same_trajectory(tmp_path, passages, step, order):
    rows = [r | dict(labels=float(t)) for r, t in zip(tokenise(passages[:20], "text", tiny_tokenizer(), 24), passages.target)]

    def trainer(folder, *callbacks):
        torch.manual_seed(0)
        args = TrainingArguments(folder, save_steps=2, report_to="none", use_cpu=True, eval_strategy="steps", eval_steps=3, gradient_accumulation_steps=2, disable_tqdm=True,
                                 train_sampling_strategy=order)
        return AdvTrainer(tiny_model("bert"), args, recipe=Recipe(learning_rate=1e-3, epochs=2, batch_size=4) + LayerDecay(0.9), train_dataset=rows,
                          eval_dataset=rows[:4], data_collator=DataCollatorWithPadding(tiny_tokenizer()), callbacks=list(callbacks))

    weights = lambda t: torch.cat([p.detach().flatten() for p in t.model.parameters()])
    whole = trainer(tmp_path/"whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt): trainer(tmp_path/"cut", Kill(step)).train()
    again = trainer(tmp_path/"cut")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == whole.state.global_step == 10
    assert torch.equal(weights(again), weights(whole))


def test_how_often_it_is_evaluated_does_not_change_training(tmp_path, passages):
    rows = [r | dict(labels=float(t)) for r, t in zip(tokenise(passages[:20], "text", tiny_tokenizer(), 24), passages.target)]
    found = []
    for i, more in enumerate([dict(), dict(eval_strategy="steps", eval_steps=1), dict(eval_strategy="steps", eval_steps=3, dataloader_num_workers=2)]):
        torch.manual_seed(0)
        args = TrainingArguments(tmp_path/str(i), save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, num_train_epochs=2, **more)
        trainer = AdvTrainer(tiny_model("bert"), args, train_dataset=rows, eval_dataset=rows[:4], data_collator=DataCollatorWithPadding(tiny_tokenizer()))
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_texts_in_two_rows_are_evaluated_predicted_and_saved_as_one(tmp_path, passages, tiny_bert):
    @dataclass(frozen=True)
    class Halves(Technique):
        "The first and the last tokens of a text as two rows."
        def tokens(self, table, text, tokenizer, max_length):
            whole = tokenise(table, text, tokenizer, 512)
            halves = [{k: v[at] for k, v in r.items()} for r in whole for at in (slice(0, max_length), slice(-max_length, None))]
            return halves, np.arange(len(table)).repeat(2)

    valid = passages[20:]
    try: # watched rows bring an evaluation at the epoch's end
        fitted = fine_tune(passages[:20], valid, Recipe(learning_rate=1e-3, epochs=1, batch_size=4, max_length=24) + Halves(), str(tiny_bert), watch=valid)
        fitted.save(tmp_path/"halves")
        again = FineTuned.load(tmp_path/"halves")
        by_hand = model_outputs(again.model, Halves().tokens(valid, "text", again.tokenizer, 24)[0], again.tokenizer)[:, 0].reshape(-1, 2).mean(1)
        np.testing.assert_allclose(fitted.predict(valid), by_hand, atol=1e-5)
        np.testing.assert_allclose(again.predict(valid), by_hand, atol=1e-5)
        np.testing.assert_allclose(fitted.watched[-1][:, 0], by_hand, atol=1e-4)
        np.testing.assert_allclose([h["eval_rmse"] for h in fitted.history if "eval_rmse" in h], [fitted.score(valid)], atol=1e-4)
    finally: Technique.registry.pop("halves", None)
