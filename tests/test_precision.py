"Mixed precision and activation checkpointing through whole trainings; the cost table, whose settings run in processes of their own."
import json, subprocess, sys, warnings

import numpy as np, pytest, torch
from transformers import DataCollatorWithPadding, PrinterCallback, TrainingArguments

from advft.accumulation import Accumulate
from advft.checkpointing import Checkpointing, cost_table
from advft.core import Recipe, Technique, tiny_model, tiny_tokenizer
from advft.ema import EMA
from advft.evaluation import EvaluateEvery
from advft.freezing import Freeze
from advft.layer_decay import LayerDecay
from advft.pooling import Pooling
from advft.precision import Precision, PrecisionEnds, predict_in
from advft.train import AdvTrainer, FineTuned, fine_tune, load_model, load_tokenizer
from conftest import save_tiny

BASE = Recipe(learning_rate=1e-3, epochs=2, batch_size=8, max_length=32)
FRESH = "import sys, json; from advft.train import FineTuned; print(json.dumps([FineTuned.load(f).predict(json.loads(sys.argv[1])).tolist() for f in sys.argv[2:]]))"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def weights(recipe, architecture="bert", use_cpu=True, steps=4, **settings):
    "The weights after a few steps of a tiny model of four layers, and its trainer."
    torch.manual_seed(0)
    rows = [dict(input_ids=i, attention_mask=m, labels=float(y)) for y, (i, m) in enumerate(zip(*tiny_tokenizer()(["We learn.", "They work.", "How?"] * 8).values()))]
    args = TrainingArguments(max_steps=steps, save_strategy="no", report_to="none", use_cpu=use_cpu, disable_tqdm=True, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore") # frozen layers that were never trained
        trainer = AdvTrainer(tiny_model(architecture, 4), args, recipe=recipe, train_dataset=rows, data_collator=DataCollatorWithPadding(tiny_tokenizer()))
    trainer.remove_callback(PrinterCallback); trainer.train()
    return torch.cat([p.detach().flatten().cpu() for p in trainer.model.parameters()]), trainer


@pytest.mark.parametrize("more", [[], [Pooling("mean")], [Accumulate(2)], [Freeze(layers=2)], [EMA()], [Precision("bf16"), Freeze()]], ids=lambda m: "+".join(t.key for t in m) or "alone")
@pytest.mark.parametrize("every", [1, 3])
def test_checkpointing_changes_no_bit(tmp_path, monkeypatch, more, every):
    monkeypatch.chdir(tmp_path)
    plain = sum(more, BASE)
    assert torch.equal(weights(plain + Checkpointing(every))[0], weights(plain)[0])


@pytest.mark.parametrize("more", [[Pooling("attention")], [Accumulate(4)], [Freeze(layers=1)], [EMA()], [Checkpointing()]], ids=lambda m: m[0].key)
def test_fp32_changes_no_bit_and_bf16_little(tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    plain = sum(more, BASE)
    right = weights(plain)[0]
    assert torch.equal(weights(plain + Precision("fp32"))[0], right)
    low = weights(plain + Precision("bf16"))[0]
    assert 0 < (low - right).abs().max() < 0.01 # four steps at 1e-3


def test_saved_in_float32_and_the_same_in_a_fresh_process(tmp_path, tiny_bert, passages):
    table, fitted = passages.assign(grade=np.where(passages.target < 3, "easy", "hard")), {}
    for target in "target", "grade":
        fitted[target] = fine_tune(table[:16], table[16:], BASE + Precision("bf16") + Checkpointing() + EvaluateEvery(2), str(tiny_bert), target=target)
        fitted[target].save(tmp_path/target)
        assert {p.dtype for p in fitted[target].model.parameters()} == {torch.float32}
    done = subprocess.run([sys.executable, "-c", FRESH, json.dumps(table.text[:6].tolist()), *[str(tmp_path/t) for t in fitted]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    values, classes = json.loads(done.stdout)
    assert values == pytest.approx(fitted["target"].predict(table[:6]).tolist(), abs=1e-6) and classes == fitted["grade"].predict(table[:6]).tolist()


def test_predicting_in_16_bits_leaves_a_fitted_model_alone(tiny_bert, passages):
    fitted = fine_tune(passages[:16], None, BASE, str(tiny_bert))
    exact = fitted.raw(passages)
    for number_format in "bf16", "fp16":
        for weights in True, False:
            with predict_in(fitted, number_format, weights): low = fitted.raw(passages)
            assert 0 < np.abs(low - exact).max() < 0.1 and np.array_equal(fitted.raw(passages), exact)


@pytest.mark.parametrize("architecture, pooling", [("bert", None), ("gpt2", None), ("bart", None), ("modernbert", "mean"), ("roberta", "asymmetric")])
def test_predicting_in_16_bits_keeps_a_target_far_from_0(tmp_path, passages, architecture, pooling):
    model, years = str(save_tiny(tmp_path/architecture, architecture)), passages[:16].assign(target=lambda d: 1e5 + 5 * d.target)
    fitted = fine_tune(years, None, Recipe(epochs=1, batch_size=8, max_length=16) + (Pooling(pooling) if pooling else LayerDecay()), model)
    exact = fitted.predict(passages)
    for number_format in "bf16", "fp16":
        for converted in True, False:
            with predict_in(fitted, number_format, converted): assert np.abs(fitted.predict(passages) - exact).max() < 0.1
            assert np.array_equal(fitted.predict(passages), exact) and not any("forward" in vars(m) for m in fitted.model.modules())


class Recast(torch.nn.Module):
    "Its forward pass replaces one buffer, as CTRL's does, and makes another."
    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(2, 2)
        self.register_buffer("places", torch.tensor([1 / 3, 2 / 3]))
    def forward(self):
        self.places = self.places.to(self.dense.weight.dtype)
        self.register_buffer("seen", self.places)
        return self.dense(self.places)


def test_predicting_in_16_bits_leaves_the_buffers_alone():
    model, places = Recast(), torch.tensor([1 / 3, 2 / 3])
    with predict_in(model, "bf16", weights=True): assert model().dtype == model.places.dtype == torch.bfloat16
    assert torch.equal(model.places, places) and list(dict(model.named_buffers())) == ["places"] and model().dtype == torch.float32


@pytest.mark.parametrize("number_format, chosen, during", [("tf32", "highest", "high"), ("tf32", "high", "high"), ("bf16", "highest", "highest"),
                                                           ("bf16", "high", "high"), ("fp32", "high", "highest"), ("fp32", "highest", "highest")])
@pytest.mark.parametrize("end", ["on_train_end", "on_train_broken"])
def test_the_precision_of_matrix_products_is_as_it_was_before(number_format, chosen, during, end):
    before, ends = torch.get_float32_matmul_precision(), PrecisionEnds(number_format)
    try:
        torch.set_float32_matmul_precision(chosen) # somebody's own choice
        ends.on_train_begin(None, None, None)
        assert torch.get_float32_matmul_precision() == during
        getattr(ends, end)(None, None, None, model=tiny_model("bert"))
        assert torch.get_float32_matmul_precision() == chosen
    finally: torch.set_float32_matmul_precision(before)


def test_cost_table_measures_what_runs_and_names_what_does_not(tmp_path, passages):
    (tmp_path/"ends_its_process.py").write_text("import os\nfrom dataclasses import dataclass\nfrom advft.core import Technique\n\n"
        "@dataclass(frozen=True)\nclass EndsItsProcess(Technique):\n    def model(self, model): os._exit(9)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        from ends_its_process import EndsItsProcess
        model = str(save_tiny(tmp_path/"tiny", layers=8, hidden_size=64, intermediate_size=256))
        settings = {"plain": "", "checkpointing": "checkpointing()", "ends": BASE + EndsItsProcess(), "fp16": "precision('fp16')", "unknown": "no_such_thing(1)"}
        found = cost_table(model, passages, settings, Recipe(batch_size=8, max_length=256), steps=2, progress=False)
    finally: sys.path.remove(str(tmp_path)); Technique.registry.pop("ends_its_process", None)
    assert list(found.index) == list(settings) and list(found) == ["seconds", "seconds_ratio", "memory_mb", "memory_ratio", "error"]
    assert (found.seconds[:2] > 0).all() and found.seconds[2:].isna().all()
    assert found.error.tolist()[:2] == ["", ""]
    assert found.error["ends"].startswith("the process ended with code 9")
    assert found.error["fp16"].startswith("ValueError: `number_format` must not be 'fp16' on a CPU") or torch.cuda.is_available()
    assert found.error["unknown"].startswith("ValueError: unknown technique 'no_such_thing'")
    if sys.platform == "linux" and not torch.cuda.is_available(): assert found.memory_ratio["checkpointing"] < 0.8


@on_linux
def test_memory_is_that_of_the_steps_alone(tmp_path, passages, tiny_bert, capsys):
    "This process, much larger than the one that measures, does not count; a model that is fitted, and texts without a target, will do."
    ballast = torch.ones(200_000_000 // 4)
    fitted = FineTuned(load_model(tiny_bert), load_tokenizer(tiny_bert), "regression")
    found = cost_table(fitted, passages.text.tolist(), dict(plain=""), Recipe(batch_size=2, max_length=16), steps=1)
    assert found.error["plain"] == "" and 0 <= found.memory_mb["plain"] < 150 and ballast.nbytes == 200_000_000
    printed = capsys.readouterr()
    assert printed.out == "" and "1/1 plain" in printed.err


@on_gpu
@pytest.mark.parametrize("number_format", ["bf16", "fp16", "tf32"])
def test_on_a_gpu(tmp_path, monkeypatch, number_format):
    monkeypatch.chdir(tmp_path)
    right, low = weights(BASE, use_cpu=False, steps=8)[0], weights(BASE + Precision(number_format), use_cpu=False, steps=8)
    assert torch.isfinite(low[0]).all() and (low[0] - right).abs().max() < 0.05
    assert (low[1].accelerator.scaler is not None) == (number_format == "fp16")
    assert torch.get_float32_matmul_precision() == "highest"


@on_gpu
def test_cost_table_on_a_gpu(tmp_path, passages):
    model = str(save_tiny(tmp_path/"tiny", layers=8, hidden_size=64, intermediate_size=256))
    found = cost_table(model, passages, {"plain": "", "fp16": "precision('fp16')", "checkpointing": "checkpointing()"}, Recipe(batch_size=16, max_length=128), steps=2, progress=False)
    assert (found.error == "").all() and (found.memory_mb > 0).all() and found.memory_ratio["checkpointing"] < 0.9
