"Tables that are not fit, files that are not tables, splits that must never leak, and a download that may fail."
import os
from decimal import Decimal
from pathlib import Path

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from sklearn import metrics as skm

from advft import data
from advft.data import (METRICS, clear_corpus, flesch_kincaid, infer_task, leveled_passages, metric_for, read_table,
                        sample_groups, sample_rows, score, split_folds, task_hint, text_columns)

HEADER = "text,target\n"
ROWS = "".join(f"text {i},{i}\n" for i in range(6))
PASSAGES = leveled_passages()
CLEAR = next((p for p in (os.environ.get("ADVFT_CLEAR"),
                          Path(__file__).parents[2]/"shared"/"data"/"CLEAR_corpus_final.xlsx") if p and Path(p).is_file()), None)

def said(f, *args, **kwargs):
    "The one line that a call complains with."
    with pytest.raises((ValueError, TypeError, OSError)) as e: f(*args, **kwargs)
    message = str(e.value)
    assert message and "\n" not in message and len(message) < 400
    return message


# --- bad files

BAD_FILES = {
    "empty.csv":      ("", "the file is empty"),
    "blank.csv":      ("\n\n \n", "the file is empty"),
    "bom.csv":        (b"\xef\xbb\xbf", "No columns"),
    "header.csv":     (HEADER, "a header but no rows"),
    "header.tsv":     ("text\ttarget\n", "a header but no rows"),
    "nothing.json":   ("[]", "the table is empty"),
    "image.csv":      (b"\x89PNG\r\n\x1a\n\x00\x00", "it is binary or UTF-16"),
    "utf16.csv":      ((HEADER + ROWS).encode("utf-16"), "it is binary or UTF-16"),
    "gzip.csv":       (b"\x1f\x8b\x08\x08abc", "line 1 is not UTF-8"),
    "latin.csv":      ((HEADER + "a,1\ncaf\xe9,2\n").encode("latin-1"), "line 3 is not UTF-8 (byte 0xe9); save the file as UTF-8"),
    "latin.jsonl":    ('{"text": "caf\xe9", "target": 1}'.encode("latin-1"), "line 1 is not UTF-8"),
    "table.docx":     (HEADER + ROWS, "must end in one of .csv, .tsv, .jsonl"),
    "table":          (HEADER + ROWS, "got 'no ending'"),
    "table.csv.gz":   (HEADER + ROWS, "got '.gz'"),
    "twice.csv":      ("text,text,target\na,b,1\n", "text occurs more than once"),
    "unnamed.csv":    (",,text,score\n1,2,a,3\n", "no column `target` for the target; it has Unnamed: 0, Unnamed: 1, text, score"),
    "wrong.csv":      ("Texts,target\na,1\nb,2\n", "no column `text` for the text; it has Texts, target; did you mean `Texts`?"),
    "semicolon.csv":  ("text;target\na;1\nb;2\n", "separated by semicolons"),
    "tabs.csv":       ("text\ttarget\na\t1\nb\t2\n", "separated by tabs"),
    "commas.csv":     (HEADER + "a,1\nwell, yes,2\n", "more fields than the header; put double quotes around texts"),
    "allcommas.csv":  (HEADER + "oh, no,1\nwell, yes,2\n", "more fields than the header"),
    "quote.csv":      (HEADER + '"a,1\nb,2\n', "EOF inside string"),
    "gap.csv":        (HEADER + "a,1\nb,\nc,3\n", "`target` must have no gaps; 1 of 3 rows break this (first: row 2"),
    "short.csv":      (HEADER + "a,1\nb\nc,3\n", "`target` must have no gaps"),
    "notext.csv":     (HEADER + "a,1\n,2\nc,3\n", "`text` must not be missing; 1 of 3 rows break this (first: row 2"),
    "blanktext.csv":  (HEADER + 'a,1\n"  ",2\n', "`text` must not be blank"),
    "numbers.csv":    (HEADER + "1,1\n2,2\n", "`text` must hold text; 2 of 2 rows break this (first: row 1, 1)"),
    "infinite.csv":   (HEADER + "a,1\nb,inf\n", "`target` must be finite and at most 1e+30 in size; 1 of 2 rows break this (first: row 2"),
    "overflow.csv":   (HEADER + "a,1e999\nb,2\n", "must be finite"),
    "huge.csv":       (HEADER + f"a,{10**40}\nb,2\n", "at most 1e+30 in size"),
    "stray.csv":      (HEADER + "a,1.5\nb,NA\nc,3.5\n", "must hold numbers for regression; 1 of 3 rows break this (first: row 2, 'NA')"),
    "nan.csv":        (HEADER + "a,1.5\nb,nan\nc,3.5\n", "1 of 3 rows break this (first: row 2, 'nan')"),
    "same.csv":       (HEADER + "a,1\nb,1\n", "two different values or more, but all 2 rows hold 1"),
    "samelabel.csv":  (HEADER + "a,x\nb,x\n", "two different values or more, but all 2 rows hold 'x'"),
    "once.csv":       (HEADER + "a,x\nb,y\nc,x\n", "each label in two rows or more; 1 of 2 labels have one row ('y')"),
    "comma.csv":      (HEADER + 'a,"1,5"\nb,"2,5"\n', "write them as plain numbers if that is what they are"),
    "line.jsonl":     ('{"text": "a", "target": 1}\n{"text": \n', "line 2 is not JSON"),
    "values.jsonl":   ("1\n2\n", "row 1 is not an object"),
    "list.json":      ("[1]", "row 1 is not an object"),
    "open.json":      ('[{"text": "a"}', "cannot read"),
    "keys.jsonl":     ('{"text": "a", "target": 1}\n{"text": "b"}\n', "`target` must have no gaps"),
    "null.jsonl":     ('{"text": null, "target": 1}\n{"text": "b", "target": 2}\n', "`text` must not be missing"),
    "nested.jsonl":   ('{"text": ["a"], "target": 1}\n{"text": "b", "target": 2}\n', "`text` must hold text"),
    "lists.jsonl":    ('{"text": "a", "target": [1]}\n{"text": "b", "target": [2]}\n', "`target` must hold labels"),
    "infinity.jsonl": ('{"text": "a", "target": Infinity}\n{"text": "b", "target": 2}\n', "must be finite"),
    "half.jsonl":     ('{"text": "cut \\ud83d", "target": 1}\n{"text": "b", "target": 2}\n', "surrogates"),
    "bad.parquet":    (b"PAR1 no", "cannot read"),
    "text.parquet":   (HEADER + ROWS, "cannot read"),
    "text.xlsx":      (HEADER + ROWS, "cannot read"),
    "zip.xlsx":       (b"PK\x03\x04 no", "cannot read"),
}

