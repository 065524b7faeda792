"""Re-initialisation of 0 to 6 layers of MiniLM on 24 topics of the passages: 2 folds x 5 seeds.

Writes nbs/results/reinit_sweep.json; interrupted, it goes on. About 15 CPU minutes.
python benchmarks/reinit_sweep.py
"""
import json
from pathlib import Path

from advft.data import leveled_passages, sample_groups
from advft.ladder import passages_preset, published_ladder, run_ladder
from advft.reinit import ReinitLayers

if __name__ == "__main__":
    control = published_ladder(**passages_preset()["settings"])["control"]
    rungs = {f"n = {n}": control + ReinitLayers(n) for n in range(7)}
    table = sample_groups(leveled_passages(), "topic", 24)
    ladder = run_ladder(table, rungs, folds=2, seeds=range(5), group="topic", out="runs/reinit-sweep")
    print(ladder.show())
    note = "MiniLM has six layers. n = 0 is plain fine-tuning; the pooler is drawn anew only with a layer, and the head uses it."
    path = Path(__file__).parents[1]/"nbs/results/reinit_sweep.json"
    path.write_text(json.dumps(ladder.result("python benchmarks/reinit_sweep.py", note), indent=1) + "\n")
