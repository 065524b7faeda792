"""Adapters beside every other technique, without peft, and against formulas of our own."""
import copy, subprocess, sys, warnings
from types import SimpleNamespace

import pandas as pd, pytest, torch, transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from advft.adapters import Adapters, MergeAdapters, adapter_layers, add_adapters, layer_linears, merge_adapters
from advft.checkpointing import Checkpointing
from advft.core import TINY, Recipe, tiny_model, tiny_tokenizer
from advft.debias import Optimizer
from advft.ema import EMA
from advft.evaluation import EvaluateEvery
from advft.freezing import Freeze, GradualUnfreezing, HeadFirst, TrainOnly
from advft.layer_decay import LayerDecay
from advft.lookahead import LookaheadSteps
from advft.mixout import Mixout, apply_mixout
from advft.pooling import Pooling
from advft.precision import Precision
from advft.prior_decay import PriorDecay
from advft.reinit import ReinitLayers
from advft.swa import SWA
from advft.train import AdvTrainer, FineTuned, fine_tune, load_model

pytest.importorskip("peft")
KINDS = pytest.mark.parametrize("kind", ["lora", "dora"])
TABLE = pd.DataFrame(dict(text=["We learn.", "They work.", "How? " * 3, "good new work here", "the long way down"] * 4, target=[1.0, 2, 3, 4, 5] * 4))

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tiny_model("bert").save_pretrained(path); tiny_tokenizer().save_pretrained(path)
    return str(path)

def inputs(): return tiny_tokenizer()(["We learn.", "How do they work?"], padding=True, return_tensors="pt")

@torch.no_grad()
def output(model): return model(**inputs())[0]

def move(model, scale=0.05):
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora" in n: p.add_(torch.randn_like(p) * scale)

def base(folder): return Recipe(learning_rate=3e-3, epochs=3, batch_size=5, max_length=16, model=folder)

# without peft