@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(name, tmp_path):
    content, message = BAD_FILES[name]
    (tmp_path/name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in said(read_table, tmp_path/name)

def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"): read_table(tmp_path/"nowhere.csv")
    assert "is a folder" in said(read_table, tmp_path)
    assert "is a folder" in said(read_table, "")
    for source in [1, 2], None, {"text": ["a"]}:
        with pytest.raises(TypeError, match="path or a DataFrame"): read_table(source)

def test_bad_spreadsheet(tmp_path):
    path = tmp_path/"t.xlsx"
    pd.DataFrame([["a", "b", 1]], columns=["text", "text", "target"]).to_excel(path, index=False)
    assert "text occurs more than once" in said(read_table, path)
    pd.DataFrame().to_excel(path, index=False)
    assert "the table is empty" in said(read_table, path)
    pd.DataFrame(dict(text=["a", "b"], target=pd.to_datetime(["2020-01-01", "2020-01-02"]))).to_excel(path, index=False)
    assert "`target` must hold labels" in said(read_table, path)
    pd.DataFrame(dict(text=["a", 7], target=[1, 2])).to_excel(path, index=False)
    assert "`text` must hold text; 1 of 2 rows break this (first: row 2, 7)" in said(read_table, path)

def test_columns_and_roles():
    assert "is two of them" in said(read_table, PASSAGES, target="text")
    assert "is two of them" in said(read_table, PASSAGES, group="target")
    assert "no column `author` for the group" in said(read_table, PASSAGES, group="author")
    assert "`topic` must have no gaps" in said(read_table, PASSAGES.assign(topic=None), group="topic")
    assert "names must be plain" in said(read_table, pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])))
    assert "occurs more than once" in said(read_table, pd.DataFrame([["a", "b"]], columns=["text", "text"]))
    assert "the table is empty" in said(read_table, pd.DataFrame())
    assert "must name one column, or two" in said(read_table, PASSAGES, text="text,topic,other")
    wide = pd.DataFrame([range(40)], columns=[f"column_{i}" for i in range(40)])
    assert "column_11, ..." in said(read_table, wide)
    for bad in "a,b,c", "a,a", "a,", "", []: assert "must name one column" in said(text_columns, bad)

