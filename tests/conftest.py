"""Tiny models and pairs that the tests make for themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

ROOT = Path(__file__).parent.parent
DATA = ROOT / os.environ.get("DATA", "../shared/data")
SAMPLES = ROOT / "samples"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

from build_pairs import build_parser as pairs_parser  # noqa: E402
from build_pairs import main as build_pairs  # noqa: E402
from encoder import SentenceEncoder  # noqa: E402

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real corpora are not at DATA")


def tiny_encoder(width: int = 32, seed: int = 0, transformer=None, **settings) -> SentenceEncoder:
    """A random BERT of two layers that reads words, then letters, of the samples; no dropout."""
    torch.manual_seed(seed)
    rows = [json.loads(line) for line in (SAMPLES / "talks.jsonl").open(encoding="utf-8")][:200]
    text = " ".join(sentence for row in rows for sentence in row["translations"]["translation"]).lower()
    letters = sorted(set(text) - {" "})
    vocabulary = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *sorted(text.split())])
    wordpiece = models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(wordpiece)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    defaults = {"pooling": "mean", "dense": nn.Sequential(), "normalize": False, "max_seq_length": 32}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    return SentenceEncoder(transformer or BertModel(config), fast, **(defaults | settings)).eval()


def saved(encoder: SentenceEncoder, folder: Path) -> str:
    folder.mkdir()
    encoder.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> str:
    """A folder that ends in Normalize, as the demo's teacher does."""
    return saved(tiny_encoder(seed=1, normalize=True), tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> str:
    return saved(tiny_encoder(seed=2), tmp_path_factory.mktemp("student") / "student")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> str:
    """200 rows of the samples in three target languages."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = (SAMPLES / "talks.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = folder / "pairs"
    command = f"--corpus {folder}/talks.jsonl --target_languages it de ar --dev_fraction 0.1 --output_dir {output}"
    build_pairs(pairs_parser().parse_args(command.split()))
    return str(output)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its state in singletons; each test starts without."""
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


def script(name: str, *arguments: str, processes: int = 0, **variables: str) -> subprocess.CompletedProcess:
    """Run a script as users do: by python, or through `accelerate launch` on 1 or 2 CPU processes."""
    launcher = [sys.executable, name]
    if processes:
        config = ROOT / "accelerate_configs" / ("cpu.yaml" if processes == 1 else "multi_cpu.yaml")
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), name]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | variables
    return subprocess.run(
        [*launcher, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300
    )
