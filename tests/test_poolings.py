"One battery for every pooling of the registry: padding, precision, architectures, training, saving, copying, averaging."
import copy, subprocess, sys

import advft.all # fills the registry
import pandas as pd, pytest, torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from advft.core import Recipe, tiny_model, tiny_tokenizer
from advft.layer_decay import layer_decay_groups
from advft.layer_stack import layer_stack
from advft.pooling import POOLINGS, PooledModel, Pooling, make_pooling, pooling_class
from advft.reinit import reinit_layers
from advft.swa import average_state_dicts
from advft.train import FineTuned, fine_tune, load_model

HEADS = sorted(n for n, cls in POOLINGS.items() if cls.__module__.startswith("advft."))
MODES = [(n, {}) for n in HEADS] + [("cls", dict(token="last")), ("wk", dict(mode="full")), ("weighted_layers", dict(mode="raw")),
         ("concat", dict(base="mean")), ("sum_layers", dict(base="max", k=2)), ("dense", dict(base="max")), ("conv", dict(kernel_size=3))]
LABELS = [n + "".join(f"-{v}" for v in k.values()) for n, k in MODES]
ARCHITECTURES = ["bert", "roberta", "distilbert", "albert", "electra", "deberta-v2", "mpnet", "xlnet", "bart", "modernbert", "t5"]
LAYERS = 5
EPS = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2 ** -6}
WK = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 2 ** -6}
CONFIG = tiny_model("bert", LAYERS).config


def head(name, knobs={}, dtype=torch.float32):
    torch.manual_seed(1)
    made = make_pooling(name, CONFIG, **knobs).to(dtype).eval()
    if hasattr(made, "learn"): made.learn([[2, 5, 6, 3], [2, 5, 7, 3], [2, 9, 3]])
    return made