def test_bad_values_in_a_frame():
    column = lambda *v: pd.DataFrame(dict(text=[f"t{i}" for i in range(len(v))], target=pd.Series(v, dtype=object)))
    for bad in np.nan, None, pd.NA, pd.NaT: assert "no gaps" in said(read_table, column(1, 2, bad))
    for bad in -np.inf, 10**400, 1e31: assert "be finite" in said(read_table, column(1, 2, bad))
    assert "hold numbers" in said(read_table, column(1, 2, True))
    assert "hold numbers" in said(read_table, column(1, 2, "2"))
    assert "hold numbers" in said(read_table, column("1", "2"), task="regression")
    assert "of one kind" in said(read_table, column("a", "a", "b", "b", 3))
    assert "of one kind" in said(read_table, column(1, 1, "b", "b", "b"), task="classification")
    assert "exactly two labels" in said(read_table, column(1, 1, 2, 2, 3, 3), task="binary")
    assert "three labels or more" in said(read_table, column(1, 1, 2, 2), task="multiclass")
    assert "unknown task 'rank'" in said(read_table, PASSAGES, task="rank")
    assert "hold text" in said(read_table, pd.DataFrame(dict(text=pd.Series(["a", "\ud83d"], dtype=object), target=[1, 2])))


# --- good files

def test_what_is_read(tmp_path):
    def read(content, name="t.csv", **kwargs):
        (tmp_path/name).write_bytes(content.encode())
        return read_table(tmp_path/name, **kwargs)
    assert read("\ufefftext,target\nh\xe9,1\nho,2\n").columns.tolist() == ["text", "target"]
    assert read("\ufeff" + HEADER.replace(",", "\t") + "a\t1\nb\t2\n", "t.TSV").target.tolist() == [1, 2]
    assert read(HEADER + "a,None\nb,NA\nc,None\nd,NA\n").target.tolist() == ["None", "NA", "None", "NA"]
    assert read(HEADER + "null,1\nNA,2\n").text.tolist() == ["null", "NA"]
    assert read(HEADER.replace("\n", "\r\n") + 'a,1\r\n"b, and ""c""",2\r\n').text.tolist() == ["a", 'b, and "c"']
    assert read(HEADER + '"two\nlines",1\nb,2\n').text[0] == "two\nlines"
    assert read(HEADER + "a,True\nb,False\nc,True\nd,False\n").target.dtype == bool
    assert read('{"text": "a", "target": 1}\n\n{"text": "2020", "target": 2}', "t.jsonl").text.tolist() == ["a", "2020"]
    assert read("a,b,target\nx,y,1\nz,w,2\n", text="a,b").shape == (2, 3)
    assert read("text\na\nb\n", target=None).shape == (2, 1)
    assert read(HEADER + f"a,{2**63}\nb,1\n").target.tolist() == [2**63, 1]

def test_a_frame_is_read_by_position_and_not_changed():
    shuffled = PASSAGES.sample(10, random_state=0)
    before = shuffled.copy()
    table = read_table(shuffled)
    assert table.index.tolist() == list(range(10)) and table.text.tolist() == shuffled.text.tolist()
    table["text"] = "x"
    assert shuffled.equals(before)
    objects = pd.DataFrame(dict(text=["a", "b"], target=pd.Series([Decimal("1.5"), 2], dtype=object)))
    assert read_table(objects).target.dtype == float and objects.target.dtype == object
    for dtype in "Int64", "Float32", "int64[pyarrow]":
        table = read_table(pd.DataFrame(dict(text=["a", "b"], target=pd.array([1, 2], dtype=dtype))))
        assert table.target.dtype == np.dtype(float) and table.target.tolist() == [1, 2]
    assert read_table(read_table(PASSAGES)).equals(PASSAGES)


# --- tasks

