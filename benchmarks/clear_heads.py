"""Four heads fine-tuned on CLEAR, and the probe of the same table and folds: 1,000 excerpts, 5 folds, 96 tokens, 2 epochs.

Writes nbs/results/clear_heads.json; interrupted, it goes on. About 50 CPU minutes, of which the probe takes one.
python benchmarks/clear_heads.py [CLEAR_corpus_final.xlsx]      (without a file: $ADVFT_CLEAR, the cache, or a download)
"""
import json, sys
from pathlib import Path

from advft.core import Recipe
from advft.data import clear_corpus, sample_rows
from advft.ladder import MeanRung, run_ladder
from advft.pooling import Pooling
from advft.probe import probe_layers
from advft.schedules import Warmup

HEADS = dict(cls=Pooling("cls"), mean=Pooling("mean"), max=Pooling("max"), layer_cls=Pooling("layer_cls", k=2))

if __name__ == "__main__":
    table = sample_rows(clear_corpus(*sys.argv[1:]), 1000)
    base = Recipe(learning_rate=2e-4, epochs=2, batch_size=16, max_length=96) + Warmup(0.1)
    found = run_ladder(table, dict(no_text=MeanRung()) | {n: base + head for n, head in HEADS.items()}, folds=5, out="runs/clear-heads")
    probe = probe_layers(table, max_length=96, out="runs/clear-probe")
    print(found.show(), probe.show(), sep="\n\n")
    note = "CLEAR (c) its authors, CC BY-NC-SA 4.0; a sample of 1,000 of 4,724 excerpts with seed 0; scores only."
    path = Path(__file__).parents[1]/"nbs/results/clear_heads.json"
    result = found.result("python benchmarks/clear_heads.py", note) | dict(probe=probe.scores.to_dict("records"))
    path.write_text(json.dumps(result, indent=1) + "\n")