def test_without_peft():
    code = """if True:
        import sys
        import advft.adapters as a
        assert not {"peft", "transformers"} & set(sys.modules)
        sys.modules["peft"] = None
        from advft.core import Recipe, tiny_model
        assert str(Recipe() + a.Adapters()).endswith("adapters('lora')")
        model = tiny_model("bert"); before = [n for n, _ in model.named_parameters()]
        try: a.add_adapters(model)
        except ValueError as e: print(e)
        assert before == [n for n, p in model.named_parameters() if p.requires_grad] and a.merge_adapters(model) is model
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["adapters need the package peft, which is not installed: pip install 'advft[adapters]'"]

# against our own formulas

class Small(nn.Module):
    def __init__(self, wide, out):
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(wide, out)]), nn.Linear(out, 1)

@settings(max_examples=40, deadline=None)
@given(wide=st.integers(1, 9), out=st.integers(1, 9), rank=st.integers(1, 12), alpha=st.floats(0.1, 64), kind=st.sampled_from(["lora", "dora"]), seed=st.integers(0, 999))
def test_formula(wide, out, rank, alpha, kind, seed):
    torch.manual_seed(seed)
    net = Small(wide, out); W, bias = net.layers[0].weight.detach().clone(), net.layers[0].bias.detach().clone()
    layer = add_adapters(net, kind, rank, alpha).layers[0]
    x = torch.randn(3, wide)
    assert torch.equal(layer(x), F.linear(x, W, bias))
    assert sum(p.numel() for n, p in layer.named_parameters() if "lora" in n) == rank * (wide + out) + out * (kind == "dora")
    move(net, 0.3)
    wanted = W + alpha / rank * layer.lora_B.default.weight @ layer.lora_A.default.weight
    if kind == "dora": wanted = layer.lora_magnitude_vector.default.weight[:, None] * wanted / wanted.norm(dim=1, keepdim=True)
    torch.testing.assert_close(layer(x), F.linear(x, wanted, bias), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merge_adapters(net).layers[0].weight, wanted.detach(), rtol=1e-4, atol=1e-5, check_dtype=True)
    assert torch.equal(net.layers[0].bias, bias)

# every architecture

@KINDS
@pytest.mark.parametrize("architecture", TINY)
def test_architectures(architecture, kind, tmp_path):
    torch.manual_seed(0)
    stock = tiny_model(architecture).eval()
    model = add_adapters(copy.deepcopy(stock), kind, rank=3, alpha=5)
    frozen = copy.deepcopy(stock).requires_grad_(False) # which kernel is taken may depend on that
    for n, p in model.named_parameters():
        if "lora" not in n: frozen.get_parameter(n.replace(".base_layer", "")).requires_grad_(p.requires_grad)
    assert torch.equal(output(model), output(frozen))
    assert set(adapter_layers(model)) == set(layer_linears(stock))
    model.train()(**inputs())[0].sum().backward()
    assert all((p.grad is not None) == p.requires_grad for n, p in model.named_parameters() if "lora" in n or "base_layer" in n)
    move(model.eval()); out = output(model)
    merge_adapters(model).save_pretrained(tmp_path)
    assert type(model) is type(stock) and list(model.state_dict()) == list(stock.state_dict())
    torch.testing.assert_close(output(type(stock).from_pretrained(tmp_path).eval()), out, rtol=0, atol=1e-5)
    assert vars(model).keys() == vars(stock).keys() and all(p.requires_grad for p in model.parameters())

# beside other techniques

BESIDE = [[], [LayerDecay(0.9)], [Pooling("mean")], [Checkpointing()], [SWA(0.5)], [EMA()], [EvaluateEvery(2)], [PriorDecay()], [Freeze(layers=1)],
          [HeadFirst()], [GradualUnfreezing()], [LookaheadSteps(3)], [Precision("bf16")], [Optimizer("madgrad")],
          [LayerDecay(0.9), Pooling("mean"), Checkpointing(), SWA(0.5), EvaluateEvery(2), PriorDecay()]]

@pytest.mark.parametrize("others", BESIDE, ids=lambda ts: "+".join(t.key for t in ts) or "alone")
def test_beside(others, folder, tmp_path):
    recipe = sum(others, base(folder) + Adapters("dora", rank=4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = fine_tune(TABLE, TABLE if any(t.needs_valid for t in others) else None, recipe)
    assert not adapter_layers(fitted.model)
    fitted.save(tmp_path/"saved"); again = FineTuned.load(tmp_path/"saved")
    assert abs(again.predict(TABLE) - fitted.predict(TABLE)).max() < 1e-5
    start = load_model(folder).base_model.state_dict(); now = getattr(fitted.model, "bert", None) or fitted.model.encoder; now = now.state_dict()
    changed = {n for n in now if "pooler" not in n and not torch.equal(now[n], start[n])}
    adapted = {n.removeprefix("bert.") + ".weight" for n in layer_linears(load_model(folder))}
    assert changed == {n for n in adapted if not (Freeze(layers=1) in others and "layer.0." in n)}

@pytest.mark.parametrize("other, why", [(TrainOnly("head"), "every adapter is frozen"), (TrainOnly("norms"), "every adapter is frozen"), (Freeze(layers=2), "every adapter is frozen"),
                                        (Mixout(0.3), "has mixout"), (ReinitLayers(1), r"say adapters\(full_layers=1\)")], ids=lambda v: getattr(v, "key", ""))
@pytest.mark.filterwarnings("ignore")
def test_refused(other, why, folder):
    with pytest.raises(ValueError, match=why): fine_tune(TABLE, recipe=base(folder) + Adapters() + other)

@KINDS
def test_fresh_layers_train_in_full(kind, folder):
    fitted = fine_tune(TABLE, recipe=base(folder) + Adapters(kind, full_layers=1) + ReinitLayers(1))
    drawn = load_model(folder).state_dict(); now = fitted.model.state_dict()
    assert all(not torch.equal(now[n], drawn[n]) for n in now if "layer.1." in n)
    assert all(torch.equal(now[n], drawn[n]) for n in now if "layer.0." in n and ("LayerNorm" in n or "bias" in n))

def test_mixout_by_hand():
    with pytest.raises(ValueError, match="has mixout"): add_adapters(apply_mixout(tiny_model("bert")))

def test_without_a_recipe():
    MergeAdapters().on_resume(model=add_adapters(tiny_model("bert")), trainer=SimpleNamespace(recipe=None))

# trainers

ROWS = [dict(input_ids=i, attention_mask=m, labels=y) for i, m, y in zip(*tiny_tokenizer()(["We learn.", "They work."] * 8).values(), [0.0, 1.0] * 8)]

def trainer(cls, model, folder, *callbacks, optimizers=(None, None), **more):
    settings = more.pop("settings", {})
    args = transformers.TrainingArguments(str(folder), max_steps=6, save_steps=2, learning_rate=1e-3, per_device_train_batch_size=8, report_to="none", use_cpu=True, disable_tqdm=True, log_level="error", **settings)
    made = cls(model, args, train_dataset=ROWS, eval_dataset=ROWS, data_collator=transformers.DataCollatorWithPadding(tiny_tokenizer()), callbacks=list(callbacks), optimizers=optimizers, **more)
    made.remove_callback(transformers.PrinterCallback)
    return made

class Killed(Exception): pass

class Kill(transformers.TrainerCallback):
    def on_save(self, args, state, *event, **kwargs):
        if state.global_step == 4: raise Killed

class Steps(transformers.TrainerCallback):
    def __init__(self): self.weights = []
    def on_step_end(self, *event, model=None, **kwargs): self.weights.append({n: p.detach().clone() for n, p in model.named_parameters()})

@KINDS
@pytest.mark.parametrize("others", [[LayerDecay(0.8), EvaluateEvery(1), LookaheadSteps(3), PriorDecay(1.0)], [SWA(0.5)]], ids=["many", "swa"])
def test_resume(kind, others, tmp_path):
    recipe = sum(others, Recipe(learning_rate=1e-2, batch_size=8) + Adapters(kind, 4))
    def start(seed, folder, *callbacks):
        torch.manual_seed(seed)
        return trainer(AdvTrainer, tiny_model("bert"), tmp_path/folder, *callbacks, recipe=recipe)
    (whole := start(0, "a")).train()
    with pytest.raises(Killed): start(0, "b", Kill()).train()
    (resumed := start(99, "b")).train(resume_from_checkpoint=True)
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))

def test_average_is_of_the_factors(tmp_path):
    torch.manual_seed(0)
    model, watch = tiny_model("bert"), Steps()
    made = trainer(AdvTrainer, model, tmp_path, watch, recipe=Recipe(learning_rate=1e-2, batch_size=8) + Adapters() + SWA(0.5)); plain = copy.deepcopy(made.model)
    made.train()
    with torch.no_grad():
        for n, p in plain.named_parameters(): p.copy_(torch.stack([w[n] for w in watch.weights[3:]]).double().mean(0))
    for p, q in zip(merge_adapters(plain).parameters(), made.model.parameters(), strict=True): torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    assert "bert.encoder.layer.0.attention.self.query.base_layer.weight" in watch.weights[0] # averages hold the frozen weights, too

def test_prior_decay_pulls_to_the_pretrained_model(tmp_path):
    def distance(*techniques):
        torch.manual_seed(0)
        model = tiny_model("bert"); start = copy.deepcopy(model.state_dict())
        trainer(AdvTrainer, model, tmp_path, recipe=sum(techniques, Recipe(learning_rate=1e-2, batch_size=8) + Adapters())).train()
        return sum((p - start[n]).square().sum().item() for n, p in model.state_dict().items() if "layer" in n)
    assert distance(PriorDecay(60.0)) < 0.5 * distance()

@KINDS
def test_best_checkpoint_of_a_stock_trainer(kind, tmp_path):
    torch.manual_seed(0)
    made = trainer(transformers.Trainer, add_adapters(tiny_model("bert"), kind), tmp_path, MergeAdapters(), settings=dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=2))
    made.train()
    assert not adapter_layers(made.model)
    losses = {log["step"]: log["eval_loss"] for log in made.state.log_history if "eval_loss" in log}
    assert made.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), abs=1e-6)

def test_late_adapters_in_a_stock_trainer(tmp_path):
    model = tiny_model("bert"); optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="make it anew"):
        trainer(transformers.Trainer, add_adapters(model), tmp_path, MergeAdapters(), optimizers=(optimizer, None)).train()

def test_second_training(tmp_path):
    made = trainer(transformers.Trainer, add_adapters(tiny_model("bert")), tmp_path, MergeAdapters()); made.train()
    with pytest.raises(ValueError, match="has no adapters"): made.train()
