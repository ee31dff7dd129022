"""Translations planted among sentences that have none, as in BUCC: how many of them mine_pairs.py finds.

    DATA=data python benchmarks/mining.py --models intfloat/multilingual-e5-small run/student

1,000 pairs of English and German, half from Tatoeba and half from NTREX, in 20,000 sentences of either language. The
others are from the same corpora, from Multi30k and from the STS benchmark: each row of these is in one language only,
with its paraphrase, and no sentence stands there twice. Two processes on a CPU.
"""

import argparse
import gzip
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent))
from distill.pairs.tables import csv_rows

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("DATA", "data"))
PLANTED, SENTENCES, LONGEST = 1000, 20_000, 250
NTREX_LANGUAGES = 12  # that a row of NTREX has more than, of those in the TED-schema sample

Pairs = list[tuple[str, str]]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--prompt", default="", help="put before each sentence")
    parser.add_argument("--mixed_precision", default="bf16")
    parser.add_argument("--seed", type=int, default=1, help="decides which pairs are planted")
    parser.add_argument("--work_dir", default="benchmark/mining", help="folder for texts and pairs")
    return parser


def corpora() -> tuple[Pairs, ...]:
    """English and German of Tatoeba, NTREX, Multi30k, and STS, whose paraphrases stand side by side."""

    def lines(path: Path) -> list[str]:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            return file.read().splitlines()

    tatoeba, captions = (
        list(zip(*(lines(DATA / name.format(language)) for language in languages), strict=True))
        for name, languages in (
            ("tatoeba/tatoeba.deu-eng.{}", ("eng", "deu")),
            ("multi30k/train.{}.gz", ("en", "de")),
        )
    )
    english, german = (
        [row for _, row in csv_rows(str(DATA / f"stsb_multi_mt/stsb-{language}-train.csv"))]
        for language in ("en", "de")
    )
    paraphrases = [
        pair for one, other in zip(english, german, strict=True) for pair in zip(one[:2], other[:2], strict=True)
    ]
    ntrex = []
    for row in pl.read_parquet(DATA / "ted_multi_sample.parquet")["translations"]:
        sentences = dict(zip(row["language"], row["translation"], strict=True))
        if len(sentences) > NTREX_LANGUAGES and sentences.get("en") and sentences.get("de"):
            ntrex.append((sentences["en"], sentences["de"]))
    return tatoeba, ntrex, captions, paraphrases


def once(pairs: Pairs, seen: set[str]) -> Pairs:
    """The pairs, white space mended, without long ones and those of which a side was there before."""
    kept = []
    for pair in pairs:
        pair = tuple(" ".join(side.split()) for side in pair)
        folded = {re.sub(r"\W+", " ", side.lower()).strip() for side in pair}
        if not folded & seen and all(0 < len(side) <= LONGEST for side in pair):
            kept.append(pair)
            seen |= folded
    return kept


def plant(folder: Path, seed: int) -> set[tuple[str, str]]:
    """Write text.en and text.de; the pairs that are in both."""
    draw, seen = random.Random(seed), set()
    tatoeba, ntrex, *rest = (once(pairs, seen) for pairs in corpora())
    for pairs in (tatoeba, ntrex):
        draw.shuffle(pairs)
    half = PLANTED // 2
    planted = tatoeba[:half] + ntrex[:half]
    sides = [], []  # those in English, those in German
    for pairs in (tatoeba[half:], ntrex[half:], *rest):
        middle = len(pairs) // 2
        for side, part in zip(sides, (pairs[:middle], pairs[middle:]), strict=True):
            side += part
    folder.mkdir(parents=True, exist_ok=True)
    for place, language in enumerate(("en", "de")):
        alone = [pair[place] for pair in draw.sample(sides[place], SENTENCES - PLANTED)]
        text = [pair[place] for pair in planted] + alone
        draw.shuffle(text)
        (folder / f"text.{language}").write_text("\n".join(text) + "\n", encoding="utf-8")
        print(f"{language}: {len(text):,} sentences, {len(planted):,} of them planted")
    return set(planted)


def mine(args: argparse.Namespace, model: str, output: Path) -> list[dict]:
    """All pairs that the script finds, by falling margin, whatever the margin."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"{ROOT}/accelerate_configs/multi_cpu.yaml", "--mixed_precision", args.mixed_precision]
    command += [f"{ROOT}/mine_pairs.py", "--text", f"{args.work_dir}/text.{{en,de}}", "--model_name_or_path", model]
    command += ["--prompt", args.prompt, "--min_margin", "0", "--output_dir", str(output)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True)
    return pq.read_table(output / "pairs.parquet").to_pylist()


def scores(found: list[dict], planted: set[tuple[str, str]], margin: float) -> list[str]:
    """Precision, recall and F1 of the pairs down to a margin, x 100."""
    taken = [pair for pair in found if pair["margin"] >= margin]
    right = sum((pair["source"], pair["target"]) in planted for pair in taken)
    values = right / max(1, len(taken)), right / len(planted), 2 * right / (len(taken) + len(planted))
    return [f"{margin:.3f}", f"{len(taken):,}", *(f"{100 * value:.1f}" for value in values)]


def main(args: argparse.Namespace) -> None:
    folder = Path(args.work_dir)
    planted, rows = plant(folder, args.seed), []
    for model in args.models:
        output = folder / re.sub(r"\W+", "-", model).strip("-")
        found = mine(args, model, output)
        marks = sorted({round(pair["margin"], 3) for pair in found})
        best = max(marks, key=lambda margin: float(scores(found, planted, margin)[-1]))
        rows += [[model, *scores(found, planted, 1.04)], ["at its best margin", *scores(found, planted, best)]]
    headers = ["", "margin", "pairs", "precision", "recall", "F1"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    (folder / "scores.json").write_text(json.dumps([dict(zip(headers, row, strict=True)) for row in rows], indent=1))


if __name__ == "__main__":
    main(build_parser().parse_args())
