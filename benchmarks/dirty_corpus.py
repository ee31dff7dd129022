"""A corpus of which a part is spoiled: how much of each kind of dirt the filters of build_pairs.py find, and a model.

    DATA=data python benchmarks/dirty_corpus.py --score_model e5-small/ --min_similarity 0.82 --output_dir dirty/
    python benchmarks/variants.py --seeds 1 2 3 --vary "--pairs_dir dirty/clean" "--pairs_dir dirty/unfiltered" \\
      "--pairs_dir dirty/filtered" "--pairs_dir dirty/scored" -- --student_model_name_or_path student/ \\
      --teacher_model_name_or_path teacher/ --sts_dev 'stsb-{en,it}-dev.csv'

Of pairs of the TED-schema sample a tenth gets the translation of another sentence, a tenth one into another language,
a tenth the first half of its own. The four folders hold the pairs that were left alone, as the filters leave them,
all pairs (but too long ones), those that the filters leave, and those that the model leaves of these. The second
command trains on each.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import polars as pl
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent))

from distill.pairs.cleaning import FILTERS

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("DATA", "data"))
OFF = [name for name in FILTERS if name != "too_long"]
KINDS = ["clean", "another sentence", "another language", "half of it"]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--languages", nargs="+", default=["it", "es", "fr"])
    parser.add_argument("--pairs", type=int, default=6000, help="of each language")
    parser.add_argument("--score_model", required=True)
    parser.add_argument("--min_similarity", default="0.82")
    parser.add_argument("--seed", type=int, default=0, help="decides the pairs, and which are spoiled")
    parser.add_argument("--output_dir", required=True)
    return parser


def spoiled(args: argparse.Namespace) -> list[dict]:
    """Pairs with their `kind`, none of which has a sentence twice."""
    draw = random.Random(args.seed)
    rows = pl.read_parquet(DATA / "ted_multi_sample.parquet")["translations"].struct.unnest().to_dicts()
    texts = [dict(zip(row["language"], row["translation"], strict=True)) for row in rows]
    draw.shuffle(texts)
    pairs, seen = [], set()
    for language in args.languages:
        there = [row for row in texts if row.get("en") and row.get(language) and row["en"] not in seen]
        there = list({row["en"]: row for row in there}.values())[: args.pairs]
        seen.update(row["en"] for row in there)
        for row in there:
            kind = draw.choices(KINDS, [7, 1, 1, 1])[0]
            target, others = row[language], [row[tag] for tag in row if tag not in ("en", language) and row[tag]]
            if kind == "another sentence":
                target = draw.choice(there)[language]
            elif kind == "another language":
                kind, target = (kind, draw.choice(others)) if others else ("clean", target)
            elif kind == "half of it":
                target = " ".join(target.split()[: len(target.split()) // 2])
            pairs.append({"source": row["en"], "language": language, "target": target, "kind": kind})
    return pairs


def build(args: argparse.Namespace, name: str, pairs: list[dict], *options: str) -> set[tuple[str, str, str]]:
    """A folder of pairs; what is in it."""
    folder = Path(args.output_dir)
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for pair in pairs:
            file.write(json.dumps({key: pair[key] for key in ("source", "language", "target")}) + "\n")
    command = [sys.executable, ROOT / "build_pairs.py", "--corpus", folder / f"{name}.jsonl", *options]
    command += ["--target_languages", *args.languages, "--output_dir", folder / name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = (row for split in datasets.load_from_disk(folder / name).values() for row in split)
    return {(row["source"], target["language"], target["sentence"]) for row in rows for target in row["targets"]}


def main(args: argparse.Namespace) -> None:
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    pairs = spoiled(args)
    build(args, "clean", [pair for pair in pairs if pair["kind"] == "clean"])
    scored = ("--score_model", args.score_model, "--min_similarity", args.min_similarity)
    left = {
        "unfiltered": build(args, "unfiltered", pairs, "--skip", *OFF),
        "filtered": build(args, "filtered", pairs),
        "scored": build(args, "scored", pairs, *scored),
    }
    everything, rows = left.pop("unfiltered"), []
    for kind in KINDS:
        of_kind = {(pair["source"], pair["language"], pair["target"]) for pair in pairs if pair["kind"] == kind}
        of_kind &= everything  # but for the few that were mended
        rows.append([kind, len(of_kind), *(len(of_kind - kept) / len(of_kind) for kept in left.values())])
    headers = ["", "pairs", "dropped by the filters", "and by the model"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", ",", ".2%", ".2%"), intfmt=","))


if __name__ == "__main__":
    main(build_parser().parse_args())
