"""Freezing in whole trainings: killed and resumed, on two processes, with every optimizer and with other techniques.

python test_freezing.py FOLDER TERM [find_unused]     one training, also under torchrun; rank 0 writes FOLDER/weights.pt
"""
import copy, os, subprocess, sys, warnings
from pathlib import Path
from types import SimpleNamespace

import pandas as pd, pytest, torch, transformers
from accelerate import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from advft.core import TINY, Recipe, tiny_model, tiny_tokenizer
from advft.freezing import Thaw, Unfreezing, _check_processes, freeze, train_only
from advft.layer_stack import layer_stack
from advft.train import AdvTrainer, FineTuned, fine_tune

ROWS = [dict(input_ids=[2] + [5 + i] * (2 + i % 4) + [3], attention_mask=[1] * (4 + i % 4), labels=float(i % 3)) for i in range(24)]
GRADUAL, FIRST = "gradual_unfreezing(0.75)", "head_first(0.5)"
TERMS = {
    "gradual": GRADUAL, "head_first": FIRST, "until_in_epochs": "gradual_unfreezing(1, stages=2)",
    "layer_decay": f"{GRADUAL} + layer_decay(0.8) + warmup(0.3)", "swa": f"{FIRST} + swa(0.25)", "ema": f"{GRADUAL} + ema(0.9)",
    "pooling": f"{GRADUAL} + pooling('gru') + reinit_layers(1)", "mixout": f"{GRADUAL} + mixout(0.3) + prior_decay(5.0)",
    "lookahead": f"{GRADUAL} + lookahead_steps(3) + optimizer('madgrad')", "bert_adam": f"{FIRST} + optimizer('bert_adam')",
    "frozen_below": f"{GRADUAL} + freeze()", "norms": f"{FIRST} + train_only('norms')"}
pytestmark = pytest.mark.filterwarnings("ignore:layers .* are frozen, and their norms", "ignore:.*lr_scheduler.step")


def model_of(seed=0, **config):
    torch.manual_seed(seed)
    return tiny_model("bert", 2, **config)


class Killed(Exception): "What a kill is here."


class Look(TrainerCallback):
    "Writes down, at each step, what trains and what has a state; breaks off before step `kill`."
    def __init__(self, kill=None): self.kill, self.trains, self.states = kill, {}, {}
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.kill: raise Killed
    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        self.trains[state.global_step] = {n for n, p in model.named_parameters() if p.requires_grad}
        while not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "optimizer"): optimizer = optimizer.optimizer
        self.states[state.global_step] = {n for n, p in model.named_parameters() if optimizer.state.get(p)}


def trained(where, term, kill=None, resume=None, model=None, more=(), **arguments):
    "Eight steps of AdvTrainer, or a training that is killed; returns the model and what was seen."
    settings = dict(max_steps=8, report_to="none", use_cpu=True, disable_tqdm=True, gradient_accumulation_steps=2, max_grad_norm=0.5)
    args = TrainingArguments(str(where), **(settings | arguments))
    recipe, look = Recipe.parse(f"recipe(learning_rate=1e-2, batch_size=4, epochs=3) + {term}"), Look(kill)
    trainer = AdvTrainer(model or model_of(), args, recipe=recipe, train_dataset=ROWS, eval_dataset=ROWS[:4],
                         data_collator=DataCollatorWithPadding(tiny_tokenizer()), callbacks=[look, *more])
    torch.manual_seed(1)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model, look


def weights(model): return {n: p.detach().clone() for n, p in model.state_dict().items()}


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for n, v in expected.items(): assert torch.equal(found[n], v), n


@pytest.mark.parametrize("name", TERMS)
def test_a_resumed_training_is_the_unbroken_one(name, tmp_path):
    whole, look = trained(tmp_path/"whole", TERMS[name], save_strategy="no")
    for kill in (2, 5) if name == "gradual" else (5,):
        with pytest.raises(Killed): trained(tmp_path/str(kill), TERMS[name], kill=kill, save_steps=kill)
        resumed, again = trained(tmp_path/str(kill), TERMS[name], resume=str(tmp_path/str(kill)/f"checkpoint-{kill}"), save_strategy="no")
        assert_equal(weights(resumed), weights(whole))
        assert again.trains == {s: t for s, t in look.trains.items() if s > kill}
    assert len(look.trains[1]) < len(look.trains[8])