def test_tasks():
    series = lambda *v, **k: pd.Series(v * 3, **k)
    assert infer_task(series(1, 0)) == "regression" and infer_task(series(1, 0), "binary") == "binary"
    assert infer_task(series(1, 2, 3, dtype="Int64")) == infer_task(series(Decimal("1.5"), 2)) == "regression"
    assert infer_task(series("1", "2")) == infer_task(series("a", "b", dtype="category")) == "binary"
    assert infer_task(series("1", "2", "unknown"), "classification") == infer_task(series(1.5, 2, 3), "multiclass") == "multiclass"
    assert infer_task(series(1, 2, 3, dtype="category")) == "multiclass"
    assert "must hold rows" in said(infer_task, pd.Series([], dtype=float))

def test_hints():
    assert "only 5 different whole numbers" in task_hint(PASSAGES.target)
    for v in [0.5, 1.0] * 9, range(100), ["a", "b"] * 9, [1, np.inf] * 9, [1, 2] * 4, [True, False] * 9: assert task_hint(pd.Series(v)) is None


# --- metrics

def test_metrics_against_scikit_learn():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.integers(0, 5, 50)
    assert score("rmse", y, x) == pytest.approx(skm.root_mean_squared_error(y, x))
    assert score("mae", y, x) == pytest.approx(skm.mean_absolute_error(y, x))
    assert score("pearson", y, x) == pytest.approx(pd.Series(x).corr(pd.Series(y)))
    assert score("spearman", y, x) == pytest.approx(pd.Series(x).corr(pd.Series(y), method="spearman"))
    p = rng.random(50)
    assert score("auc", x > 0, probability=p) == pytest.approx(skm.roc_auc_score(x > 0, p))
    assert score("log_loss", x > 0, probability=p) == pytest.approx(skm.log_loss(x > 0, p))
    assert score("f1", x > 0, p > .5) == pytest.approx(skm.f1_score(x > 0, p > .5, average="macro"))
    assert score("accuracy", pd.Series(["a", "b"]), ["a", "a"]) == 0.5
    three = rng.dirichlet(np.ones(5), 50)
    assert score("auc", y, probability=three) == pytest.approx(skm.roc_auc_score(y, three, multi_class="ovr"))
    assert score("auc", y, probability=three[:, ::-1], labels=[4, 3, 2, 1, 0]) == pytest.approx(score("auc", y, probability=three))
    assert score("kappa", y, y[::-1]) == pytest.approx(skm.cohen_kappa_score(y, y[::-1], weights="quadratic"))

def test_undefined_scores_are_nan():
    assert np.isnan(score("pearson", [1, 2], [3, 3])) and np.isnan(score("spearman", [1, 1], [3, 4]))
    assert np.isnan(score("kappa", [1, 1], [1, 1]))
    assert np.isnan(score("auc", [1, 1], probability=[[.5, .5]] * 2, labels=[0, 1]))

def test_a_sure_mistake_costs_much_but_is_finite():
    assert 30 < score("log_loss", [0, 1], probability=[1., 1.]) / .5 < 40

def test_bad_scores():
    assert "shape (n,) with n > 0" in said(score, "rmse", [], [])
    assert "got ()" in said(score, "rmse", [1, 2], None) and "got ()" in said(score, "accuracy", [1, 2], None)
    assert "`truth` must be finite" in said(score, "mae", [1, np.inf], [1, 1])
    assert "`prediction` must be finite" in said(score, "mae", [1, 1], [1, np.nan])
    assert "(2,), got (2, 1)" in said(score, "rmse", [1, 2], [[1], [2]])
    assert "out of ['a']" in said(score, "accuracy", ["a"], ["b"], labels=["a"])
    assert "of one kind" in said(score, "accuracy", ["a"], [1])
    assert "sum to 1" in said(score, "log_loss", ["a", "b"], probability=[[.5, .6]] * 2)
    assert "(2, 2), got ()" in said(score, "log_loss", ["a", "b"])
    assert "unknown metric 'r2'" in said(score, "r2", [1], [1])
    assert "unknown metric for multiclass 'rmse'" in said(metric_for, "multiclass", "rmse")
    assert all(metric_for(t, m.name) is m for m in METRICS.values() for t in m.tasks)


# --- folds

