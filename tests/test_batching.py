"Batches of like length: what holds for any lengths, sizes, budgets and processes; with workers, pickled, and resumed."
import pickle, random
from itertools import combinations

import numpy as np, pytest, torch
from accelerate import Accelerator, skip_first_batches
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from advft.batching import LengthBatchSampler, _ceilings, _deal, _snake, in_table_order, length_bias, padded_tokens, padding_report
from advft.core import Recipe, tiny_model, tiny_tokenizer
from advft.train import AdvTrainer

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=80)
SMALL = settings(max_examples=150, deadline=None)


def epochs(sampler, n=3):
    "The batches of some epochs; each is followed by the next."
    return [list(sampler) for _ in range(n)]


@st.composite
def samplers(draw, world=1):
    "A sampler on one process; with a budget, with a batch size, or with both."
    lengths, size, budget = draw(LENGTHS), draw(st.none() | st.integers(1, 20)), draw(st.none() | st.integers(0, 200))
    if size is None and budget is None: size = 7
    budget = None if budget is None else max(lengths) + budget
    return LengthBatchSampler(lengths, size, draw(st.integers(0, 5)), draw(st.integers(1, 12)), max_tokens=budget)


@SMALL
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 9), st.integers(0, 9))
def test_a_deal_is_even_and_keeps_its_ceilings(n, piles, each, seed):
    dealt = _deal(n, piles, each, torch.Generator().manual_seed(seed))
    assert len(dealt) == n and dealt[0] == 0
    for start in range(0, n, each * piles):
        group = dealt[start:start + each * piles]
        assert np.bincount(group, minlength=piles).tolist() == [len(range(pile, len(group), piles)) for pile in range(piles)]
    snake = _snake([np.flatnonzero(dealt == pile) for pile in range(piles)])
    assert sorted(snake) == list(range(n)) and (snake >= _ceilings(n, piles, each)).all()


@SMALL
@given(samplers())
def test_each_epoch_is_whole_and_has_as_many_batches(sampler):
    for epoch in epochs(sampler, 4):
        assert len(epoch) == len(sampler)
        assert sorted(i for b in epoch for i in b) == list(range(len(sampler.lengths)))
        assert all(epoch)


@SMALL
@given(samplers())
def test_no_batch_is_too_large(sampler):
    for b in (b for epoch in epochs(sampler) for b in epoch):
        assert len(b) <= (sampler.batch_size or len(b))
        assert max(sampler.lengths[b]) * len(b) <= (sampler.max_tokens or 10**9)


@SMALL
@given(samplers())
def test_sizes_are_those_of_the_first_epoch(sampler):
    first, *others = [sorted(map(len, e)) for e in epochs(sampler)]
    assert all(o == first for o in others)


@SMALL
@given(samplers())
def test_the_first_batch_holds_the_longest_row_and_costs_most(sampler):
    for epoch in epochs(sampler):
        costs = [max(sampler.lengths[b]) * len(b) for b in epoch]
        assert max(sampler.lengths[epoch[0]]) == max(sampler.lengths)
        if sampler.max_tokens is None: assert costs[0] == max(costs)