@pytest.mark.parametrize("name", [n for n in TERMS if n != "pooling"])
def test_what_is_frozen_does_not_move_and_has_no_state(name, tmp_path):
    start, seen = {}, {}

    class Before(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **kwargs): start.update(weights(model))
        def on_step_end(self, args, state, control, model, **kwargs): seen[state.global_step] = weights(model)

    _, look = trained(tmp_path, TERMS[name], more=[Before()], save_strategy="no")
    for step in look.trains:
        still = {n for n in start if n in layer_of and not any(n in look.trains[s] for s in range(1, step + 1))}
        for n in still: assert torch.equal(seen[step][n], start[n]), (step, n)
        assert not look.states[step] - set.union(*(look.trains[s] for s in range(1, step + 1)))
    assert look.trains[1] <= look.trains[4] <= look.trains[8]


layer_of = layer_stack(tiny_model("bert", 2)).depth


def test_off_is_plain(tmp_path):
    plain, _ = trained(tmp_path, "layer_decay(0.9)", save_strategy="no")
    off, _ = trained(tmp_path, "layer_decay(0.9) + gradual_unfreezing(0.0)", save_strategy="no")
    assert_equal(weights(off), weights(plain))


def test_parts_of_an_update_equal_the_whole(tmp_path):
    still, same = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), dict(save_strategy="no", train_sampling_strategy="sequential")
    whole, _ = trained(tmp_path, GRADUAL, model=model_of(**still), gradient_accumulation_steps=1, **same)
    parts, _ = trained(tmp_path, GRADUAL, model=model_of(**still), gradient_accumulation_steps=4, **same)
    for (n, p), q in zip(whole.named_parameters(), parts.parameters()): torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4, msg=n)


def test_thawing_gives_fresh_state_and_the_schedules_rate(tmp_path):
    counts, rates = {}, {}

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
            rates[state.global_step] = [(g["lr"], g["initial_lr"]) for g in optimizer.param_groups]
        def on_step_end(self, args, state, control, model, optimizer, **kwargs):
            counts[state.global_step] = {n: int(optimizer.state[p]["step"]) for n, p in model.named_parameters() if p in optimizer.state}

    trained(tmp_path, "head_first(0.5) + layer_decay(0.5)", more=[Watch()], save_strategy="no")
    head = {n for n, d in layer_of.items() if d == 3}
    assert counts[4] == {n: 4 for n in head}
    assert counts[8] == {n: 8 if n in head else 4 for n in layer_of}
    for step, pairs in rates.items():
        for lr, initial in pairs: assert lr == pytest.approx(initial * (8 - step) / 8)
    assert sorted({initial for _, initial in rates[0]}) == pytest.approx([2.5e-3, 5e-3, 1e-2])


def test_after_training_everything_trains_again(tmp_path):
    model, _ = trained(tmp_path, GRADUAL, save_strategy="no")
    assert all(p.requires_grad for p in model.parameters()) and not hasattr(model, "_unfreezing")


def test_a_broken_training_leaves_nothing_frozen(tmp_path):
    model = model_of()
    with pytest.raises(Killed): trained(tmp_path, FIRST, kill=2, model=model, save_strategy="no")
    assert all(p.requires_grad for p in model.parameters())


def test_what_a_broken_stock_training_left_frozen_is_seen(tmp_path):
    model, args = model_of(), TrainingArguments(str(tmp_path), max_steps=8, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True)
    stock = Trainer(model, args, train_dataset=ROWS, data_collator=DataCollatorWithPadding(tiny_tokenizer()), callbacks=[Thaw(0.5, stages=1), Look(kill=2)])
    with pytest.raises(Killed): stock.train()
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    with pytest.raises(ValueError, match="lacks 37; make"): trained(tmp_path, FIRST, model=model, save_strategy="no")
    trained(tmp_path, FIRST, model=model, save_strategy="no")
    assert all(p.requires_grad for p in model.parameters())


def test_two_unfreezings_are_one_too_many(tmp_path):
    with pytest.raises(ValueError, match="both decide when layers begin to train; drop one of them"): trained(tmp_path, f"{GRADUAL} + {FIRST}")


def test_lasting_to_the_end_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="would train from step 12 on, and the training has 8"): trained(tmp_path, "head_first(2)")
    with pytest.warns(UserWarning, match="less than a step of 8"): trained(tmp_path, "head_first(0.01)", save_strategy="no")


