"""Peak memory of bitext retrieval, all sentences against all; prints it last.

    python benchmarks/bitext_memory.py --sentences 200000 --dimension 64

Vectors are random, targets are their sources with noise, so that accuracy shows that the right ones were found.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from distill.encoder.sentence_encoder import set_matmul_precision
from distill.scoring.search import nearest_neighbours


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=200_000, help="on either side")
    parser.add_argument("--dimension", type=int, default=64, help="of the vectors")
    parser.add_argument("--margin_k", type=int, default=0, help="4 for the ratio margin")
    return parser


def peak() -> float:
    """Peak resident memory of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_matmul_precision(device)
    random = np.random.default_rng(0)
    source = random.standard_normal((args.sentences, args.dimension), dtype=np.float32)
    target = source + 0.5 * random.standard_normal(source.shape, dtype=np.float32)
    nearest_neighbours(source[:100], target[:100], args.margin_k, device)
    before, start = peak(), time.perf_counter()
    found = nearest_neighbours(source, target, args.margin_k, device)
    accuracy = np.mean([(side == np.arange(args.sentences)).mean() for side in found])
    print(f"{args.sentences:,} x {args.sentences:,}: {time.perf_counter() - start:.0f} s, accuracy {accuracy:.4f}")
    once, sides = args.sentences**2 * 4 / 2**30, 2 * source.nbytes / 2**30
    print(f"all similarities at once would be {once:.1f} GB; the vectors are {sides:.2f} GB")
    print(f"peak resident memory: {peak():.2f} GB, of which the search {peak() - before:.2f} GB")


if __name__ == "__main__":
    main(build_parser().parse_args())