@SMALL
@given(LENGTHS, st.integers(1, 20))
def test_as_many_batches_as_any_sampler_would_make(lengths, size):
    assert len(LengthBatchSampler(lengths, size)) == -(-len(lengths) // size)


@SMALL
@given(LENGTHS, st.integers(1, 20), st.integers(1, 3), st.integers(0, 3))
def test_drop_last_leaves_only_full_batches(lengths, size, world, seed):
    full = len(lengths) // (size * world)
    make = lambda rank: LengthBatchSampler(lengths, size, seed, drop_last=True, rank=rank, world=world)
    if not full:
        with pytest.raises(ValueError, match="`drop_last` needs"): make(0)
        return
    for shards in zip(*(epochs(make(r)) for r in range(world))):
        rows = [i for shard in shards for b in shard for i in b]
        assert all(len(b) == size for shard in shards for b in shard) and [len(s) for s in shards] == [full] * world
        assert len(set(rows)) == len(rows) == full * size * world
        assert max(lengths[i] for i in shards[0][0]) == max(lengths)


@SMALL
@given(LENGTHS, st.none() | st.integers(1, 9), st.none() | st.integers(0, 150), st.integers(2, 5), st.integers(0, 3))
def test_processes_share_the_rows(lengths, size, budget, world, seed):
    if size is None and budget is None: size = 3
    budget = None if budget is None else max(lengths) + budget
    make = lambda rank: LengthBatchSampler(lengths, size, seed, max_tokens=budget, rank=rank, world=world)
    try: shards = [make(r) for r in range(world)]
    except ValueError as e:
        assert "rows or more" in str(e)
        assert len(lengths) < world or size == 1 or (budget or 10**9) < 2 * max(lengths) # no room for a second row
        return
    for parts in zip(*map(epochs, shards)):
        assert {len(p) for p in parts} == {len(shards[0])}
        assert sorted(i for p in parts for b in p for i in b) == list(range(len(lengths)))
        for step in zip(*parts):
            assert max(map(len, step)) - min(map(len, step)) <= 1 and min(map(len, step)) >= 1
            assert all(len(b) <= (size or len(b)) and max(lengths[i] for i in b) * len(b) <= (budget or 10**9) for b in step)


@pytest.mark.parametrize("rows, world", [(1, 2), (3, 4), (0, 1)])
def test_too_few_rows(rows, world):
    with pytest.raises(ValueError, match="row or more" if not rows else f"need {world} rows or more, got {rows}"): LengthBatchSampler([5] * rows, 4, world=world)


@SMALL
@given(LENGTHS.filter(lambda l: len(l) >= 24), st.integers(2, 6))
def test_another_composition_in_each_epoch(lengths, size):
    sets = [{frozenset(b) for b in e} for e in epochs(LengthBatchSampler(lengths, size), 5)]
    assert len(set(map(frozenset, sets))) == 5


@SMALL
@given(samplers(), st.integers(0, 9))
def test_seed_and_epoch_decide(sampler, epoch):
    sampler.set_epoch(epoch)
    copied = pickle.loads(pickle.dumps(sampler))
    torch.manual_seed(1); np.random.seed(1); random.seed(1)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = list(sampler)
    assert torch.equal(state[0], torch.get_rng_state()) and state[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    torch.manual_seed(2); np.random.seed(2); random.seed(2)
    assert list(copied) == first and copied.epoch == sampler.epoch == epoch + 1
    sampler.set_epoch(epoch)
    assert list(sampler) == first


@SMALL
@given(samplers())
def test_outputs_come_back_in_order(sampler):
    for epoch in epochs(sampler):
        out = in_table_order([np.array(b) * 2.0 for b in epoch], epoch)
        assert out.tolist() == [2.0 * i for i in range(len(sampler.lengths))]


@pytest.mark.parametrize("n, size", [(64, 16), (300, 16), (1003, 24), (4000, 8)])
@pytest.mark.parametrize("spread", [0.2, 0.7, 1.2])
def test_no_more_padding_than_transformers(n, size, spread):
    lengths = np.clip(np.random.default_rng(n).lognormal(3.5, spread, n), 3, 512).astype(int)
    ours = np.mean([padded_tokens(lengths, e) for e in epochs(LengthBatchSampler(lengths, size), 10)])
    theirs = [list(LengthGroupedSampler(size, lengths=lengths.tolist(), generator=torch.Generator().manual_seed(e))) for e in range(10)]
    theirs = np.mean([padded_tokens(lengths, [t[i:i + size] for i in range(0, n, size)]) for t in theirs])
    real, random_order = lengths.sum(), padded_tokens(lengths, torch.randperm(n).split(size))
    assert real <= ours <= theirs * 1.01 and ours < random_order


@pytest.mark.parametrize("spread", [0.2, 0.7, 1.2])
def test_a_budget_is_used(spread):
    "Fixing the cuts for all epochs costs little: nearly as few batches as a sorted table needs."
    lengths = np.clip(np.random.default_rng(0).lognormal(3.5, spread, 2000), 3, 512).astype(int)
    report = padding_report(lengths, 16, max_tokens=1024)
    fewest = -(-lengths.sum() // 1024)
    assert report.batches.iloc[-1] <= 1.25 * fewest and report.wasted.iloc[-1] < 0.2


@pytest.mark.parametrize("size, budget", [(4, None), (None, 400), (16, 400)])
def test_any_two_neighbours_meet(size, budget):
    sampler = LengthBatchSampler(range(1, 65), size, max_tokens=budget)
    met = {frozenset(p) for e in epochs(sampler, 300) for b in e for p in combinations(b, 2)}
    assert all(frozenset((i, i + 1)) in met for i in range(63))


@pytest.mark.parametrize("workers", [0, 2])
def test_dataloader_and_resuming(workers):
    "Through a DataLoader with workers; skipping what was trained in the third epoch gives the rest of that epoch."
    lengths = np.random.default_rng(0).integers(1, 50, 60)
    sampler = LengthBatchSampler(lengths, 8, seed=3)
    loader = DataLoader(range(60), batch_sampler=sampler, num_workers=workers, collate_fn=list)
    seen = [list(loader) for _ in range(3)]
    for epoch, batches in enumerate(seen):
        sampler.set_epoch(epoch); assert batches == list(sampler)
    sampler.set_epoch(2)
    assert list(skip_first_batches(loader, 3)) == seen[2][3:] and len(skip_first_batches(loader, 3)) == 5
    assert sampler.epoch == 3
    sampler.set_epoch(0)
    prepared = Accelerator(cpu=True).prepare(loader)
    assert [[list(b) for b in prepared] for _ in range(2)] == seen[:2]


def test_an_epoch_left_early_begins_anew():
    sampler = LengthBatchSampler(range(1, 21), 4)
    first = next(iter(sampler))
    assert sampler.epoch == 0 and next(iter(sampler)) == first
    list(sampler); assert sampler.epoch == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=20, max_size=80), st.integers(0, 3))
def test_bias_is_found(lengths, seed):
    noise = np.random.default_rng(seed).normal(size=len(lengths))
    found = length_bias(lengths, noise)
    assert -1 <= found["spearman"] <= 1 and 0 < found["random"] < 3 and 0 < found["length"] < 3
    if len(set(lengths)) > 1: assert length_bias(lengths, lengths)["spearman"] == pytest.approx(1)


@given(st.integers(80, 200))
def test_a_target_that_is_the_length_hardly_varies_within_batches(rows):
    found = length_bias(list(range(1, rows + 1)), range(rows))
    assert found["length"] < 0.5 * found["random"]


class Killed(Exception): "What a kill is here."


class Watch(TrainerCallback):
    "Kill a training before a step."
    def __init__(self, kill): self.kill = kill
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.kill: raise Killed


ROWS = [dict(input_ids=[2] + [5 + (i + j) % 90 for j in range(3 * i % 17)] + [3], labels=float(i % 3)) for i in range(26)]
ROWS = [r | dict(attention_mask=[1] * len(r["input_ids"])) for r in ROWS]


def trained(folder, term, kill=None, resume=None, micro=8, accumulation=1, dropout=0.1):
    "The weights after eight steps in batches of up to eight rows, and the steps of an epoch."
    torch.manual_seed(0)
    args = TrainingArguments(str(folder), max_steps=8, save_steps=2, report_to="none", use_cpu=True, disable_tqdm=True,
                             per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation)
    model = tiny_model("bert", hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    trainer = AdvTrainer(model, args, recipe=Recipe.parse(f"recipe(learning_rate=0.001, batch_size=8) + {term}"), train_dataset=ROWS,
                         data_collator=DataCollatorWithPadding(tiny_tokenizer()), callbacks=[Watch(kill)])
    trainer.train(resume_from_checkpoint=resume)
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}, trainer


@pytest.mark.parametrize("term", ["length_batches()", "token_budget(60)"])
@pytest.mark.parametrize("kill", [3, 7]) # in the first epoch, and in the middle of the second
def test_killed_and_resumed(tmp_path, term, kill):
    whole, trainer = trained(tmp_path/"whole", term)
    sampler = Recipe.parse(term).seat("sampler")(ROWS, 8, 42)
    assert trainer.state.epoch == pytest.approx(8 / len(sampler))
    with pytest.raises(Killed): trained(tmp_path/"broken", term, kill)
    again, _ = trained(tmp_path/"broken", term, resume=True)
    assert all(torch.equal(again[n], whole[n]) for n in whole)


@pytest.mark.parametrize("term", ["length_batches()", "token_budget(60)"])
def test_in_parts(tmp_path, term):
    "Updates cut into micro-batches give the same weights."
    whole, _ = trained(tmp_path/"whole", term, dropout=0.0)
    parts, _ = trained(tmp_path/"parts", term, micro=2, accumulation=4, dropout=0.0)
    for n in whole: torch.testing.assert_close(parts[n], whole[n], rtol=1e-4, atol=1e-5)
