"""Every pooling head on the same folds: 210 passages, three of 5 folds, plain fine-tuning otherwise.

Writes nbs/results/passages_heads.json; interrupted, it goes on. About 25 CPU minutes.
python benchmarks/passages_heads.py
"""
import json
from pathlib import Path

from advft.ladder import MeanRung, every_head, passages_preset, published_ladder, run_ladder

if __name__ == "__main__":
    preset = passages_preset()
    heads = every_head(published_ladder(**preset.pop("settings"))["control"])
    found = run_ladder(**preset | dict(rungs=dict(no_text=MeanRung()) | heads, folds=5, only=range(3), out="runs/passages-heads"))
    print(found.show())
    note = "The embedded passages of 42 topics; folds keep a topic together. 'own head' is BERT's pooler and a linear layer."
    path = Path(__file__).parents[1]/"nbs/results/passages_heads.json"
    path.write_text(json.dumps(found.result("python benchmarks/passages_heads.py", note), indent=1) + "\n")