@st.composite
def tables(draw):
    rows = draw(st.integers(12, 60))
    target = draw(st.lists(st.sampled_from("ab") if draw(st.booleans()) else st.floats(-5, 5), min_size=rows, max_size=rows))
    groups = draw(st.none() | st.lists(st.integers(0, draw(st.integers(1, rows))), min_size=rows, max_size=rows))
    folds = draw(st.integers(2, 6) | st.just("fold"))
    own = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    if groups is not None and draw(st.booleans()): own = [g % 3 for g in groups]
    return pd.DataFrame(dict(text="x", target=target, fold=own)), folds, draw(st.integers(0, 2**32 - 1)), groups

@settings(max_examples=150, deadline=None)
@given(tables())
def test_splits_never_leak(case):
    table, folds, seed, groups = case
    try: result = split_folds(table, folds, seed, groups=groups)
    except ValueError as e:
        assert "\n" not in str(e) and str(e)
        return
    everything = np.arange(len(table))
    assert np.array_equal(np.sort(np.concatenate([test for _, _, test in result])), everything)
    for parts in result:
        assert np.array_equal(np.sort(np.concatenate(parts)), everything)
        for part in parts: assert len(part) >= 2 and np.array_equal(part, np.sort(part)) and part.dtype.kind == "i"
        if groups is not None: assert sum(len(set(np.array(groups)[p])) for p in parts) == len(set(groups))
        if table.target.dtype.kind not in "iuf": assert set(table.target.iloc[parts[0]]) == set(table.target)
    if folds == "fold": assert all(table.fold.iloc[test].nunique() == 1 for _, _, test in result)
    np.random.seed(seed % 1000)
    for a, b in zip(result, split_folds(table, folds, seed, groups=groups)):
        assert all(np.array_equal(x, y) for x, y in zip(a, b))

@pytest.mark.parametrize("groups", [None, "topic"])
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_fifth_is_for_validation(groups, task):
    for train, valid, test in split_folds(PASSAGES, 5, 0, groups=groups, task=task):
        assert abs(len(test) - 60) <= 5 and abs(len(valid) - 48) <= 7 and len(train) + len(valid) + len(test) == 300

def test_validation_has_its_own_seed():
    a, b = (split_folds(PASSAGES.assign(fold=np.arange(300) % 3), "fold", seed) for seed in (0, 1))
    assert all(np.array_equal(x[2], y[2]) and not np.array_equal(x[1], y[1]) for x, y in zip(a, b))
    assert len({tuple(valid - test[0]) for _, valid, test in a}) == 3

def test_splits_ignore_the_index():
    a, b = (split_folds(t, 3, 0, groups="topic") for t in (PASSAGES, PASSAGES.set_axis(range(300, 0, -1))))
    assert all(np.array_equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))

def test_bad_folds():
    split = lambda table=PASSAGES, folds=3, seed=0, **k: said(split_folds, table, folds, seed, **k)
    for folds in 1, 0, -2, 2.5, True, None: assert "`folds` must be a whole number in [2, inf)" in split(folds=folds)
    for seed in -1, 2**32, 0.5, None: assert "`seed` must be a whole number" in split(seed=seed)
    assert "number of rows (4), got 5" in split(PASSAGES.head(4), 5)
    assert "number of groups (2), got 3" in split(PASSAGES.head(10), 3, groups="topic")
    assert "rows of the rarest label, 'b' (2), got 3" in split(pd.DataFrame(dict(target=["a"] * 9 + ["b"] * 2)), 3)
    assert "too few groups" in split(PASSAGES.head(10), 2, groups="topic")
    assert "the test part of fold 0" in split(PASSAGES.head(9), 9)
    assert "the validation part of fold 0 must have two rows or more, got 1" in split(PASSAGES.head(8), 2)
    assert "missing from the training part" in split(PASSAGES.assign(target=PASSAGES.topic), 3, groups="topic")
    assert "no column `target`" in split(PASSAGES[["text"]], task="binary")
    assert "no column `topics` for the groups; it has text, target, topic; did you mean `topic`?" in split(groups="topics")
    assert "no column `fold`" in split(folds="fold")
    assert "`fold` must have no gaps" in split(PASSAGES.assign(fold=[None] + [1, 2, 3] * 99 + [1, 2]), "fold")
    assert "two folds or more" in split(PASSAGES.assign(fold=1), "fold")
    assert "keep each group in one fold" in split(PASSAGES.assign(fold=np.arange(300) % 3), "fold", groups="topic")
    assert "`groups` must have one value for each of 300 rows, got 2" in split(groups=[1, 2])
    assert "`groups` must have no gaps" in split(groups=[None] * 300)
    assert "no gaps" in split(PASSAGES.assign(target=None))

