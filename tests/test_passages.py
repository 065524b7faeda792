"The embedded passages are what 01_data says they are."
import re

import numpy as np, pytest

from advft.data import flesch_kincaid, leveled_passages


@pytest.fixture(scope="module")
def passages(): return leveled_passages()

def words(passages): return passages.text.str.split().str.len()

def test_sixty_topics_at_five_levels(passages):
    assert list(passages.columns) == ["text", "target", "topic"] and len(passages) == 300
    assert passages.target.tolist() == [1, 2, 3, 4, 5] * 60
    assert passages.topic.nunique() == 60 and passages.topic.is_monotonic_increasing
    assert passages.target.dtype == "int64" and list(passages.index) == list(range(300))

def test_plain_text_on_one_line(passages):
    for text in passages.text:
        assert text.isascii() and text == " ".join(text.split()) and '"' not in text

def test_length_gives_nothing_away(passages):
    length = words(passages)
    assert length.between(55, 75).all()
    assert abs(np.corrcoef(length, passages.target)[0, 1]) < 0.15

def test_no_sentence_twice(passages):
    sentences = [re.sub(r"\W+", " ", s).strip().lower() for t in passages.text for s in re.split(r"(?<=[.!?])\s+", t)]
    assert not [s for s, n in zip(*np.unique(sentences, return_counts=True)) if n > 1]

def test_difficulty_rises(passages):
    grade = passages.text.map(flesch_kincaid).groupby(passages.target).mean()
    assert grade.is_monotonic_increasing and grade.is_unique
