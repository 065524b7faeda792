"Long texts: truncation and chunks against tokenizers' own, over many tokenizers and random lengths, and in whole trainings."

import numpy as np, pandas as pd, pytest, torch, transformers
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, CanineTokenizer, DataCollatorWithPadding, PreTrainedTokenizerFast

from advft.core import Recipe, tiny_model, tiny_tokenizer
from advft.data import leveled_passages
from advft.long_texts import Chunks, Truncate, chunk_windows, chunks, kept_places, share_room, truncate, truncation_report
from advft.train import FineTuned, average_rows, fine_tune, load_tokenizer, model_outputs, tokenise


def by_letters(post=None, side="right"):
    "A tokenizer with a token for each byte."
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    t = Tokenizer(models.BPE(vocabulary, []))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if post: t.post_processor = post
    return PreTrainedTokenizerFast(tokenizer_object=t, padding_side=side, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=20,
                                   model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def template(single, pair): return processors.TemplateProcessing(single, pair, [("<s>", 1), ("</s>", 2)])


LETTERS = dict(
    roberta=by_letters(template("<s> $A </s>", "<s> $A </s> </s> $B </s>")), roberta_processor=by_letters(processors.RobertaProcessing(("</s>", 2), ("<s>", 1))),
    bert_processor=by_letters(processors.BertProcessing(("</s>", 2), ("<s>", 1))), t5=by_letters(template("$A </s>", "$A </s> $B </s>")),
    xlnet=by_letters(template("$A </s> <s>:2", "$A </s> $B:1 </s>:1 <s>:2"), "left"), gpt2=by_letters(processors.ByteLevel(trim_offsets=False), "left"), bare=by_letters(),
    llama=by_letters(processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<s> $A", "<s> $A <s> $B")])),
    upside_down=by_letters(processors.Sequence([template("<s> $A", "<s> $A <s> $B"), processors.ByteLevel(trim_offsets=False)]))) # its sequence ids are wrong
EVERYONE = LETTERS | dict(tiny=tiny_tokenizer(), left=tiny_tokenizer("left"), minilm=load_tokenizer(), byt5=ByT5Tokenizer(), canine=CanineTokenizer())
SPECIAL = {n: [t.num_special_tokens_to_add(pair) for pair in (False, True)] for n, t in EVERYONE.items()}
KNOWN = dict(roberta=[2, 4], roberta_processor=[2, 4], bert_processor=[2, 3], t5=[1, 2], xlnet=[2, 3], gpt2=[0, 0], bare=[0, 0], llama=[1, 2], upside_down=[1, 2],
             tiny=[2, 3], left=[2, 3], minilm=[2, 3], byt5=[1, 2], canine=[2, 3])

names, short = st.sampled_from(sorted(EVERYONE)), st.text("abc ", max_size=40)
texts, limits, shares = st.lists(short, min_size=1, max_size=3), st.integers(6, 45), st.floats(0, 1)
quickly = settings(max_examples=120, deadline=None)


def own_rows(t, columns, side="right", **settings):
    "The tokenizer's own rows."
    t.truncation_side = side
    found = t(*columns, verbose=False, **settings)
    t.truncation_side = "right"
    return [dict(zip(found, row)) for row in zip(*found.values())]


def inside(t, row):
    "The ids of the texts in a row of letters, which hold no special token."
    return [i for i in row["input_ids"] if i not in (1, 2)]


def test_special_tokens(): assert SPECIAL == KNOWN


@quickly
@given(names, texts, limits, st.booleans(), st.sampled_from([("head", "right"), ("tail", "left")]))
def test_head_and_tail_are_the_tokenizers_own(name, some, limit, pair, way):
    t, columns, (keep, side) = EVERYONE[name], [some, some[::-1]] if pair else [some], way
    ours, own = truncate(t, *columns, max_length=limit, keep=keep), own_rows(t, columns, side, truncation=True, max_length=limit)
    assert ours == own and [list(r) for r in ours] == [list(r) for r in own]
    assert truncate(t, *columns, max_length=limit, keep="head_tail", head=float(keep == "head")) == own
    if keep == "head": assert chunks(t, *columns, max_length=limit, most=1)[0] == own


@quickly
@given(names, texts, limits, st.booleans(), shares)
def test_lengths_special_tokens_and_the_rest_of_the_row(name, some, limit, pair, head):
    t, columns = EVERYONE[name], [some, some[::-1]] if pair else [some]
    whole = own_rows(t, columns, return_special_tokens_mask=True)
    ours, (rows, owner) = truncate(t, *columns, max_length=limit, keep="head_tail", head=head), chunks(t, *columns, max_length=limit, overlap=0.9 * head)
    for row, of in [*zip(ours, range(len(some))), *zip(rows, owner)]:
        whole_ids, mask = whole[of]["input_ids"], whole[of]["special_tokens_mask"]
        assert len(row["input_ids"]) == min(limit, len(whole_ids)) and {len(v) for v in row.values()} == {len(row["input_ids"])} and set(row["attention_mask"]) <= {1}
        if name in LETTERS: assert [i for i in row["input_ids"] if i in (1, 2)] == [i for i, special in zip(whole_ids, mask) if special]
    assert owner.tolist() == sorted(owner.tolist()) and set(owner) == set(range(len(some)))
    if not pair: # a text's first chunk is its head, the last one its tail
        for side, keep, back in ("left", "head", 0), ("right", "tail", 1):
            assert [rows[i - back] for i in np.searchsorted(owner, range(len(some)), side)] == truncate(t, some, max_length=limit, keep=keep)


@quickly
@given(st.sampled_from(sorted(LETTERS)), st.text("abc ", max_size=60), limits, shares)
def test_decoded_text(name, text, limit, head):
    t, room = LETTERS[name], limit - SPECIAL[name][0]
    first = int(head * room + 0.5)
    expected = text if len(text) <= room else text[:first] + text[len(text) - room + first:]
    assert t.decode(inside(t, truncate(t, [text], max_length=limit, keep="head_tail", head=head)[0])) == expected


@quickly
@given(st.sampled_from(sorted(LETTERS)), st.text("abcdefgh", max_size=90), limits, st.floats(0, 0.95))
def test_decoded_chunks_cover_the_text(name, text, limit, overlap):
    t, room = LETTERS[name], limit - SPECIAL[name][0]
    rows, owner = chunks(t, [text], max_length=limit, overlap=overlap)
    found, windows = [t.decode(inside(t, r)) for r in rows], chunk_windows(len(text), room, overlap)
    assert found == [text[w.start:w.stop] for w in windows] and set().union(*windows) == set(range(len(text)))
    assert rows[0] == truncate(t, [text], max_length=limit)[0] and rows[-1] == truncate(t, [text], max_length=limit, keep="tail")[0]


@quickly
@given(st.sampled_from(sorted(LETTERS)), st.text("abc", max_size=50), st.text("xyz", max_size=50), limits, st.booleans())
def test_chunks_of_pairs(name, a, b, limit, swap):
    t, room, pair = LETTERS[name], limit - SPECIAL[name][1], [b, a] if swap else [a, b]
    rows, owner = chunks(t, [pair[0]], [pair[1]], max_length=limit)
    kept = share_room(list(map(len, pair)), room)
    found = ["".join(t.decode(inside(t, r)) for r in [row]) for row in rows]
    long = 0 if (len(pair[0]), kept[0]) >= (len(pair[1]), kept[1]) else 1
    windows = chunk_windows(len(pair[long]), max(1, kept[long]))
    parts = [[pair[j][w.start:w.stop] if j == long else pair[j][:kept[j]] for j in (0, 1)] for w in windows]
    assert found == ["".join(p) for p in parts] and len(pair[long]) >= len(pair[1 - long])


@quickly
@given(st.integers(0, 300), st.integers(1, 40), st.floats(0, 0.99), st.none() | st.integers(1, 6))
def test_windows(length, room, overlap, most):
    found, step = chunk_windows(length, room, overlap, most), room - int(overlap * room)
    enough = 1 if length <= room else 1 + int(np.ceil((length - room) / step))
    assert len(found) == min(enough, most or enough) and {len(w) for w in found} == {min(length, room)}
    assert found[0].start == 0 and (found[-1].stop == length or most == 1)
    gaps = np.diff([w.start for w in found])
    assert len(gaps) == 0 or (gaps.min() > 0 and gaps.max() - gaps.min() <= 1)
    if most is None: assert (gaps <= step).all()


@quickly
@given(st.integers(0, 300), st.integers(1, 60), shares)
def test_kept_places(length, room, head):
    found = kept_places(length, room, "head_tail", head)
    assert found == sorted(set(found)) and len(found) == min(length, room) and set(found) <= set(range(length))
    assert (np.diff(found) > 1).sum() <= 1 # one seam at most


@quickly
@given(st.integers(3, 12), st.integers(0, 4), st.integers(1, 6))
def test_the_tokenizers_own_windows_where_the_last_is_full(room, stride, more):
    stride = min(stride, room - 1)
    t, text = LETTERS["roberta"], "abcdefghijkl" * 8
    text = text[:room + more * (room - stride)]
    own = t(text, truncation=True, max_length=room + 2, stride=stride, return_overflowing_tokens=True)
    rows, _ = chunks(t, [text], max_length=room + 2, overlap=(stride + 0.5) / room)
    assert [r["input_ids"] for r in rows] == own["input_ids"]


def test_special_tokens_written_in_a_text():
    "What a user writes is text, and is cut like text."
    t = tiny_tokenizer()
    table = pd.DataFrame(dict(a=["we [SEP] go on and on", "[CLS] [CLS] [CLS] [CLS]"], b=["so it is", "[SEP] [SEP] [SEP] [SEP]"]))
    for columns in "a", "a,b":
        for limit in 5, 6, 7, 30: assert Truncate("head").tokens(table, columns, t, limit)[0] == tokenise(table, columns, t, limit)


@pytest.mark.parametrize("name", EVERYONE)
def test_padded_batches(name):
    "Rows can be padded on the tokenizer's side, and the mask says where."
    t = EVERYONE[name]
    rows, _ = chunks(t, ["abc" * 9, "a b"], max_length=12)
    batch = DataCollatorWithPadding(t)(rows)
    mask = batch["attention_mask"].bool()
    for row, ids, seen in zip(rows, batch["input_ids"], mask): assert ids[seen].tolist() == row["input_ids"]
    assert (mask[:, -1] if t.padding_side == "left" else mask[:, 0]).all() and not mask.all()


@pytest.mark.parametrize("name", EVERYONE)
def test_columns_and_arrays(name):
    t, some = EVERYONE[name], ["abc " * 9, "a b"]
    for of in pd.Series(some, index=[7, 7]), np.array(some), np.array(some, dtype=object):
        assert truncate(t, of, of, max_length=9) == truncate(t, some, some, max_length=9)
    for odd in None, np.nan, 3, ["a"], "\ud800":
        with pytest.raises(ValueError, match=r"`pairs` must hold text; 1 of 2 rows break this \(first: row 2"): chunks(t, some, ["a", odd])


@pytest.mark.parametrize("name", EVERYONE)
def test_no_warnings(name, caplog):
    t = EVERYONE[name]
    transformers.utils.logging.set_verbosity_warning()
    t.deprecation_warnings = {}
    truncate(t, ["the " * 900], max_length=8, keep="tail"); chunks(t, ["the " * 900], ["a " * 900], max_length=8, most=2)
    truncation_report(["the " * 900], None, t, 8)
    assert not caplog.records
    if name == "tiny": t("the " * 900); assert len(caplog.records) == 1


@quickly
@given(names, texts, st.integers(6, 30))
def test_report(name, some, limit):
    t = EVERYONE[name]
    own, special = [len(r["input_ids"]) for r in own_rows(t, [some])], SPECIAL[name][0]
    lost, all_tokens = sum(max(0, n - limit) for n in own), sum(own) - special * len(own)
    found = truncation_report(some, None, t, limit).loc[limit]
    assert (found.texts, found.cut, found.longest) == (len(some), sum(n > limit for n in own), max(own))
    assert found.share_lost == pytest.approx(lost / all_tokens if all_tokens else 0)
    kept = sum(len(r["input_ids"]) for r in truncate(t, some, max_length=limit, keep="tail"))
    assert kept == sum(own) - lost


def test_report_of_a_pair_and_of_several_limits():
    table = pd.DataFrame(dict(a=["the people", "we"], b=["work long hours", "go"]))
    found = truncation_report(table, "a,b", tiny_tokenizer(), (6, 7, 9))
    assert found.index.tolist() == [6, 7, 9] and found.longest.tolist() == [max(len(i) for i in tiny_tokenizer()(["the people", "we"], ["work long hours", "go"])["input_ids"])] * 3
    with pytest.raises(ValueError, match="`max_length` must be 5 or more for 2"): truncation_report(table, "a,b", tiny_tokenizer(), 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A saved tiny model whose outputs differ from text to text."
    at = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tiny_model("bert", initializer_range=0.5).save_pretrained(at); tiny_tokenizer().save_pretrained(at)
    return at


@pytest.fixture(scope="module")
def table():
    "Texts of one, two or three passages."
    passages, rng = leveled_passages(), np.random.default_rng(0)
    joined = [" ".join(passages.text[3 * i + j] for j in range(1 + i % 3)) for i in range(24)]
    return pd.DataFrame(dict(text=joined, other=passages.text[100:124].values, target=rng.normal(size=24), label=list("ab") * 12))


@pytest.mark.parametrize("text", ["text", "text,other"])
def test_off_is_plain(folder, table, text):
    def predictions(term): return fine_tune(table, recipe=Recipe.parse(f"recipe(epochs=1, max_length=80){term}"), model=folder, text=text).predict(table)
    plain = predictions("")
    assert (predictions(" + truncate('head')") == plain).all() and (predictions(" + chunks(most=1)") == plain).all()
    assert not np.allclose(predictions(" + truncate('tail')"), plain) and not np.allclose(predictions(" + chunks()"), plain)


@pytest.mark.parametrize("target", ["target", "label"])
def test_chunks_in_training_prediction_and_after_loading(folder, table, tmp_path, target):
    recipe = Recipe.parse("recipe(epochs=1, max_length=100, batch_size=8) + chunks(0.25, most=4)")
    fitted = fine_tune(table[:18], table[18:], recipe, model=folder, target=target)
    rows, owner = Chunks(0.25, 4).tokens(table, "text", tiny_tokenizer(), 100)
    assert len(rows) > 2 * len(table) and np.bincount(owner).max() == 4
    expected = average_rows(model_outputs(fitted.model, rows, tiny_tokenizer()), owner)
    assert np.allclose(fitted.raw(table), expected, atol=1e-4) and expected.std() > 0.01
    fitted.save(tmp_path/"saved")
    again = FineTuned.load(tmp_path/"saved")
    assert np.allclose(again.raw(table), expected, atol=1e-4) and again.recipe == fitted.recipe
    order = np.random.default_rng(0).permutation(len(table))
    assert np.allclose(fitted.raw(table.iloc[order]), expected[order], atol=1e-4)


def test_each_chunk_is_a_training_row(folder, table):
    steps = lambda term: max(log["step"] for log in fine_tune(table, recipe=Recipe.parse(f"recipe(epochs=2, max_length=100, batch_size=8){term}"), model=folder).history)
    rows, _ = Chunks().tokens(table, "text", tiny_tokenizer(), 100)
    assert steps("") == 6 and steps(" + chunks()") == 2 * -(-len(rows) // 8)


def test_one_cut_a_recipe():
    with pytest.raises(ValueError, match="the seat `tokens` has room for one"): Recipe() + Truncate() + Chunks()
