"""What the cures for unstable fine-tuning do to mean and spread: MiniLM, one split of 210 passages, six seeds.

Writes nbs/results/stability.json; interrupted, it goes on. About 35 CPU minutes.
python benchmarks/stability.py
"""
import json
from dataclasses import replace
from pathlib import Path

from advft.core import Recipe
from advft.ladder import MeanRung, passages_preset, published_ladder, run_ladder
from advft.seeds import seed_table, seeds_of, SOURCES

RUNGS = ["optimizer('bert_adam')", "mixout(0.1)", "mixout(0.5)", "prior_decay(0.01)", "prior_decay(10.0)", "prior_decay(100.0)",
         "recipe(learning_rate=2e-3, weight_decay=0) + optimizer('madgrad')", "lookahead_steps(5)", "recipe(learning_rate=1e-4)", "optimizer('radam')", "optimizer('radam') + lookahead_steps(5)",
         "pooling('layer', k=3)", "pooling('concat', base='mean')", "evaluate_every(2)"]


def rung(text, plain):
    "The recipe of a text; what it does not say is as in the plain one."
    found = Recipe.parse(text, plain)
    said = {k: getattr(found, k) for k in ("learning_rate", "weight_decay") if getattr(found, k) != getattr(Recipe(), k)}
    return replace(plain, techniques=found.techniques, **said)


if __name__ == "__main__":
    preset = passages_preset()
    plain = published_ladder(**preset.pop("settings"))["control"]
    rungs = dict(mean=MeanRung(), plain=plain) | {t: rung(t, plain) for t in RUNGS}
    shared = preset | dict(folds=2, only=[0], out="runs/stability")
    found = run_ladder(**shared | dict(rungs=rungs, seeds=range(6)))
    print(seed_table(found).round(3).to_string())
    note = "The embedded passages of 42 topics in two folds by topic, of which the first is the test part; 'plain' is the ladder's control."
    result = found.result("python benchmarks/stability.py", note)
    sources = dict.fromkeys(s for source in SOURCES for s in seeds_of(source, 5)) # (0, 0, 0) is in all three
    alone = run_ladder(**shared | dict(rungs=dict(mean=rungs["mean"], plain=plain), seeds=sources, out="runs/stability-sources"))
    result["sources"] = alone.result("", "")["trials"]
    path = Path(__file__).parents[1]/"nbs/results/stability.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
