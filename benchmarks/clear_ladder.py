"""The published ladder on CLEAR: 600 excerpts, 3 folds, 128 tokens, with the posts' own score beside the honest one.

Writes nbs/results/clear_600.json; interrupted, it goes on. About 90 CPU minutes.
python benchmarks/clear_ladder.py [CLEAR_corpus_final.xlsx]      (without a file: $ADVFT_CLEAR, the cache, or a download)
"""
import json, sys
from pathlib import Path

from advft.core import find_model
from advft.data import clear_corpus, sample_rows
from advft.evaluation import EvaluateEvery
from advft.ladder import default_rungs, run_ladder


def looks(rung, share):
    "The rung with fewer evaluations, which cost more here than the training: every look predicts validation and test part."
    seldom = any(t.key == "evaluate_every" for t in getattr(rung, "techniques", ()))
    return rung.without("evaluate_every") + EvaluateEvery(share) if seldom else rung


if __name__ == "__main__":
    table = sample_rows(clear_corpus(*sys.argv[1:]), 600)
    rungs = {n: looks(r, 0.2) for n, r in default_rungs(find_model(), max_length=128, epochs=3, batch_size=8).items()}
    ladder = run_ladder(table, rungs, folds=3, out="runs/clear-600", posts=True)
    print(ladder.show())
    note = "CLEAR (c) its authors, CC BY-NC-SA 4.0; a sample of 600 of 4,724 excerpts with seed 0; scores only."
    path = Path(__file__).parents[1]/"nbs/results/clear_600.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ladder.result("python benchmarks/clear_ladder.py", note), indent=1) + "\n")
