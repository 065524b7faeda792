"What a user can do wrong at the command line, and trials that fail: one plain line, the right exit code, nothing lost."
import builtins, json, os, shlex, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path

import huggingface_hub.constants, numpy as np, pandas as pd, psutil, pytest, torch

from advft.cli import main
from advft.core import Recipe, Rung, tiny_model
from advft.ladder import MeanRung, ladder_config, open_folder, prepare_table, read_trial, run_ladder

TINY = dict(epochs=1, max_length=16)
WORDS = "the of and to in is it that for on with as was are by this from or be an".split()
SENTENCES = [" ".join(np.random.default_rng(i).choice(WORDS, 8)) for i in range(20)]
GOOD = pd.DataFrame(dict(text=SENTENCES, other=SENTENCES[::-1], target=[i * 0.5 for i in range(20)],
                         level=[i % 4 for i in range(20)], label=[f"class {i % 2}" for i in range(20)],
                         author=[i // 2 for i in range(20)], all="one", gap=[None] + ["so"] * 19))
ROWS = "text,target\n" + "".join(f"{t},{i}\n" for i, t in enumerate(SENTENCES))
TABLES = { # file -> content, what the error says; the text is at fault in those of TEXT_FAULTS
    "empty.csv":       ("", "the file is empty"),
    "header.csv":      ("text,target\n", "a header but no rows"),
    "picture.csv":     (b"\x89PNG\r\n\x1a\n\x00\x01", "binary"),
    "latin.csv":       ((ROWS + "café,3\n").encode("latin-1"), "line 22 is not UTF-8"),
    "zip.xlsx":        (b"no zip at all", "cannot read `zip.xlsx`"),
    "garbage.parquet": (b"PAR1 garbage", "cannot read `garbage.parquet`"),
    "broken.jsonl":    ('{"text": "a", "target": 1}\n{"text": \n', "line 2 is not JSON"),
    "table.docx":      (ROWS, "must end in one of .csv"),
    "table":           (ROWS, "no ending"),
    "numbers.csv":     ("text,target\n" + "".join(f"{i},{i}\n" for i in range(20)), "`text` must hold text"),
    "missing.csv":     (ROWS + ",3\n", "`text` must not be missing"),
    "blank.csv":       (ROWS + '" ",3\n', "`text` must not be blank"),
    "semicolons.csv":  ("text;target\na;1\nb;2\n", "separated by semicolons"),
    "twice.csv":       ("text,text,target\na,b,1\n", "text occurs more than once"),
    "gap.csv":         (ROWS + "a,\n", "`target` must have no gaps"),
    "infinite.csv":    (ROWS + "a,inf\n", "`target` must be finite"),
    "nan.csv":         (ROWS + "a,nan\n", "`target` must hold numbers"),
    "word.csv":        (ROWS + "a,high\n", "`target` must hold numbers"),
    "constant.csv":    ("text,target\na,1\nb,1\nc,1\nd,1\n", "nothing to learn"),
    "lonely.csv":      ("text,target\n" + "a,good\nb,bad\n" * 9 + "c,odd\n", "each label in two rows")}
TEXT_FAULTS = list(TABLES)[:14]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    "main replaces warnings.showwarning; a model's name must never reach the network."
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_bert):
    "A folder as a user may have it: good and bad tables, models, results."
    folder = tmp_path_factory.mktemp("files")
    def copy(name, without=None): shutil.copytree(tiny_bert, folder/name, ignore=shutil.ignore_patterns(without or ""))
    GOOD.to_csv(folder/"good.csv", index=False)
    for name, (said, _) in TABLES.items(): (folder/name).write_bytes(said.encode() if isinstance(said, str) else said)
    for name in "tiny", "other", "torn", "odd": copy(name)
    copy("weightless", "*.safetensors"); copy("speechless", "token*")
    (folder/"torn"/"model.safetensors").write_bytes(b"torn")
    (folder/"odd"/"config.json").write_text("{")
    tiny_model("bert", layers=1).save_pretrained(folder/"other")
    for name, content in dict(damaged="{", list="[]").items():
        (folder/name).mkdir(); (folder/name/"ladder.json").write_text(content)
    for name, target in dict(results="target", levels="level").items():
        table = prepare_table(pd.read_csv(folder/"good.csv"), target=target)
        open_folder(folder/name, ladder_config(table, folder/"tiny", 5, None, "regression"))
    from advft.train import fine_tune # not above: workers import this module for its rungs
    fine_tune(GOOD, recipe=Recipe(**TINY), model=str(tiny_bert)).save(folder/"fitted")
    return folder


@pytest.fixture
def place(files, tmp_path, monkeypatch):
    "A copy of that folder to work in."
    shutil.copytree(files, tmp_path/"place")
    monkeypatch.chdir(tmp_path/"place")
    return tmp_path/"place"


def content(folder):
    "Every file and folder below, with the bytes of the files."
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def advft(command, capfd):
    "Exit code, stdout and stderr of a command run in this process."
    capfd.readouterr()
    with pytest.raises(SystemExit) as end: main(shlex.split(command))
    return end.value.code, *capfd.readouterr()


def process(command, **env):
    "The same in a fresh process."
    code = [sys.executable, "-c", "from advft.cli import main; main()"]
    return subprocess.Popen(code + shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | env, start_new_session=True)


def check_refused(code, out, err, says):
    assert (code, out) == (2, "") and err.startswith("advft: ") and err.find("\n") == len(err) - 1, (code, out, err)
    assert says in err and len(err) < 500, err


def refused(place, capfd, command, says):
    before = content(place)
    check_refused(*advft(command, capfd), says)
    assert content(place) == before


# --- bad input: one line on stderr, exit code 2, nothing written

READING = {"ladder {} --model tiny": TABLES, "train {} --model tiny --out m": TABLES, "predict fitted {}": TEXT_FAULTS, "probe {} --model tiny": TABLES}

@pytest.mark.parametrize("command, name", [(command, name) for command, names in READING.items() for name in names])
def test_bad_tables(place, capfd, command, name):
    refused(place, capfd, command.format(name), TABLES[name][1])

BOTH = [ # for `ladder good.csv --model tiny` and `train good.csv --model tiny --out model` alike
    ("--text nosuch",                        "no column `nosuch` for the text; it has text, other, target"),
    ("--text Text",                          "did you mean `text`?"),
    ("--text text,nosuch",                   "no column `nosuch` for the text"),
    ("--text text,text",                     "two different ones for a pair"),
    ("--text text,other,label",              "two different ones for a pair"),
    ("--text text,gap",                      "`gap` must not be missing"),
    ("--text text,level",                    "`level` must hold text"),
    ("--text ''",                            "`text` must name one column"),
    ("--target nosuch",                      "no column `nosuch` for the target; it has"),
    ("--target text",                        "different columns"),
    ("--text target",                        "different columns"),
    ("--text other,target",                  "different columns"),
    ("--target gap",                         "`gap` must have no gaps; 1 of 20 rows"),
    ("--target all",                         "nothing to learn"),
    ("--target label --task regression",     "`label` must hold numbers for regression"),
    ("--target level --task binary",         "needs exactly two labels, but `level` has 4"),
    ("--task classification",                "each label in two rows"),
    ("--task nonsense",                      "unknown task 'nonsense'; known: auto"),
    ("--model nosuch",                       "model 'nosuch'"),
    ("--model 'no such model'",              "model 'no such model'"),
    ("--model weightless",                   "no safetensors"),
    ("--model torn",                         "torn"),
    ("--model speechless",                   "tokenizer"),
    ("--model odd",                          "odd"),
    ("--model good.csv",                     "good.csv"),
    ("--model ''",                           "no config.json"),
    ("--out good.csv",                       "good.csv"),
    ("--out good.csv/below",                 "good.csv"),
    ("--out tiny",                           "choose another"),
    ("--recipe \"__import__('os').mkdir('hacked')\"",                        "a recipe text is a sum like"),
    ("--recipe \"recipe(epochs=__import__('os').mkdir('hacked'))\"",         "a recipe text is a sum like"),
    ("--recipe \"layer_decay([open('hacked', 'w') for _ in 'a'][0])\"",      "a recipe text is a sum like"),
    ("--recipe 'layer_decay(0.9) - 1'",      "a recipe text is a sum like"),
    ("--recipe ''",                          "a recipe text is a sum like"),
    ("--recipe 'layer_decai(0.9)'",          "did you mean 'layer_decay'?"),
    ("--recipe 'layer_decay(decay=0.9)'",    "unknown knob of layer_decay 'decay'; known: layer_decay, head"),
    ("--recipe 'recipe(lr=1)'",              "unknown knob of recipe 'lr'; known: learning_rate"),
    ("--recipe 'layer_decay(1.3)'",          "`layer_decay` must be a number in (0, 1], got 1.3"),
    ("--recipe \"layer_decay('high')\"",     "`layer_decay` must be a number in (0, 1], got 'high'"),
    ("--recipe \"layer_decay(convention='blogs')\"", "unknown convention 'blogs'"),
    ("--recipe 'layer_decay(1, 2, 3, 4)'",   "at most 3 values"),
    ("--recipe 'token_budget()'",            "token_budget needs `max_tokens`; give it, as in token_budget(max_tokens=...)"),
    ("--recipe 'layer_decay(1, layer_decay=1)'", "`layer_decay` twice"),
    ("--recipe 'recipe(epochs=0)'",          "`epochs` must be a number in (0, inf), got 0"),
    ("--recipe 'recipe(batch_size=1.5)'",    "`batch_size` must be a whole number"),
    ("--recipe 'recipe(learning_rate=1e999)'", "`learning_rate` must be a number in (0, inf)"),
    ("--recipe 'recipe(epochs=1) + recipe(epochs=2)'", "one recipe(...) is enough"),
    ("--recipe \"recipe(model='nosuch')\"",  "model 'nosuch'"),
    ("--recipe 'layer_decay(0.9) + layer_decay(0.8)'", "cannot be combined"),
    ("--nonsense",                           "No such option: --nonsense"),
    ("--text",                               "--text"),
    ("surplus",                              "surplus")]

@pytest.mark.parametrize("options, says", BOTH, ids=[o for o, _ in BOTH])
@pytest.mark.parametrize("command", ["ladder good.csv", "train good.csv"])
def test_bad_options(place, capfd, command, options, says):
    for needed in (" --model tiny", " --out model" if command.startswith("train") else ""):
        if needed.split(" ")[1:2] != options.split(" ")[:1]: command += needed
    refused(place, capfd, f"{command} {options}", says)

LADDER = [
    ("good.csv --folds 0",                   "`folds` must be a whole number in [2, inf), got 0"),
    ("good.csv --folds 1",                   "got 1"),
    ("good.csv --folds -3",                  "got -3"),
    ("good.csv --folds 1.5",                 "no column `1.5` for the folds"),
    ("good.csv --folds=--5",                 "folds"),
    ("good.csv --folds ²",                   "folds"),
    ("good.csv --folds abc",                 "no column `abc` for the folds"),
    ("good.csv --folds all",                 "`all` must hold two folds or more"),
    ("good.csv --folds text",                "must have two rows or more, got 1"),
    ("good.csv --folds level --group author", "`level` must keep each group in one fold"),
    ("good.csv --folds 21",                  "`folds` must be at most the number of rows (20), got 21"),
    ("good.csv --folds 20",                  "must have two rows or more, got 1"),
    ("good.csv --folds 11 --group author",   "at most the number of groups (10), got 11"),
    ("good.csv --folds 2 --group all",       "at most the number of groups (1), got 2"),
    ("good.csv --folds 11 --target label",   "rarest label"),
    ("good.csv --rows 3",                    "at most the number of rows (3), got 5"),
    ("good.csv --rows 3 --folds 2",          "too few rows for a training and a validation part"),
    ("good.csv --rows 0",                    "`rows` must be a whole number in [1, 20], got 0"),
    ("good.csv --rows -1",                   "got -1"),
    ("good.csv --rows 21",                   "got 21"),
    ("good.csv --rows few",                  "--rows"),
    ("good.csv --seeds a",                   "`seeds` must be whole numbers such as 0,1,2, got 'a'"),
    ("good.csv --seeds ''",                  "seeds"),
    ("good.csv --seeds 1.5",                 "seeds"),
    ("good.csv --seeds -1",                  "`seeds` must be a whole number in [0, inf), got -1"),
    ("good.csv --seeds 0,0",                 "different numbers, got [0, 0]"),
    ("good.csv --jobs 0",                    "`jobs` must be a whole number in [1, inf), got 0"),
    ("good.csv --jobs -2",                   "got -2"),
    ("good.csv --jobs many",                 "--jobs"),
    ("good.csv --metric accuracy",           "unknown metric for regression 'accuracy'; known: rmse"),
    ("good.csv --metric rmse --target label", "unknown metric for binary 'rmse'; known: accuracy"),
    ("good.csv --metric nonsense",           "unknown metric for regression 'nonsense'"),
    ("good.csv --group nosuch",              "no column `nosuch` for the group"),
    ("good.csv --group text",                "different columns"),
    ("good.csv --group gap",                 "`gap` must have no gaps"),
    ("good.csv --folds gap",                 "`gap` must have no gaps"),
    ("good.csv --full",                      "`--full` is for the embedded passages"),
    ("--rows 3",                             "too few groups"),
    ("--folds 1",                            "got 1"),
    ("--text nosuch",                        "no column `nosuch` for the text; it has text, target, topic"),
    ("--target nosuch",                      "no column `nosuch` for the target"),
    ("--group nosuch --metric nonsense",     "group"),
    ("nowhere.csv",                          "`nowhere.csv` does not exist"),
    (".",                                    "is a folder"),
    ("good.csv --recipe publish",            "unknown technique 'publish'"),
    ("good.csv --recipe 'layer_decay(0.8)' --recipe 'layer_decay(layer_decay=0.8)'", "given twice"),
    ("good.csv --recipe 'recipe(epochs=1) + layer_decay' --recipe 'layer_decay() + recipe(epochs=1.0)'", "given twice"),
    ("good.csv --recipe 'layer_decay(0.8)' --recipe 'layer_decay(0)'", "must be a number in (0, 1], got 0"),
    ("good.csv --out damaged",               "damaged"),
    ("good.csv --out list",                  "damaged"),
    ("good.csv --out fitted",                "holds other files"),
    ("good.csv --out results --rows 18",     "another table"),
    ("good.csv --out results --text other",  "another table"),
    ("good.csv --out results --target level --task regression", "another table"),
    ("good.csv --out results --model other", "another model"),
    ("good.csv --out results --folds 4",     "another fold scheme"),
    ("good.csv --out results --group author", "another"),
    ("good.csv --out levels --target level --task classification", "another task"),
    ("good.csv --out list --target level",   "damaged"), # without the hint that numbers look like classes
    ("good.csv --out results --recipe 'layer_decay(2)'", "`layer_decay` must be a number")]

@pytest.mark.parametrize("options, says", LADDER, ids=[o for o, _ in LADDER])
def test_bad_ladders(place, capfd, options, says):
    refused(place, capfd, f"ladder {options}" + ("" if "--model" in options else " --model tiny"), says)

OTHERS = [
    ("climb",                                            "No such command 'climb'"),
    ("--nonsense",                                       "No such option"),
    ("train",                                            "Missing argument"),
    ("train good.csv",                                   "Missing option '--out'"),
    ("train nowhere.csv --model tiny --out model",       "`nowhere.csv` does not exist"),
    ("train tiny --model tiny --out model",              "is a folder"),
    ("train good.csv --model tiny --out model --seed -1", "`seed` must be a whole number in [0, inf), got -1"),
    ("train good.csv --model tiny --out model --seed x", "--seed"),
    ("train good.csv --model tiny --out model --target level --seed -1", "got -1"), # without the hint, again
    ("train good.csv --model tiny --out model --recipe published", "unknown technique 'published'"),
    ("train good.csv --model tiny --out ''",             "`--out` must be a new or empty folder"),
    ("predict",                                          "Missing argument"),
    ("predict fitted",                                   "Missing argument"),
    ("predict nowhere good.csv",                         "nowhere"),
    ("predict tiny good.csv",                            "advft.json"),
    ("predict good.csv good.csv",                        "good.csv"),
    ("predict fitted nowhere.csv",                       "`nowhere.csv` does not exist"),
    ("predict fitted fitted",                            "is a folder"),
    ("predict fitted good.csv --out good.csv",           "`--out` must be a new file"),
    ("predict fitted good.csv --out nowhere/p.csv",      "nowhere"),
    ("predict fitted good.csv --out good.csv/p.csv",     "good.csv")]

@pytest.mark.parametrize("command, says", OTHERS, ids=[c for c, _ in OTHERS])
def test_bad_commands(place, capfd, command, says): refused(place, capfd, command, says)

@pytest.mark.parametrize("damage", [lambda f: f.write_text("{"), lambda f: f.unlink()], ids=["cut", "gone"])
def test_damaged_model(place, capfd, damage):
    damage(place/"fitted"/"advft.json")
    refused(place, capfd, "predict fitted good.csv", "advft.json")

PROBE = [
    ("--poolings meen",                      "unknown pooling 'meen'"),
    ("--poolings ''",                        "pooling"),
    ("--max-length 1",                       "max_length"),
    ("--folds 1",                            "`folds` must be a whole number in [2, inf), got 1"),
    ("--rows 21",                            "`rows` must be a whole number in [1, 20], got 21"),
    ("--metric nosuch",                      "unknown metric for regression 'nosuch'"),
    ("--group nosuch",                       "nosuch"),
    ("--target text",                        "different columns"),
    ("--model speechless",                   "tokenizer"),
    ("--out good.csv",                       "good.csv")]

@pytest.mark.parametrize("options, says", PROBE, ids=[o for o, _ in PROBE])
def test_bad_probes(place, capfd, options, says):
    refused(place, capfd, f"probe good.csv {'' if '--model' in options else '--model tiny '}{options}", says)

CLOSED = dict(HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", NO_PROXY="*") # nothing listens there

@pytest.mark.parametrize("command, says, env", [
    ("ladder good.csv --model no/such", "model 'no/such'", dict(HF_HUB_OFFLINE="1")),
    ("ladder good.csv --model no/such", "model 'no/such'", CLOSED),
    ("train good.csv --model tiny --out m --recipe 'layer_decay(print(1))'", "a recipe text is a sum like", {})])
def test_in_a_fresh_process(place, command, says, env):
    before, p = content(place), process(command, HF_HOME=str(place.parent/"cache"), **env)
    out, err = p.communicate(timeout=100)
    check_refused(p.returncode, out, err, says)
    assert content(place) == before


# --- good input

@pytest.mark.parametrize("command", ["ladder", "probe", "train", "predict", "techniques"])
def test_every_help_has_an_example(capfd, command):
    code, out, err = advft(f"{command} --help", capfd)
    assert (code, err) == (0, "") and f"Example: advft {command}" in out

def test_techniques(capfd):
    code, out, err = advft("techniques", capfd)
    assert (code, err) == (0, "") and "layer_decay(layer_decay=0.9, " in out and "pooling('wk', mode='official', " in out
    assert "token_budget(max_tokens, window=50)" in out and "object at" not in out

def test_probe(place, capfd):
    "Its table and picture, its features read again, and JSON alone on stdout."
    code, out, err = advft("probe good.csv --model tiny --group author --folds 3", capfd)
    assert code == 0 and "heat map" in err and "without features" in out and "in a recipe" in out.replace("\n", " ")
    folder = place/"runs"/"probe-good"
    assert (folder/"probe.png").read_bytes()[:4] == b"\x89PNG"
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")}
    code, out, err = advft("probe good.csv --model tiny --group author --folds 3 --json --target label", capfd)
    rows = json.loads(out)
    assert code == 0 and len(rows) == 9 and rows[0]["pooling"] in ("cls", "mean", "max")
    assert kept and {p: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")} == kept

def test_train_then_predict(place, capfd):
    "Files go where they were asked to, tables to stdout, all else to stderr; labels come with probabilities."
    command = "train good.csv --target label --text text,other --model tiny --out new/model"
    code, out, err = advft(f"{command} --recipe 'recipe(epochs=1, max_length=16)'", capfd)
    assert (code, out) == (0, "") and "saved to new/model" in err
    code, out, err = advft("predict new/model good.csv", capfd)
    assert code == 0 and out.startswith("text,other,target,")
    code, empty, err = advft("predict new/model good.csv --out p.csv", capfd)
    assert (code, empty) == (0, "") and "20 predictions" in err and (place/"p.csv").read_text() == out
    found = pd.read_csv("p.csv")
    assert found.text.tolist() == SENTENCES and set(found.prediction) <= {"class 0", "class 1"}
    assert np.allclose(found["p(class 0)"] + found["p(class 1)"], 1)

def test_numbers_that_look_like_classes_get_a_hint(place, capfd):
    command = "train good.csv --target level --model tiny --out model --recipe 'recipe(epochs=1, max_length=16)'"
    code, out, err = advft(command, capfd)
    assert code == 0 and sum("--task classification" in line for line in err.splitlines()) == 1

def test_training_that_diverges(place, capfd):
    recipe = "recipe(learning_rate=1e30, epochs=2, batch_size=4, max_length=16)"
    code, out, err = advft(f"train good.csv --model tiny --out model --recipe '{recipe}'", capfd)
    assert (code, out) == (1, "") and "diverged" in err and "Traceback" not in err and not Path("model").exists()

def test_a_single_step_that_diverges(place, capfd):
    recipe = "recipe(learning_rate=1e30, epochs=1, batch_size=40, max_length=16)"
    for more in "", " + adapters()":
        code, out, err = advft(f"train good.csv --model tiny --out model --recipe '{recipe}{more}'", capfd)
        assert (code, out) == (1, "") and "advft: training diverged: " in err and err.endswith("is not finite; lower the learning rate\n") and not Path("model").exists()

@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("command", ["train good.csv --model tiny --out model --recipe 'recipe(epochs=1, max_length=16)'", "predict fitted good.csv"])
def test_no_memory(place, capfd, monkeypatch, command, error):
    def call(*args, **kwargs): raise error
    monkeypatch.setattr("transformers.BertForSequenceClassification.forward", call)
    code, out, err = advft(command, capfd)
    assert (code, out) == (1, "") and err.endswith("advft: out of memory, even with single texts; lower max_length in the recipe, take a smaller model, or free some memory\n")
    assert "Traceback" not in err and not Path("model").exists()

def test_other_errors_keep_their_traceback(place, monkeypatch):
    def call(*args, **kwargs): raise RuntimeError("a fault of ours")
    monkeypatch.setattr("transformers.BertForSequenceClassification.forward", call)
    with pytest.raises(RuntimeError, match="a fault of ours"): main(shlex.split("predict fitted good.csv"))


# --- a full disk: its name, what to do, and nothing that is in the way of the same command

FULL = OSError(28, "No space left on device")
RUST = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

def fails(error):
    def call(*args, **kwargs): raise error
    return call

@pytest.mark.parametrize("error", [FULL, RUST], ids=["Python", "Rust"])
@pytest.mark.parametrize("there", [False, True])
def test_no_room_for_a_model(place, capfd, monkeypatch, error, there):
    if there: Path("model").mkdir()
    before = content(place)
    command = "train good.csv --model tiny --out model --recipe 'recipe(epochs=1, max_length=16)'"
    with monkeypatch.context() as m:
        m.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", fails(error)) # the weights are there by then
        code, out, err = advft(command, capfd)
    assert (code, out) == (2, "") and err.endswith("advft: no space left on the disk for model; free some and run the same command again\n")
    assert content(place) == before and advft(command, capfd)[0] == 0

def test_what_others_saved_meanwhile_stays(place, capfd, monkeypatch):
    monkeypatch.setattr("advft.train.fine_tune", lambda *args, **kwargs: shutil.copytree("fitted", "model"))
    before = content(place/"fitted")
    code, out, err = advft("train good.csv --model tiny --out model", capfd)
    assert (code, out) == (2, "") and "must be a new or empty folder" in err and content(place/"model") == before

@pytest.mark.parametrize("command, name", [("predict fitted good.csv --out p.csv", "p.csv"),
                                           ("ladder good.csv --model tiny", "runs/good/ladder.json")])
def test_no_room_for_a_file(place, capfd, monkeypatch, command, name):
    monkeypatch.setattr("os.fsync", fails(FULL))
    code, out, err = advft(command, capfd)
    assert (code, out) == (2, "") and f"advft: no space left on the disk for {name}; free some" in err
    assert not Path(name).exists() and not list(place.rglob("*.tmp"))


# --- trials that fail

class Breaks(Rung):
    "Raises whatever it is told to."
    def __init__(self, error): self.name, self.error = f"breaks with {error}", error
    def fit(self, train, valid, seed): raise getattr(builtins, self.error)("two\nlines")

class Nonsense(Rung):
    "Predicts what no metric can score."
    def __init__(self, name, value): self.name, self.value = name, value
    def fit(self, train, valid, seed): return self
    def predict(self, table): return [float(self.value)] * (len(table) if self.name == "NaN" else 1)

class Dies(Rung):
    "Takes its process with it in the fold that tests the first row."
    name = "dies"
    def fit(self, train, valid, seed):
        if 0 not in {*train.index, *valid.index}: os.kill(os.getpid(), signal.SIGKILL)
        return MeanRung().fit(train, valid, seed)

class Recovers(Rung):
    "Works once a file is there."
    name = "recovers"
    def __init__(self, path): self.path = path
    def fit(self, train, valid, seed):
        if not Path(self.path).exists(): raise OSError("the disk is on strike")
        return MeanRung().fit(train, valid, seed)

class NoRoom(Recovers):
    "Works once there is room."
    def fit(self, train, valid, seed):
        if not Path(self.path).exists(): raise FULL
        return MeanRung().fit(train, valid, seed)

ERRORS = {"breaks with RuntimeError": "RuntimeError: two lines", "breaks with MemoryError": "MemoryError: two lines",
          "NaN": "must be finite", "short": "must have the shape", "dies": "the worker died twice",
          "diverges": "diverged", "recovers": "the disk is on strike"}
FAILED = {"mean": 0, **dict.fromkeys(ERRORS, 2), "dies": 1, "last": 0} # trials of two
DIVERGING = dict(learning_rate=1e30, epochs=2, batch_size=4, max_length=16)


def climb(tiny_bert, folder, only=tuple(FAILED), **kwargs):
    rungs = [MeanRung(), Breaks("RuntimeError"), Breaks("MemoryError"), Nonsense("NaN", "nan"), Nonsense("short", "1"),
             Dies(), Recovers(str(folder/"strike is over")), Breaks("SystemExit")]
    named = {r.name: r for r in rungs} | dict(diverges=Recipe(**DIVERGING), last=Recipe(learning_rate=1e-3, **TINY))
    return run_ladder(GOOD, {n: named[n] for n in only}, folds=2, model=str(tiny_bert), out=folder/"out", jobs=2,
                      progress=False, **kwargs)


@pytest.fixture(scope="module")
def failed(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("failed")
    return folder, climb(tiny_bert, folder)


def test_failed_trials_are_recorded_and_the_rest_goes_on(failed):
    trials = [read_trial(p) for p in (failed[0]/"out"/"trials").glob("*.json")]
    assert len(trials) == 2 * len(FAILED) and None not in trials
    for t in trials:
        if t["error"]:
            assert ERRORS[t["rung"]] in t["error"] and "\n" not in t["error"]
            assert t["scores"] == {} and t["predictions"] is None
        else: assert np.isfinite(t["scores"]["test"]["rmse"]) and np.isfinite(t["scores"]["valid"]["rmse"])
    assert {n: sum(t["error"] is not None for t in trials if t["rung"] == n) for n in FAILED} == FAILED
    assert not list((failed[0]/"out"/"trials").glob("*.tmp"))

def test_the_table_counts_failed_trials(failed):
    folder, ladder = failed
    table, failures = ladder.table().set_index("rung"), sum(FAILED.values())
    assert table.failed.to_dict() == FAILED and len(ladder.failed) == failures
    assert table.test.isna().to_dict() == {n: k == 2 for n, k in FAILED.items()}
    assert pd.read_csv(folder/"out"/"table.csv").failed.tolist() == list(FAILED.values())
    assert (folder/"out"/"ladder.png").stat().st_size
    assert f"{failures} trial(s) failed" in ladder.show()

def test_only_retry_runs_failed_trials_again(failed, tiny_bert):
    "Without it no byte changes; with it the old files are kept as .broken and finished trials stay."
    folder, some = failed[0], ("mean", "NaN", "recovers", "last")
    (folder/"strike is over").touch()
    before = content(folder/"out"/"trials")
    assert len(climb(tiny_bert, folder).failed) == sum(FAILED.values()) and content(folder/"out"/"trials") == before
    table = climb(tiny_bert, folder, some, retry=True).table().set_index("rung")
    assert table.failed[list(some)].tolist() == [0, 2, 0, 0] and table.test.recovers == table.test["mean"]
    after = content(folder/"out"/"trials")
    aside = {k.split(".json")[0] + ".json": v for k, v in after.items() if k.endswith(".broken")}
    assert len(aside) == 4 and aside.items() <= before.items()
    assert {k: v for k, v in before.items() if k not in aside}.items() <= after.items()

def test_a_rung_that_calls_exit_ends_only_its_trial(tmp_path, tiny_bert):
    ladder = climb(tiny_bert, tmp_path, ("breaks with SystemExit", "mean"))
    assert ladder.table().failed.tolist() == [2, 0] and all("SystemExit" in t["error"] for t in ladder.failed)

def test_a_full_disk_ends_the_ladder_and_is_no_trials_fault(tmp_path, tiny_bert):
    def run(): return run_ladder(GOOD, [NoRoom(str(tmp_path/"room"))], folds=2, model=str(tiny_bert), out=tmp_path/"out", jobs=2, progress=False)
    with pytest.raises(OSError, match="No space left"): run()
    assert not list(tmp_path.glob("out/trials/*.json"))
    (tmp_path/"room").touch()
    assert run().failed == [] and not list(tmp_path.glob("out/trials/*.tmp"))

def test_failed_trials_at_the_command_line(place, capfd, monkeypatch):
    "Exit code 1 for as long as a failed trial is in the folder; JSON on stdout, progress on stderr."
    recipe = "recipe(learning_rate=1e30, epochs=2, batch_size=4, max_length=16)"
    command = f"ladder good.csv --target level --model tiny --folds 2 --jobs 2 --json --recipe '{recipe}'"
    code, out, err = advft(command, capfd)
    rows = json.loads(out)
    assert code == 1 and [r["failed"] for r in rows] == [0, 0, 0, 0, 2] and {r["out"] for r in rows} == {"runs/good"}
    assert [r["rung"] for r in rows[:4]] == ["mean", "TF-IDF + ridge", "frozen + ridge", "basic"]
    assert rows[4]["test"] is None
    assert "10/10 " in err and "runs/good/table.csv" in err and "--task classification" in err and "Traceback" not in err
    table = pd.read_csv("runs/good/table.csv")
    assert [r["test"] for r in rows[:4]] == table.test[:4].tolist() and set(rows[0]) == {*table.columns, "out"}
    trials = content(Path("runs/good/trials"))
    assert advft(command, capfd)[:2] == (1, out)
    assert content(Path("runs/good/trials")) == trials
    code, again, err = advft(command + " --retry", capfd)
    assert code == 1 and [r["test"] for r in json.loads(again)] == [r["test"] for r in rows]
    assert len(list(Path("runs/good/trials").glob("*.broken"))) == 2
    monkeypatch.setenv("COLUMNS", "70")
    code, text, err = advft(command.replace("--json", ""), capfd)
    assert max(map(len, text.splitlines())) <= 70
    assert code == 1 and "2 trial(s) failed" in text and "diverged" in text and "No verdict: 2 folds" in text


# --- interrupts

def test_an_interrupt_does_not_wait_for_a_long_trial(place):
    "SIGINT as a terminal sends it: to the command and to its workers."
    endless = "recipe(epochs=100000, batch_size=2, max_length=16)"
    p = process(f"ladder good.csv --model tiny --folds 2 --jobs 2 --recipe '{endless}'")
    finished = lambda: list(place.glob("runs/good/trials/*.json"))
    while p.poll() is None and len(finished()) < 5: time.sleep(0.1) # the endless one is the fifth to start
    workers, start = psutil.Process(p.pid).children(recursive=True), time.time()
    os.killpg(p.pid, signal.SIGINT)
    try: out, err = p.communicate(timeout=20)
    finally: p.kill()
    assert p.returncode == 130 and out == "" and "Traceback" not in err, err
    assert "run the same command to go on" in err
    def gone(w): return not w.is_running() or w.status() == psutil.STATUS_ZOMBIE
    while not all(map(gone, workers)) and time.time() - start < 25: time.sleep(0.1)
    assert all(map(gone, workers))
    assert [t["error"] for t in map(read_trial, finished())] == [None] * len(finished()) # the endless one did not fail

def test_an_interrupted_training_starts_anew(place, capfd, monkeypatch):
    monkeypatch.setattr("advft.train.fine_tune", fails(KeyboardInterrupt()))
    before = content(place)
    code, out, err = advft("train good.csv --model tiny --out model", capfd)
    assert (code, out, err) == (130, "", "interrupted; nothing was written, and the same command starts anew\n") and content(place) == before