def test_a_stock_trainer_unfreezes_too(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=4, per_device_train_batch_size=4, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True)
    look = Look()
    Trainer(model_of(), args, train_dataset=ROWS, data_collator=DataCollatorWithPadding(tiny_tokenizer()), callbacks=[Thaw(0.5, stages=1), look]).train()
    assert [len(look.trains[s]) for s in (1, 2, 3, 4)] == [4, 4, 41, 41] == [len(look.states[s]) for s in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["pooling", "mixout", "frozen_below", "norms", "swa"])
def test_a_recipe_trains_saves_and_loads(name, tiny_bert, tmp_path):
    table = pd.DataFrame(dict(text=[f"We saw {n} of the {m} men go." for n in ("two", "some", "all") for m in ("old", "good", "great", "new")], target=range(100, 112)))
    recipe = Recipe.parse(f"recipe(learning_rate=1e-3, batch_size=4, epochs=3, max_length=24) + {TERMS[name]}")
    assert Recipe.parse(str(recipe)) == recipe == Recipe.from_dict(recipe.to_dict())
    fitted = fine_tune(table, table[:4], recipe, str(tiny_bert))
    found = fitted.predict(table)
    fitted.save(tmp_path/"m")
    assert (FineTuned.load(tmp_path/"m").predict(table) == found).all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant):
    batch = tiny_tokenizer()(["We learn.", "How do they work?"], padding=True, return_tensors="pt")
    for layers in (0, 1):
        model = model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        freeze(model, layers=layers)
        model(**batch).logits.sum().backward()
        plain = {n: p.grad for n, p in model.named_parameters()}
        model.zero_grad()
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable(dict(use_reentrant=reentrant))
        model(**batch).logits.sum().backward()
        assert {n for n, p in model.named_parameters() if p.grad is None} == {n for n, d in layer_of.items() if d <= layers}
        for n, p in model.named_parameters(): assert plain[n] is None or torch.equal(plain[n], p.grad), n


