"Small tables and tiny models that several tests use."
import pytest, torch, transformers
from hypothesis import settings

from advft.core import tiny_model, tiny_tokenizer
from advft.data import leveled_passages, sample_groups

settings.register_profile("same examples each time", derandomize=True)
settings.load_profile("same examples each time") # --hypothesis-profile=default looks for new ones


@pytest.fixture(autouse=True)
def quiet_transformers():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def save_tiny(folder, architecture="bert", **config):
    "A tiny random model with its tokenizer in `folder`."
    torch.manual_seed(0)
    side = "left" if architecture == "xlnet" else "right"
    tiny_model(architecture, **config).save_pretrained(folder)
    tiny_tokenizer(side).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory): return save_tiny(tmp_path_factory.mktemp("models")/"bert")


@pytest.fixture(scope="session")
def passages(): return sample_groups(leveled_passages(), "topic", 8)
