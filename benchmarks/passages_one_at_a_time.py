"""Each technique alone against plain fine-tuning: 210 passages, 5 folds, 3 seeds.

Writes nbs/results/passages_one_at_a_time.json; interrupted, it goes on. About 70 CPU minutes.
python benchmarks/passages_one_at_a_time.py
"""
import json
from pathlib import Path

from advft.core import find_model
from advft.ema import EMA
from advft.ladder import MeanRung, one_at_a_time, passages_preset, published_ladder, run_ladder

if __name__ == "__main__":
    preset = passages_preset()
    ladder = published_ladder(**preset.pop("settings"))
    rungs = dict(mean=MeanRung()) | one_at_a_time(ladder["+ frequent eval."], ladder["grouped LLRD"], ladder["control"] + EMA(0.9))
    found = run_ladder(**preset | dict(rungs=rungs, folds=5, seeds=range(3), out="runs/passages-one-at-a-time"))
    print(found.show())
    note = "The embedded passages of 42 topics; folds keep a topic together. 'plain' is the ladder's control."
    path = Path(__file__).parents[1]/"nbs/results/passages_one_at_a_time.json"
    path.write_text(json.dumps(found.result("python benchmarks/passages_one_at_a_time.py", note), indent=1) + "\n")
