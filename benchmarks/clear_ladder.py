"""The ladder on CLEAR: 600 excerpts, 3 folds, 128 tokens. Writes nbs/results/clear_600.json; interrupted, it goes on.

python benchmarks/clear_ladder.py [CLEAR_corpus_final.xlsx]      (without a file: $ADVFT_CLEAR, the cache, or a download)
"""
import json, sys
from pathlib import Path

from advft.core import find_model
from advft.data import clear_corpus, sample_rows
from advft.ladder import default_rungs, run_ladder

if __name__ == "__main__":
    table = sample_rows(clear_corpus(*sys.argv[1:]), 600)
    rungs = default_rungs(find_model(), max_length=128, epochs=3, batch_size=8)
    ladder = run_ladder(table, rungs, folds=3, out="runs/clear-600")
    print(ladder.show())
    note = "CLEAR (c) its authors, CC BY-NC-SA 4.0; a sample of 600 of 4,724 excerpts with seed 0; scores only."
    path = Path(__file__).parents[1]/"nbs/results/clear_600.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ladder.result("python benchmarks/clear_ladder.py", note), indent=1) + "\n")