def test_samples():
    sample = sample_rows(PASSAGES, 50, seed=3)
    assert sample.merge(PASSAGES).shape == (50, 3) and sample.topic.is_monotonic_increasing and sample.text.is_unique
    assert not sample.equals(sample_rows(PASSAGES, 50, seed=4)) and sample_rows(PASSAGES, 300).equals(PASSAGES)
    assert (sample_groups(PASSAGES, "topic", 7).groupby("topic").size() == 5).all()
    for rows in 0, 301, 1.5: assert "`rows` must be a whole number in [1, 300]" in said(sample_rows, PASSAGES, rows)
    assert "`n` must be a whole number in [1, 60]" in said(sample_groups, PASSAGES, "topic", 61)
    assert "no column `author`" in said(sample_groups, PASSAGES, "author", 2)

def test_flesch_kincaid():
    assert flesch_kincaid("Go.") == pytest.approx(.39 + 11.8 - 15.59)
    assert flesch_kincaid("'Go!' he said. It's on.") == pytest.approx(.39 * 5 / 3 + 11.8 - 15.59)
    assert flesch_kincaid("no full stop") == pytest.approx(.39 * 3 + 11.8 - 15.59)
    assert "must hold a word" in said(flesch_kincaid, "...")


# --- CLEAR

@pytest.fixture
def cache(monkeypatch, tmp_path):
    "An empty cache, and no ADVFT_CLEAR."
    monkeypatch.delenv("ADVFT_CLEAR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path/"advft"

def test_no_network(cache, monkeypatch):
    monkeypatch.setattr(data, "CLEAR_URL", "http://127.0.0.1:1/CLEAR_corpus_final.xlsx")
    with pytest.raises(ConnectionError, match="cannot download .* pass `path` or set ADVFT_CLEAR"): clear_corpus()
    assert not cache.exists()

def test_another_file(cache, monkeypatch, tmp_path):
    (tmp_path/"other.xlsx").write_bytes(b"other")
    monkeypatch.setattr(data, "CLEAR_URL", (tmp_path/"other.xlsx").as_uri())
    assert "is not the published file" in said(clear_corpus)
    assert not cache.exists()
    assert "is not the published file" in said(clear_corpus, tmp_path/"other.xlsx")
    monkeypatch.setenv("ADVFT_CLEAR", str(tmp_path/"nowhere.xlsx"))
    with pytest.raises(FileNotFoundError, match="does not exist; mend `path`"): clear_corpus()

def test_a_csv_of_ones_own(cache, tmp_path):
    own = pd.DataFrame(dict(id=[1, 2], text=["a", "b"], target=[.1, .2], standard_error=[.5, .5], category=["Lit", "Info"]))
    own.to_csv(tmp_path/"own.csv", index=False)
    assert clear_corpus(tmp_path/"own.csv").equals(own)
    own.drop(columns="category").to_csv(tmp_path/"less.csv", index=False)
    assert "no column `category` for the CLEAR corpus" in said(clear_corpus, tmp_path/"less.csv")

@pytest.mark.skipif(CLEAR is None, reason="no CLEAR corpus here: set ADVFT_CLEAR to its xlsx file")
def test_download_once(cache, monkeypatch, capsys):
    monkeypatch.setattr(data, "CLEAR_URL", Path(CLEAR).resolve().as_uri())
    corpus = clear_corpus()
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("downloading ")
    assert [p.name for p in cache.iterdir()] == ["CLEAR_corpus_final.xlsx"]
    assert corpus.shape == (4724, 5) and corpus.id.is_unique and set(corpus.category) == {"Lit", "Info"}
    assert list(corpus.columns) == ["id", "text", "target", "standard_error", "category"]
    monkeypatch.setattr(data, "CLEAR_URL", "http://127.0.0.1:1/gone.xlsx")
    assert clear_corpus().equals(corpus) and capsys.readouterr().err == ""