def texts(lengths, dtype=torch.float32, related=True):
    "Unpadded texts: hidden states (layers + 1, tokens, width) and ids each, the same for the same length; layers may have nothing in common."
    found = []
    for n in lengths:
        g = torch.Generator().manual_seed(n)
        states = torch.randn(LAYERS + 1, n, CONFIG.hidden_size, generator=g, dtype=torch.float64)
        if related: states = states.cumsum(0) + torch.randn(1, n, CONFIG.hidden_size, generator=g, dtype=torch.float64)
        ids = torch.randint(5, 50, (n,), generator=g); ids[0], ids[-1] = 2, 3
        found.append((states.to(dtype), ids, (torch.arange(n) >= n // 2).long()))
    return found


def batch(rows, total, side):
    "Pad to `total` tokens, with noise where no token is; the inputs of a pooling."
    dtype, g = rows[0][0].dtype, torch.Generator().manual_seed(total)
    states = 30 * torch.randn(LAYERS + 1, len(rows), total, CONFIG.hidden_size, generator=g).to(dtype)
    ids, kinds, mask = torch.zeros(len(rows), total, dtype=torch.long), torch.zeros(len(rows), total, dtype=torch.long), torch.zeros(len(rows), total, dtype=torch.long)
    for i, (h, d, k) in enumerate(rows):
        at = slice(0, len(d)) if side == "right" else slice(total - len(d), total)
        states[:, i, at], ids[i, at], kinds[i, at], mask[i, at] = h, d, k, 1
    pooled = torch.stack([h[-1, 0].tanh() if h.shape[1] else torch.ones(CONFIG.hidden_size, dtype=dtype) for h, _, _ in rows])
    return (tuple(states), mask), dict(input_ids=ids, token_type_ids=kinds, pooler_output=pooled)


def apart(a, b):
    "The largest difference of two batches' rows, relative to the rows' largest value."
    return ((a - b).abs().amax(-1) / b.abs().amax(-1).clamp(min=1e-30)).max().item()


@pytest.mark.parametrize("related", [True, False], ids=["related", "unrelated"])
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("name, knobs", MODES, ids=LABELS)
def test_padding_and_mates_change_nothing(name, knobs, dtype, related):
    made, lengths, eps = head(name, knobs, dtype), [9, 4, 2, 1, 6, 3], (WK if name == "wk" else EPS)[dtype]
    rows = texts(lengths, dtype, related)
    with torch.no_grad():
        alone = torch.cat([made(*a, **k) for a, k in (batch([r], len(r[1]), "right") for r in rows)])
        assert alone.shape == (len(rows), made.width) and alone.isfinite().all() and alone.dtype == dtype
        for side in "right", "left":
            for total in 9, 10, 23, 64:
                args, inputs = batch(rows, total, side)
                assert apart(made(*args, **inputs), alone) <= eps, (side, total)
            args, inputs = batch([rows[1], rows[4]], 17, side) # other mates
            assert apart(made(*args, **inputs), alone[[1, 4]]) <= eps
    assert apart(alone[:1], alone[1:2]) > 0.01 # two texts differ


@pytest.mark.parametrize("name, knobs", MODES, ids=LABELS)
def test_the_mask_may_be_of_any_type_or_absent(name, knobs):
    made, rows = head(name, knobs), texts([5, 5])
    (states, mask), inputs = batch(rows, 5, "right")
    with torch.no_grad(): plain = made(states, mask, **inputs)
    for other in mask.bool(), mask.float(), None: assert torch.equal(made(states, other, **inputs), plain)
    with pytest.raises(ValueError, match="attention_mask"): made(states, mask[:, 1:], **inputs)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name, knobs", MODES, ids=LABELS)
def test_extreme_texts_give_finite_output_and_gradients(name, knobs, side):
    made = head(name, knobs).train()
    rows = texts([1, 2, 7]) + [(torch.zeros(LAYERS + 1, 0, CONFIG.hidden_size), torch.zeros(0).long(), torch.zeros(0).long())]
    special = texts([4])[0]
    rows.append((special[0], torch.tensor([2, 3, 3, 3]), special[2])) # nothing but special tokens
    rows.append((torch.ones(LAYERS + 1, 3, CONFIG.hidden_size), torch.tensor([2, 5, 3]), torch.zeros(3).long())) # all layers alike
    (states, mask), inputs = batch(rows, 11, side)
    states = [h.requires_grad_() for h in (h.clone() for h in states)]
    before = [h.detach().clone() for h in states]
    found = made(tuple(states), mask, **inputs | dict(pooler_output=(states[-1] * mask[..., None]).sum(1)))
    assert found.isfinite().all() and (found[3] == 0).all() # of nothing but padding: zeros
    found.square().sum().backward()
    for h in states: assert h.grad is None or (h.grad.isfinite().all() and (h.grad[mask == 0] == 0).all())
    for p in made.parameters(): assert p.grad is not None and p.grad.isfinite().all()
    for h, b in zip(states, before): assert torch.equal(h, b) # nothing was written in place


def pooled_model(name, architecture="bert", layers=LAYERS, **knobs):
    torch.manual_seed(0)
    model = PooledModel.around(tiny_model(architecture, layers), name, **knobs).eval()
    if hasattr(model.pooling, "learn"): model.pooling.learn([[2, 5, 6, 3], [2, 9, 3]])
    return model


def encoded(architecture="bert", pair=False):
    tokenizer = tiny_tokenizer("left" if architecture == "xlnet" else "right")
    tokenizer.model_input_names = ["input_ids", "attention_mask", "token_type_ids"] if architecture in ("bert", "albert", "electra") else ["input_ids", "attention_mask"]
    firsts = ["We learn.", "How do they work on all of this?", "No."]
    found = tokenizer(firsts, ["Then go on.", "So.", "It is good."], padding=True, return_tensors="pt") if pair else tokenizer(firsts, padding=True, return_tensors="pt")
    if pair: found["kind" if "token_type_ids" not in found else "token_type_ids"] = (found["input_ids"] == 3).cumsum(1).clamp(max=1)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", HEADS)
def test_every_architecture(name, architecture, tmp_path):
    if name == "pooler" and architecture not in ("bert", "albert"):
        with pytest.raises(ValueError, match="has no pooler for pooling 'pooler'; use 'cls' or 'mean'"): pooled_model(name, architecture)
        return
    model, inputs = pooled_model(name, architecture), encoded(architecture)
    found = model(**inputs, labels=torch.tensor([0.0, 1.0, 2.0]))
    found.loss.backward()
    assert found.logits.shape == (3, 1) and found.logits.isfinite().all()
    for n, p in model.pooling.named_parameters(): assert p.grad is not None or "1" in n, n # asymmetric's second kind has no token here
    tokenizer = tiny_tokenizer("left" if architecture == "xlnet" else "right")
    with torch.no_grad(): alone = model(**tokenizer(["We learn."], return_tensors="pt")).logits
    assert (alone - found.logits[:1]).abs().max() < 1e-4 * found.logits.abs().max().clamp(min=1)
    stack = layer_stack(model)
    for n, _ in model.named_parameters(): assert stack.depth[n] == len(stack) + 1 or n.startswith("encoder."), n
    heads = {id(p) for g in layer_decay_groups(model, 1e-3) if g["head"] for p in g["params"]}
    assert {id(p) for p in [*model.pooling.parameters(), *model.outputs.parameters()]} <= heads
    before = {n: p.clone() for n, p in model.named_parameters() if not n.startswith("encoder.")}
    reinit_layers(model, LAYERS)
    for n, p in before.items(): assert torch.equal(p, model.get_parameter(n))
    model.save_pretrained(tmp_path/"m")
    with torch.no_grad(): assert torch.equal(load_model(tmp_path/"m")(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name, knobs", MODES, ids=LABELS)
def test_all_parameters_move_in_one_step(name, knobs):
    model, inputs = pooled_model(name, **knobs).train(), encoded(pair=True)
    own = dict(model.pooling.named_parameters()) | {f"outputs.{n}": p for n, p in model.outputs.named_parameters()}
    before = {n: p.detach().clone() for n, p in own.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2): # the second text changes a bias that the first step's zero output weight hides
        model(**inputs, labels=torch.tensor([0.0, 1.0, 2.0])).loss.backward(); optimizer.step(); optimizer.zero_grad()
    for n, p in own.items(): assert p.requires_grad and not torch.equal(p, before[n]), n


@pytest.mark.parametrize("name, knobs", MODES, ids=LABELS)
def test_copies_and_averages(name, knobs):
    model, inputs = pooled_model(name, **knobs), encoded(pair=True)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(**inputs).logits, model(**inputs).logits)
        for p in twin.parameters(): p.add_(0.01)
    mean = average_state_dicts([model.state_dict(), twin.state_dict()])
    averaged = AveragedModel(model); averaged.update_parameters(model); averaged.update_parameters(twin)
    other = copy.deepcopy(model); other.load_state_dict(mean)
    with torch.no_grad(): assert (averaged(**inputs).logits - other(**inputs).logits).abs().max() < 1e-5


RELOAD = """
import sys, torch
from pathlib import Path
from advft.train import load_model
for folder in sorted(Path(sys.argv[1]).iterdir()):
    kept = torch.load(folder/"kept.pt")
    model = load_model(folder)
    with torch.no_grad(): found = model(**kept["inputs"]).logits
    assert torch.equal(found, kept["logits"]), folder.name
    assert list(model.state_dict()) == list(kept["state"]) and all(torch.equal(v, kept["state"][k]) for k, v in model.state_dict().items()), folder.name
    print(folder.name)
"""


def test_saved_models_are_the_same_in_a_fresh_process(tmp_path):
    for (name, knobs), label in zip(MODES, LABELS):
        model, inputs = pooled_model(name, **knobs), dict(encoded(pair=True))
        model.save_pretrained(tmp_path/label)
        with torch.no_grad(): kept = dict(inputs=inputs, logits=model(**inputs).logits, state=model.state_dict())
        torch.save(kept, tmp_path/label/"kept.pt")
    done = subprocess.run([sys.executable, "-c", RELOAD, tmp_path], capture_output=True, text=True)
    assert done.stdout.split() == sorted(LABELS), done.stderr[-2000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A saved tiny model with its tokenizer."
    at = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tiny_model("bert", LAYERS).save_pretrained(at); tiny_tokenizer().save_pretrained(at)
    return at


TABLE = pd.DataFrame(dict(text=[f"We saw {n} of the {m} men go." for n in ("two", "some", "all") for m in ("old", "good", "great", "new")], target=range(100, 112)))


@pytest.mark.parametrize("name, knobs", MODES, ids=LABELS)
def test_a_recipe_trains_saves_and_loads(name, knobs, folder, tmp_path):
    recipe = Recipe(learning_rate=1e-3, epochs=1, batch_size=4, max_length=24) + Pooling(name, dropout_samples=2, **knobs)
    assert Recipe.parse(str(recipe)) == recipe == Recipe.from_dict(recipe.to_dict())
    fitted = fine_tune(TABLE, TABLE[:4], recipe, str(folder))
    found = fitted.predict(TABLE)
    assert abs(found.mean() - 105.5) < 6 # in the target's units
    fitted.save(tmp_path/"m")
    again = FineTuned.load(tmp_path/"m")
    assert (again.predict(TABLE) == found).all() and again.recipe == recipe


@pytest.mark.parametrize("name", ["mean_max", "attention", "parallel_sum"])
def test_with_other_techniques_on_classes(name, folder, tmp_path):
    recipe = Recipe.parse(f"recipe(learning_rate=1e-3, epochs=2, batch_size=4, max_length=24) + pooling('{name}') + layer_decay(0.9) + warmup(0.1)"
                          " + reinit_layers(2) + swa(0.5) + evaluate_every(0.5)")
    table = TABLE.assign(target=["low", "high", "mid"] * 4)
    fitted = fine_tune(table, table[:6], recipe, str(folder))
    p = fitted.predict_proba(table)
    assert p.shape == (12, 3) and fitted.labels == ["high", "low", "mid"]
    fitted.save(tmp_path/"m")
    assert (FineTuned.load(tmp_path/"m").predict_proba(table) == p).all()
    again = fine_tune(table, table[:6], recipe.without("pooling"), str(tmp_path/"m")) # from a saved head, with its own pooling
    assert again.model.pooling.name == name and again.predict_proba(table).shape == (12, 3)
    other = fine_tune(TABLE, None, recipe.without("pooling").without("evaluate_every") + Pooling("max"), str(tmp_path/"m")) # another head, another task
    assert other.model.pooling.name == "max" and other.predict(TABLE).shape == (12,)


@pytest.mark.parametrize("architecture", ["bert", "bart"]) # BART's tied tables may be written once only
def test_stock_trainer_saves_and_resumes(architecture, tmp_path):
    rows = [dict(input_ids=[2, 5 + i, 9, 3], attention_mask=[1] * 4, labels=float(i % 2)) for i in range(8)]

    def trained(where, steps, resume=None):
        model = pooled_model("mean_max", architecture)
        args = TrainingArguments(str(where), max_steps=steps, save_steps=2, per_device_train_batch_size=2, learning_rate=1e-3, lr_scheduler_type="constant", report_to="none", use_cpu=True, disable_tqdm=True)
        Trainer(model, args, train_dataset=rows, data_collator=DataCollatorWithPadding(tiny_tokenizer())).train(resume_from_checkpoint=resume)
        return model.state_dict()
    whole = trained(tmp_path/"a", 4)
    trained(tmp_path/"b", 2)
    resumed = trained(tmp_path/"b", 4, str(tmp_path/"b"/"checkpoint-2"))
    for n, v in whole.items(): assert torch.equal(resumed[n], v), n


def test_what_cannot_work_says_so(folder, tmp_path):
    config = tiny_model("bert", 2).config
    with pytest.raises(ValueError, match="unknown pooling 'maen'.*did you mean 'mean'"): make_pooling("maen", config)
    with pytest.raises(ValueError, match="unknown knob of pooling 'concat' 'layers'"): make_pooling("concat", config, layers=2)
    with pytest.raises(ValueError, match="at least 3 layers, got 2"): make_pooling("wk", config)
    for name in "layer_cls", "concat", "sum_layers", "weighted_layers":
        for k in 0, 9, 1.5: 
            with pytest.raises(ValueError, match="`k`"): make_pooling(name, config, k=k)
    model = pooled_model("mean")
    model.save_pretrained(tmp_path/"m"); (tmp_path/"m"/"head.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="damaged"): load_model(tmp_path/"m")
    model.pooling = torch.nn.Identity()
    with pytest.raises(ValueError, match="no registered pooling"): model.save_pretrained(tmp_path/"n")
