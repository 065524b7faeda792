"The cures for unstable fine-tuning in whole trainings: together, killed and resumed, under a gradient scaler."
import copy

import pandas as pd, pytest, torch
from transformers import DataCollatorWithPadding, TrainerCallback, TrainingArguments

from advft.core import Recipe, tiny_model, tiny_tokenizer
from advft.train import AdvTrainer, FineTuned, fine_tune

TERMS = {
    "mixout": "mixout(0.3)", "prior_decay": "prior_decay(5.0)", "lookahead": "lookahead_steps(2)", "madgrad": "optimizer('madgrad')",
    "bert_adam": "optimizer('bert_adam')", "radam": "optimizer('radam')",
    "all": "mixout(0.3) + prior_decay(5.0) + lookahead_steps(3) + optimizer('madgrad') + layer_decay(0.9) + reinit_layers(1) + warmup(0.2) + pooling('mean_max')",
    "adam_all": "mixout(0.3, replace_dropout=False) + prior_decay(5.0) + lookahead_steps(2) + swa(0.5) + evaluate_every(2)"}
ROWS = [dict(input_ids=[2, 5 + i, 9 + i % 3, 3], attention_mask=[1] * 4, labels=float(i % 2)) for i in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A saved tiny model with its tokenizer."
    at = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tiny_model("bert", 2).save_pretrained(at); tiny_tokenizer().save_pretrained(at)
    return at


class Killed(Exception): "What a kill is here."


class KillAt(TrainerCallback):
    def __init__(self, step): self.step = step
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step: raise Killed


def trained(where, term, kill=None, resume=None):
    "The weights after seven steps of AdvTrainer, or killed before one of them."
    torch.manual_seed(0)
    args = TrainingArguments(str(where), max_steps=7, save_steps=3, report_to="none", use_cpu=True, disable_tqdm=True, gradient_accumulation_steps=2, max_grad_norm=0.5,
                             lr_scheduler_type="constant")
    recipe = Recipe.parse(f"recipe(learning_rate=1e-2, batch_size=4, epochs=3) + {term}")
    trainer = AdvTrainer(tiny_model("bert", 2), args, recipe=recipe, train_dataset=ROWS, eval_dataset=ROWS[:4], data_collator=DataCollatorWithPadding(tiny_tokenizer()),
                         callbacks=[KillAt(kill)])
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model.state_dict()


@pytest.mark.parametrize("name", [n for n in TERMS if n != "adam_all"])
def test_a_resumed_run_is_the_unbroken_one(name, tmp_path):
    whole = trained(tmp_path/"whole", TERMS[name])
    with pytest.raises(Killed): trained(tmp_path/"broken", TERMS[name], kill=5)
    resumed = trained(tmp_path/"broken", TERMS[name], resume=str(tmp_path/"broken"/"checkpoint-3"))
    assert set(whole) == set(resumed) and not any("target" in n for n in whole) # mixout is merged away
    for n, v in whole.items(): assert torch.equal(resumed[n], v), n


@pytest.mark.parametrize("name", TERMS)
def test_a_recipe_with_it_trains_saves_and_loads(name, folder, tmp_path):
    table = pd.DataFrame(dict(text=[f"We saw {n} of the {m} men go." for n in ("two", "some", "all") for m in ("old", "good", "great", "new")], target=range(100, 112)))
    recipe = Recipe.parse(f"recipe(learning_rate=1e-3, batch_size=4, epochs=3, max_length=24) + {TERMS[name]}")
    assert Recipe.parse(str(recipe)) == recipe == Recipe.from_dict(recipe.to_dict())
    fitted = fine_tune(table, table[:4], recipe, str(folder))
    found = fitted.predict(table)
    fitted.save(tmp_path/"m")
    again = FineTuned.load(tmp_path/"m")
    assert (again.predict(table) == found).all() and again.recipe == recipe
    assert abs(found.mean() - 105.5) < 15 and not any("target" in n for n in again.model.state_dict())


@pytest.mark.parametrize("name", ["prior_decay", "lookahead", "madgrad", "bert_adam"])
def test_a_step_that_the_scaler_skips_changes_nothing(name):
    torch.manual_seed(0)
    model, recipe = torch.nn.Sequential(torch.nn.Linear(4, 1)), Recipe.parse(TERMS[name])
    make = recipe.seat("optimizer")
    optimizer = make(model.parameters(), 1e-2, 0.0) if make else torch.optim.AdamW(model.parameters(), lr=1e-2)
    if name == "prior_decay":
        from advft.prior_decay import decay_to_pretrained
        decay_to_pretrained(optimizer, 5.0)
    if name == "lookahead":
        from advft.lookahead import Lookahead
        optimizer = Lookahead(optimizer, k=2)
    plain, scaler = copy.deepcopy(model), torch.amp.GradScaler("cpu", init_scale=2.0)
    seen = []
    for bad in (False, True, False, True, False):
        loss = model(torch.ones(2, 4)).square().mean() * (float("inf") if bad else 1.0)
        before = copy.deepcopy(model.state_dict())
        scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update(); optimizer.zero_grad()
        same = all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        assert same == bad
        if not bad: seen.append(copy.deepcopy(model.state_dict()))
    other = make(plain.parameters(), 1e-2, 0.0) if make else torch.optim.AdamW(plain.parameters(), lr=1e-2) # the same steps without the bad ones
    if name == "prior_decay": decay_to_pretrained(other, 5.0)
    if name == "lookahead": other = Lookahead(other, k=2)
    for expected in seen:
        plain(torch.ones(2, 4)).square().mean().backward(); other.step(); other.zero_grad()
        for n, v in plain.state_dict().items(): assert torch.allclose(v, expected[n], atol=1e-7)