@pytest.mark.parametrize("architecture", TINY)
def test_checkpointing_keeps_every_gradient_above_the_frozen(architecture):
    torch.manual_seed(0)
    model, batch = tiny_model(architecture, 2).train(), tiny_tokenizer()(["We learn.", "How do they work?"], padding=True, return_tensors="pt")
    freeze(model, layers=1)
    enable, tried = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable, 0

    def reached():
        out = model(**batch)
        (out.logits if "logits" in out else out[0]).float().pow(2).mean().backward()
        found = {n for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    plain = reached()
    for reentrant in (False, True)[:1 if architecture == "deberta-v2" else 2]:
        try: enable(dict(use_reentrant=reentrant))
        except ValueError: continue # this architecture has none
        assert reached() == plain
        tried += 1
    assert tried or architecture in ("mpnet", "albert", "xlnet")


@pytest.mark.parametrize("kind, more, error", [
    ("MULTI_GPU", {}, None), ("MULTI_GPU", dict(ddp_find_unused_parameters=True), None),
    ("MULTI_GPU", dict(ddp_find_unused_parameters=True, activation_checkpointing=True), None),
    ("MULTI_CPU", dict(ddp_find_unused_parameters=False), "needs `ddp_find_unused_parameters=True`"),
    ("MULTI_CPU", dict(activation_checkpointing=True), "needs `ddp_find_unused_parameters=True`"),
    ("MULTI_CPU", dict(ddp_static_graph=True), "needs `ddp_find_unused_parameters=True`"),
    ("FSDP", {}, "needs plain data parallelism, got FSDP")])
def test_what_several_processes_need(monkeypatch, kind, more, error):
    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", SimpleNamespace(value=kind))
    args = SimpleNamespace(**dict(world_size=2, ddp_find_unused_parameters=None, ddp_static_graph=None, activation_checkpointing=False) | more)
    if error is None: return _check_processes(args, model_of())
    with pytest.raises(ValueError, match=error): _check_processes(args, model_of())


def test_under_a_gradient_scaler():
    batch = tiny_tokenizer()(["We learn.", "How do they work?"], padding=True, return_tensors="pt")

    def run(scaled, bad=4):
        model = model_of().eval()
        optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True), torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scaled)
        unfreezing, taken = Unfreezing(model, until=4, stages=2), 0
        for step in range(9):
            if step == bad and not scaled: continue
            unfreezing.at(step)
            loss = model(**batch).logits.square().mean() * (float("inf") if step == bad else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()
        return weights(model), {n: int(optimizer.state[p]["step"]) for n, p in model.named_parameters()}

    (found, counts), (expected, _) = run(True), run(False)
    for n, v in expected.items(): torch.testing.assert_close(found[n], v, rtol=0, atol=1e-7, msg=n)
    assert counts["classifier.weight"] == 8 and counts["bert.embeddings.word_embeddings.weight"] == 4


@given(layers=st.integers(1, 12), until=st.integers(0, 60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_stages(layers, until, data):
    model = torch.nn.Module()
    model.layers, model.head = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(layers)), torch.nn.Linear(1, 1)
    stages = data.draw(st.none() | st.integers(1, layers))
    unfreezing = Unfreezing(model, until, stages)
    found = [unfreezing.parts(s) for s in range(until + 3)]
    assert found == sorted(found) and found[until:] == [layers] * 3
    if not until: return
    assert found[0] == 0 and (until == 1 or found[until - 1] < layers)
    lengths = [found[:until].count(k) for k in set(found[:until])]
    if until >= (stages or layers): assert len(lengths) == (stages or layers) and max(lengths) - min(lengths) <= 1
    for s in data.draw(st.lists(st.integers(0, until + 2), max_size=5)): # in any order, as after a resume
        unfreezing.at(s)
        assert [p.requires_grad for p in model.parameters()] == [i >= layers - found[s] for i in range(layers) for _ in "wb"] + [True, True]


@given(st.sampled_from(sorted(TINY)), st.permutations([("f", True, 0), ("f", False, 1), ("t", "norms"), ("t", "biases")]), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_freezings_add_up(architecture, steps, n):
    apply = lambda m, s: freeze(m, *s[1:]) if s[0] == "f" else train_only(m, *s[1:])
    together, parts = MODELS.setdefault(architecture, tiny_model(architecture)), []
    together.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for s in steps[:n]:
            one = copy.deepcopy(together).requires_grad_(True)
            try: apply(one, s); found = apply(together, s)
            except ValueError: return
            parts.append([p.requires_grad for p in one.parameters()])
            assert found.trains == sum(p.numel() for p in together.parameters() if p.requires_grad)
    assert [p.requires_grad for p in together.parameters()] == [all(f) for f in zip(*parts)] or not parts


MODELS = {}


def processes(folder, term, world, *more):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    return subprocess.run([sys.executable, *launch, __file__, str(folder), term, *more], capture_output=True, text=True, timeout=300)


def main(folder, term, unused="auto"):
    "Train with each of the terms, separated by |, in one launch."
    transformers.utils.logging.set_verbosity_error()
    world, found = int(os.environ.get("WORLD_SIZE", 1)), {}
    for t in term.split("|"):
        name, _, checkpointing = t.strip().partition(" checkpointing")
        more = dict(activation_checkpointing=True) if checkpointing else {}
        args = dict(save_strategy="no", train_sampling_strategy="sequential", per_device_train_batch_size=4 // world, gradient_accumulation_steps=1) | more
        model, look = trained(Path(folder)/"out", name, model=model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), **args)
        found[t] = weights(model), look.trains
    if unused != "auto":
        args = TrainingArguments(str(Path(folder)/"out"), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, ddp_find_unused_parameters=False)
        try: Trainer(model_of(), args, train_dataset=ROWS, data_collator=DataCollatorWithPadding(tiny_tokenizer()), callbacks=[Thaw(0.5)]).train()
        except ValueError as e: found["error"] = str(e)
    found["world"] = args.world_size if unused != "auto" else world
    if int(os.environ.get("RANK", 0)) == 0: torch.save(found, Path(folder)/"weights.pt")
    if world > 1:
        torch.distributed.barrier()
        sys.stdout.flush(); os._exit(0) # gloo's threads may abort a process that ends in the usual way


def test_two_processes_equal_one(tmp_path):
    terms = f"{GRADUAL} + layer_decay(0.8)|{FIRST} checkpointing|freeze() + train_only('norms')"
    (tmp_path/"two").mkdir(); (tmp_path/"one").mkdir()
    done = processes(tmp_path/"two", terms, 2, "check")
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path/"two"/"weights.pt", weights_only=False)
    main(tmp_path/"one", terms)
    one = torch.load(tmp_path/"one"/"weights.pt", weights_only=False)
    assert two["world"] == 2 and "ddp_find_unused_parameters=True" in two["error"]
    for t in terms.split("|"):
        assert two[t][1] == one[t][1], t
        for n, v in one[t][0].items(): torch.testing.assert_close(two[t][0][n], v, rtol=1e-4, atol=2e-4, msg=f"{t} {n}")


if __name__ == "__main__": main(*sys.argv[1:])
