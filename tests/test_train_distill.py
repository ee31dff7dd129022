"""The trainer: its loss against sentence-transformers, its steps, two processes, kill and resume, bad input."""

import argparse
import errno
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
import warnings
import weakref
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ROOT, SAMPLES, saved, script, tiny_encoder
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import MSELoss
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AlbertConfig,
    AlbertModel,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5EncoderModel,
)

from benchmarks.kill_and_resume import acting_in
from distill import ranks
from distill.command import UserError, run
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import read_json
from distill.pairs.pairs_folder import load_pairs
from distill.training.cache import content_fingerprint, fill
from distill.training.labels import Labelling
from distill.training.losses import Loss
from distill.training.steps import SIDES, RankStep, RankSteps, Steps, epoch_order, scratch
from distill.training.student import freeze, set_dropout, start_projection
from distill.training.teachers import teacher_fingerprint
from distill.training.tokens import TokenizedPairs
from distill.training.watching import Metrics, Tally, mean_similarity
from train_distill import build_parser, distillation_loss, main

STS = str(SAMPLES / "sts-{en,it}.csv")


def arguments(pairs, teacher, student, output_dir, *more) -> list[str]:
    return [
        *("--pairs_dir", pairs, "--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student),
        *("--output_dir", str(output_dir), "--learning_rate", "1e-3", "--max_tokens_per_batch", "128", *map(str, more)),
    ]


def train(*given) -> Path:
    main(build_parser().parse_args(arguments(*given)))
    return Path(given[3])


def known_by(checkpoint: Path) -> dict:
    """What a run knew at a checkpoint, beside weights, optimizer and schedule."""
    return torch.load(checkpoint / "custom_checkpoint_1.pkl")


def metrics(output_dir: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def refused(*given) -> bool:
    """Whether a run ends as after a user's mistake."""
    with pytest.raises(SystemExit) as end:
        run(main, build_parser().parse_args(arguments(*given)))
    return end.value.code == 2


@pytest.fixture
def tokenized(pairs, student, tmp_path):
    """The training split as the loop sees it, with the teacher's labels."""
    accelerator = Accelerator(cpu=True)
    dataset = load_pairs(pairs)["train"]
    encoder = SentenceEncoder.from_pretrained(student)
    content = content_fingerprint(dataset, accelerator)
    tokens = TokenizedPairs(dataset, content, encoder, tmp_path, accelerator)
    return SimpleNamespace(
        dataset=dataset, content=content, student=encoder, tokens=tokens, accelerator=accelerator, cache_dir=tmp_path
    )


def labels_of(tokenized, teacher: str, dtype: str = "float32") -> np.ndarray:
    where = {"train": tokenized.dataset}, tokenized.cache_dir, tokenized.accelerator
    return Labelling([teacher], [], None, False, dtype, *where).labels().of["train"]


# ---------------------------------------------------------------- the objective


@pytest.mark.parametrize("max_tokens", ["1", "100", "10000"])
@pytest.mark.parametrize("translations_per_source", [1, 3])
@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_loss_and_gradients_equal_those_of_sentence_transformers(
    pairs, tokenized, teacher, student, tmp_path, monkeypatch, max_tokens, translations_per_source, attention
):
    """A step of the real loop, 24 pairs cut into micro-batches of any size, against MSELoss over the same 24 pairs."""
    gradients = {}

    def keep(self, parameters, _):
        gradients.update(enumerate(None if p.grad is None else p.grad.clone() for p in parameters))
        return torch.tensor(0.0)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", keep)
    step = ("--batch_size", "24", "--seed", "3", "--max_train_steps", "1", "--logging_steps", "1")
    cut = ("--translations_per_source", str(translations_per_source), "--max_tokens_per_batch", max_tokens)
    cut += ("--attn_implementation", attention)
    output = train(pairs, teacher, student, tmp_path / "run", *step, *cut)

    teach, peer = SentenceEncoder.from_pretrained(teacher), SentenceTransformer(student, device="cpu").train()
    teach.normalize = False
    order = Steps(tokenized.tokens, 24, translations_per_source, temperature=1.0, seed=3)
    order[0]
    flat = [(row["source"], target["sentence"]) for row in tokenized.dataset for target in row["targets"]]
    sources, targets = zip(*(flat[pair] for pair in order.order[:24]), strict=True)
    features = [peer.preprocess(list(side)) for side in (sources, targets)]
    expected = MSELoss(peer)(features, torch.from_numpy(teach.encode(list(sources))))
    expected.backward()

    assert metrics(output, "loss") == [pytest.approx(expected.item(), rel=1e-6)]
    names = [name for name, _ in SentenceEncoder.from_pretrained(student).transformer.named_parameters()]
    found = {name: gradient for name, gradient in zip(names, gradients.values(), strict=True) if gradient is not None}
    peers = {name: p.grad for name, p in peer[0].auto_model.named_parameters() if p.grad is not None}
    assert set(found) == set(peers)
    norm = torch.stack([g.norm() for g in peers.values()]).norm()
    difference = torch.stack([(found[name] - peers[name]).norm() for name in peers]).norm()
    assert difference / norm < 1e-6


def test_loss_by_hand():
    """Two pairs of one source: label (1, 0), source vector (0, 0), translations (1, 1) and (1, 0)."""
    vectors = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    # Squared errors, mean over the 2 dimensions: 1/2 (twice, for 2 pairs), 1/2, 0; over 4 sentences: 3/8.
    weights, none = torch.tensor([2.0, 1.0, 1.0]), torch.zeros(0, 2)
    errors = distillation_loss(Loss({"mse": 1.0}, None, np.eye(2)), vectors, labels, weights, none)
    assert (errors.sum() / weights.sum()).item() == pytest.approx(3 / 8)


def test_labels_are_the_teachers_vectors_before_normalize(pairs, teacher, student, tmp_path):
    train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "1", "--cache_dir", str(tmp_path / "cache"))
    sources = load_pairs(pairs)["train"]["source"][:]
    raw = SentenceTransformer(teacher, device="cpu")
    raw.pop(2)
    expected = raw.encode(sources)
    found = [np.fromfile(path / "labels.bin", np.float32) for path in (tmp_path / "cache").glob("labels-*")]
    labels = next(array for array in found if array.size == expected.size).reshape(expected.shape)
    np.testing.assert_allclose(labels, expected, atol=1e-6)
    assert np.linalg.norm(labels, axis=1).std() > 1e-3


def test_labels_and_token_ids_are_found_by_a_second_run(pairs, teacher, student, tmp_path):
    cache = ["--max_train_steps", "1", "--cache_dir", str(tmp_path / "cache")]
    train(pairs, teacher, student, tmp_path / "run", *cache)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")}
    train(pairs, teacher, student, tmp_path / "again", *cache)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")} == before
    train(pairs, saved(tiny_encoder(seed=9), tmp_path / "other"), student, tmp_path / "third", *cache)
    assert len(list((tmp_path / "cache").glob("labels-*"))) == 4, "another teacher has labels of its own"


def test_labels_in_half_precision(tokenized, teacher):
    one, two = (labels_of(tokenized, teacher, dtype) for dtype in ("float32", "float16"))
    assert (one.dtype, two.dtype, two.nbytes) == (np.float32, np.float16, one.nbytes // 2)
    np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-6)


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from accelerate import Accelerator
from distill.training.cache import fill

def compute(start, stop):
    time.sleep(0.1)
    return {"numbers": np.arange(start, stop), "sums": np.cumsum(np.ones(stop - start, int))}

fill(Path(sys.argv[1]), 50, compute, Accelerator(cpu=True), "numbers", 4, {"sums": "numbers"})
"""


def test_what_was_computed_before_a_kill_is_not_computed_again(tmp_path):
    folder, record = tmp_path / "labels-1", tmp_path / "labels-1.tmp/done.json"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while read_json(record, {"rows": 0})["rows"] < 12:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read_json(record, {})["rows"]
    assert not folder.exists() and 12 <= kept < 50
    computed = []

    def compute(start: int, stop: int) -> dict:
        computed.append(start)
        return {"numbers": np.arange(start, stop), "sums": np.cumsum(np.ones(stop - start, int))}

    fill(folder, 50, compute, Accelerator(cpu=True), "numbers", 4, {"sums": "numbers"})
    assert computed == list(range(kept, 50, 4))
    assert np.fromfile(folder / "numbers.bin", int).tolist() == list(range(50))
    assert np.fromfile(folder / "sums.bin", int).tolist() == list(range(1, 51))
    assert [path.name for path in tmp_path.iterdir()] == ["labels-1"]


def numbers(start: int, stop: int) -> dict:
    return {"numbers": np.arange(start, stop)}


def test_what_an_unrecorded_run_left_is_no_part_of_the_result(tmp_path):
    """Killed before its first record, by a run whose arrays were longer."""
    (tmp_path / "labels-1.tmp").mkdir()
    np.arange(99).tofile(tmp_path / "labels-1.tmp/numbers.bin")
    fill(tmp_path / "labels-1", 10, numbers, Accelerator(cpu=True), "numbers", 4)
    assert np.fromfile(tmp_path / "labels-1/numbers.bin", int).tolist() == list(range(10))


@pytest.mark.parametrize(
    "damage", ["truncate -s 8 numbers.bin", "rm numbers.bin", "rm done.json", "echo 5 > done.json"]
)
def test_a_damaged_cache_is_known(tmp_path, damage):
    def numbers(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"numbers": np.arange(start, stop)}

    def run() -> None:
        fill(folder, 10, numbers, Accelerator(cpu=True), "numbers", 4)

    folder, growing = tmp_path / "labels-1", tmp_path / "labels-1.tmp"
    run()
    whole = folder.rename(growing)  # as if killed before the last step
    subprocess.run(damage, shell=True, cwd=whole, check=True)
    run()
    assert np.fromfile(folder / "numbers.bin", int).tolist() == list(range(10)), "a part is made anew"
    subprocess.run(damage, shell=True, cwd=folder, check=True)
    with pytest.raises(UserError, match=f"is damaged: remove {folder}, and it is made anew"):
        run()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    fill(tmp_path / "labels-1", 10, numbers, Accelerator(cpu=True), "numbers", 4)
    assert np.fromfile(tmp_path / "labels-1/numbers.bin", int).tolist() == list(range(10))


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory) -> str:
    return saved(tiny_encoder(width=48, seed=5), tmp_path_factory.mktemp("wide") / "teacher")


def test_label_pca_equals_numpys(pairs, wide_teacher, student, tmp_path):
    """A wider teacher's labels are its vectors in the directions of most variance, found by SVD here."""
    cache = tmp_path / "cache"
    train(
        pairs,
        wide_teacher,
        student,
        tmp_path / "run",
        "--max_train_steps",
        "2",
        "--label_pca",
        "--cache_dir",
        str(cache),
    )
    vectors = SentenceTransformer(wide_teacher, device="cpu").encode(load_pairs(pairs)["train"]["source"][:])
    directions = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][:32]
    expected = vectors @ directions.T
    found = [np.fromfile(path / "labels.bin", np.float32) for path in cache.glob("labels-*")]
    labels = next(array for array in found if array.size == expected.size).reshape(expected.shape)
    signs = np.sign((labels * expected).sum(0))
    np.testing.assert_allclose(labels, signs * expected, atol=1e-4)
    assert len(list(cache.glob("pca-*"))) == 1


def test_a_projection_starts_where_the_loss_is_least(tokenized, wide_teacher):
    """As near to the labels as the same least squares with a column of ones, by weights that are no larger."""
    student, dataset = tokenized.student, tokenized.dataset
    labels = labels_of(tokenized, wide_teacher)
    sides = [[row["source"], *(target["sentence"] for target in row["targets"])] for row in dataset]
    vectors = student.encode([sentence for texts in sides for sentence in texts])
    expected = labels[np.repeat(np.arange(len(dataset)), [len(texts) for texts in sides])]
    ones = np.ones((len(vectors), 1))
    solution, *_ = np.linalg.lstsq(np.hstack([vectors, ones]).astype(float), expected.astype(float))
    linear = torch.nn.Linear(32, 48)
    student.dense.append(torch.nn.Sequential(linear, torch.nn.Identity()))
    start_projection(student, dataset, labels, tokenized.accelerator)
    assert student.dimension == 48 and student.dense[-1][0] is linear
    found = student.encode([sentence for texts in sides for sentence in texts])
    least = np.square(np.hstack([vectors, ones]) @ solution - expected).mean()
    assert np.square(found - expected).mean() == pytest.approx(least, rel=0.01) and least > 0.01
    assert linear.weight.norm() < np.linalg.norm(solution)


@pytest.mark.parametrize("width", [24, 48])
def test_a_trained_projection_is_exported(pairs, student, tmp_path, width):
    teacher = saved(tiny_encoder(width=width, seed=5), tmp_path / "teacher")
    output = train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "20", "--projection")
    losses = metrics(output, "loss")
    assert losses[-1] < losses[0]
    peer = SentenceTransformer(str(output / "student"), device="cpu")
    assert peer.encode(["I love plants."]).shape == (1, width)


# ---------------------------------------------------------------- the steps


def test_an_epoch_takes_every_pair_once_in_steps_of_batch_size(tokenized):
    tokens = tokenized.tokens
    steps = Steps(tokens, 50, 2, 1.0, seed=0)
    sources = tokens.source_of_row(np.arange(len(tokenized.dataset)))
    sentence, language_of = 0, {}
    for row in tokenized.dataset:
        language_of |= {sentence + 1 + i: target["language"] for i, target in enumerate(row["targets"])}
        sentence += 1 + len(row["targets"])
    assert tokens.languages == LANGUAGES
    taken = []
    for step in range(steps.per_epoch):
        (sentences, label_rows, weights, languages) = steps[step]
        n = steps.pairs_before(step + 1) - steps.pairs_before(step)
        targets = sentences[len(sentences) - n :]
        taken += targets.tolist()
        assert n == 50 or step == steps.per_epoch - 1
        assert weights.sum() == 2 * n, "each pair counts its source and its target"
        assert np.array_equal(label_rows[-n:], np.searchsorted(sources, targets, side="right") - 1)
        assert np.array_equal(sources[label_rows[:-n]], sentences[:-n])
        assert np.array_equal(languages[-n:], [LANGUAGES.index(language_of[target]) + 1 for target in targets])
        assert not languages[:-n].any()
    assert sorted(taken) == sorted(language_of)
    assert len(taken) == sum(len(row["targets"]) for row in tokenized.dataset)


LANGUAGES = ["ar", "de", "it"]


def test_steps_are_a_pure_function_of_seed_epoch_and_step(tokenized):
    steps, again = (Steps(tokenized.tokens, 32, 2, 1.0, seed=5) for _ in range(2))
    late = steps.per_epoch + 2
    expected = steps[late][0]
    for step in range(late):
        again[step]
    assert np.array_equal(again[late][0], expected)
    assert not np.array_equal(steps[2][0], expected), "epochs differ"
    assert not np.array_equal(Steps(tokenized.tokens, 32, 2, 1.0, seed=6)[late][0], expected), "seeds differ"


def tables(folder, languages_of_rows: list[list[int]]) -> SimpleNamespace:
    """The tables of TokenizedPairs for rows with translations into the languages given by number."""
    counts = [len(languages) for languages in languages_of_rows]
    return SimpleNamespace(
        folder=folder,
        languages=[str(number) for number in range(1 + max(map(max, languages_of_rows)))],
        first_pair=np.cumsum([0, *counts]),
        row_of_pair=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        language_of_pair=np.concatenate(languages_of_rows).astype(np.int32),
    )


def room_for(pairs) -> np.ndarray:
    return np.empty((4, len(pairs.row_of_pair) + 1), np.int32)


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("block", [7, 1000])
def test_translations_of_a_source_come_in_groups(tmp_path, most, block):
    pairs = tables(tmp_path, [[0, 1, 2]] * 40)
    order = epoch_order(pairs, room_for(pairs), most, 1.0, seed=0, epoch=0, block=block)
    assert sorted(order) == list(range(120))
    runs = np.diff(np.flatnonzero(np.diff(pairs.row_of_pair[order], prepend=-1, append=-1)))
    assert (runs == most).mean() > 0.4, "groups stay together"
    if most == 3:
        assert set(runs) == {3}
    starts = order[np.flatnonzero(np.diff(pairs.row_of_pair[order], prepend=-1))]
    assert set(starts % 3) == {0, 1, 2}, "any translation may come first"
    scratch(tmp_path, 4, 10)[:] = 1
    assert not list(tmp_path.iterdir()), "nothing is left in the folder"


def test_language_temperature_evens_out_the_languages(tmp_path):
    """Language 0 has 900 pairs, 1 has 90, 2 has 10."""
    pairs = tables(tmp_path, [[0, 1, 2]] * 10 + [[0, 1]] * 80 + [[0]] * 810)
    languages = pairs.language_of_pair

    def takes(temperature: float, epoch: int = 0) -> np.ndarray:
        return np.bincount(epoch_order(pairs, room_for(pairs), 2, temperature, 0, epoch, block=64), minlength=1000)

    def of_languages(times: np.ndarray) -> list[int]:
        return np.bincount(languages, weights=times).astype(int).tolist()

    assert of_languages(takes(1)) == [900, 90, 10]
    # Square roots 30, 9.487, 3.162 of the counts, brought to 1000 pairs.
    assert of_languages(takes(2)) == [703, 223, 74]
    assert of_languages(takes(1e9)) == [333, 334, 333]
    for language in range(3):
        its = takes(2)[languages == language]
        assert its.max() - its.min() <= 1, "a language's pairs are taken equally often"
    seen = sum(takes(1e9, epoch) for epoch in range(30))
    assert seen[languages == 0].min() >= 3, "in time all pairs have their turn: 30 epochs x 333 / 900 are 11 each"


@pytest.mark.parametrize("world", [1, 2, 3, 100])
def test_ranks_share_a_step(tokenized, world):
    tokens = tokenized.tokens
    labels = np.zeros((len(tokenized.dataset), 4), dtype=np.float32)
    steps, device = Steps(tokens, 16, 2, 1.0, seed=0), torch.device("cpu")
    all_ranks = [SimpleNamespace(process_index=rank, num_processes=world, device=device) for rank in range(world)]
    shares = [RankSteps(steps, labels, tokenized.student, True, 64, rank)[0] for rank in all_ranks]
    assert all(share.sizes for share in shares), "a rank without a sentence would leave the others waiting"
    assert len({len(share.sizes) for share in shares}) == 1, "all take as many forwards"
    assert sum(share.weights.sum().item() for share in shares) == 2 * 16
    tokens_of = [sum(inputs["input_ids"].numel() for inputs in share.inputs) for share in shares]
    if world <= 3:
        assert max(tokens_of) - min(tokens_of) <= tokens.lengths(np.arange(len(tokens.offsets) - 1)).max()


def test_every_step_has_a_bank_of_its_own(tokenized):
    """Of as many rows as are asked for, or all; the seed and the number of the step decide, whatever came before."""
    rows = len(tokenized.dataset)
    steps, others, all_rows = (
        Steps(tokenized.tokens, 16, 2, 1.0, *of) for of in ((3, SIDES, 9), (4, SIDES, 9), (3, SIDES, 10**6))
    )
    banks = [steps.bank(step) for step in (0, 1, 500)]
    assert [len(set(bank)) for bank in banks] == [9, 9, 9] and max(map(max, banks)) < rows
    assert not np.array_equal(banks[0], banks[1]) and not np.array_equal(banks[0], others.bank(0))
    assert np.array_equal(steps.bank(1), banks[1])
    assert np.array_equal(all_rows.bank(0), np.arange(rows))


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_come_one_after_the_other_from_any_on_and_draw_no_random_numbers(tokenized, workers):
    labels = np.random.default_rng(0).standard_normal((len(tokenized.dataset), 4), dtype=np.float32)
    steps = Steps(tokenized.tokens, 50, 2, 1.0, seed=0, bank_size=7)
    parts = RankSteps(steps, labels, tokenized.student, True, 64, tokenized.accelerator)
    state = torch.get_rng_state()
    found = list(parts.coming(steps.per_epoch - 2, steps.per_epoch + 3, workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found) == 5 and found[1].pairs == len(tokenized.tokens.row_of_pair) % 50
    for number, step in enumerate(found, steps.per_epoch - 2):
        expected = steps[number]
        assert np.array_equal(step.bank, labels[steps.bank(number)])
        assert np.array_equal(np.sort(step.rows), np.sort(expected.rows))
        assert np.array_equal(step.labels, labels[step.rows])
        assert (
            step.weights.sum() == 2 * step.pairs and step.tokens == tokenized.tokens.lengths(expected.sentences).sum()
        )


def test_a_worker_gives_more_tensors_than_files_may_be_open(tokenized):
    """A step of over a thousand micro-batches, where a process may open 256 files unless it asks for more."""
    labels = np.zeros((len(tokenized.dataset), 4), dtype=np.float32)
    steps = Steps(tokenized.tokens, 600, 1, 1.0, seed=0)
    parts = RankSteps(steps, labels, tokenized.student, True, 1, tokenized.accelerator)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        found = next(parts.coming(0, 2, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(found.sizes) == len(steps[0].sentences) > 500


class Waits(TorchDispatchMode):
    """Notes what would have the host wait for a GPU: numbers read from tensors, and shapes that depend on values."""

    WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.equal")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        indices = args[1] if str(function).startswith("aten.index") and isinstance(args[1], list) else []
        if str(function).startswith(self.WAITING) or any(i is not None and i.dtype == torch.bool for i in indices):
            self.found.append("".join(traceback.format_stack(limit=12)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_no_step_waits_for_the_device(pairs, teacher, student, tmp_path, monkeypatch, attention):
    """From its tensors on the device to the update of the weights."""
    on, add, waits = RankStep.on, Tally.add, Waits()

    def begin(self, device) -> RankStep:
        moved = on(self, device)
        waits.__enter__()
        return moved

    def end(self, *given) -> None:
        add(self, *given)
        waits.__exit__(None, None, None)

    monkeypatch.setattr(RankStep, "on", begin)
    monkeypatch.setattr(Tally, "add", end)
    more = ("--loss", "mse", "cosine", "contrastive", "distribution", "similarity", "--attn_implementation", attention)
    train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "2", "--eval_steps", "1", *more)
    assert not waits.found, waits.found[0]
    with waits:
        print(torch.ones(1).item(), torch.ones(2)[torch.tensor([True, False])])
    assert len(waits.found) == 2


def test_what_is_tallied_is_where_the_errors_are(pairs, teacher, student, tmp_path, monkeypatch):
    """A step is tallied as it is on the device: on a GPU its weights would else lie beside the errors' sums."""
    on, add, moved, tallied = RankStep.on, Tally.add, [], []

    def watched_on(self, device) -> RankStep:
        moved.append(on(self, device))
        return moved[-1]

    def watched_add(self, number: int, step: RankStep, *more) -> None:
        tallied.append(step)
        add(self, number, step, *more)

    monkeypatch.setattr(RankStep, "on", watched_on)
    monkeypatch.setattr(Tally, "add", watched_add)
    train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "2")
    assert len(tallied) == 2 and all(one is other for one, other in zip(tallied, moved, strict=True))


@pytest.mark.parametrize(
    "place, workers, error",
    [
        ("forward", 0, torch.OutOfMemoryError("simulated")),
        ("forward", 1, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        ("copy", 0, RuntimeError("CUDA error: out of memory")),
    ],
)
def test_out_of_memory_halves_the_forward_and_does_the_step_again(
    pairs, teacher, student, tmp_path, capsys, monkeypatch, place, workers, error
):
    """A device that holds 100 tokens, in a run that asks for 400. What the forward held is let go before the next."""
    more = ["--max_train_steps", "4", "--logging_steps", "1", "--max_tokens_per_batch"]
    whole = train(pairs, teacher, student, tmp_path / "whole", *more, "100")
    forward, on, failures = SentenceEncoder.forward, RankStep.on, []

    def check(tokens: int) -> None:
        assert not failures or failures[-1]() is None, "activations are still held"
        if tokens > 100:
            activations = torch.zeros(1)
            failures.append(weakref.ref(activations))
            raise type(error)(*error.args)  # with the frame that holds them

    def small_device(self, input_ids, **more):
        if self.training:
            check(input_ids.numel())
        return forward(self, input_ids, **more)

    def small_for_copies(self, device):
        check(max(inputs["input_ids"].numel() for inputs in self.inputs))
        return on(self, device)

    if place == "forward":
        monkeypatch.setattr(SentenceEncoder, "forward", small_device)
    else:
        monkeypatch.setattr(RankStep, "on", small_for_copies)
    output = train(pairs, teacher, student, tmp_path / "run", *more, "400", "--dataloader_num_workers", workers)
    assert len(failures) == 2, "what a step met, later steps know"
    assert "out of memory: from here on 100 tokens a forward" in capsys.readouterr().err
    assert metrics(output, "loss") == metrics(whole, "loss")
    one, two = (load_file(folder / "student/model.safetensors") for folder in (output, whole))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_out_of_memory_for_the_optimizer_ends_the_run(pairs, teacher, student, tmp_path, capsys, monkeypatch):
    def step(self, closure=None):
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert refused(pairs, teacher, student, tmp_path / "run")
    error = capsys.readouterr().err
    assert "error: out of memory for the optimizer, which keeps two numbers for each trained weight: train" in error
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run/student").exists()


# ---------------------------------------------------------------- what a model folder says


def test_a_student_s_last_normalize_is_left_out_while_training_and_saved(pairs, teacher, tmp_path):
    """It learns what the same student without it learns."""
    runs, more = {}, ["--max_train_steps", "4", "--logging_steps", "1", "--projection"]
    for normalize in (False, True):
        student = saved(tiny_encoder(seed=2, normalize=normalize), tmp_path / f"student-{normalize}")
        runs[normalize] = train(pairs, teacher, student, tmp_path / f"run-{normalize}", *more)
    assert metrics(runs[True], "loss") == metrics(runs[False], "loss")
    assert metrics(runs[True], "bitext") == metrics(runs[False], "bitext")
    kinds = {end: [m["type"].split(".")[-1] for m in read_json(runs[end] / "student/modules.json", [])] for end in runs}
    assert kinds == {False: ["Transformer", "Pooling", "Dense"], True: ["Transformer", "Pooling", "Dense", "Normalize"]}


def test_a_default_prompt_is_read_in_training_too(tokenized, tmp_path):
    prompted = tiny_encoder(seed=2, prompts={"query": "Amo "}, default_prompt_name="query")
    tokens = TokenizedPairs(tokenized.dataset, tokenized.content, prompted, tmp_path, tokenized.accelerator)
    assert tokens.fingerprint != tokenized.tokens.fingerprint
    row = tokenized.dataset[0]
    for number, sentence in enumerate([row["source"], *(target["sentence"] for target in row["targets"])]):
        assert np.array_equal(tokens[number], prompted.tokenizer("Amo " + sentence)["input_ids"][:32])


def test_labels_are_named_by_all_that_decides_them(tmp_path, monkeypatch):
    count = itertools.count()

    def named(activation=None, prompt=None, **settings) -> str:
        dense = nn.Sequential(nn.Sequential(nn.Linear(32, 32), activation or nn.Tanh()))
        nn.init.ones_(dense[0][0].weight), nn.init.ones_(dense[0][0].bias)
        encoder = tiny_encoder(dense=dense, prompts={"query": prompt or ""}, default_prompt_name="query")
        encoder.transformer.config.update(settings)
        folder = saved(encoder, tmp_path / f"{next(count)}")
        Path(folder, "README.md").write_text(folder)
        Path(folder, "args.json").write_text(json.dumps({"output_dir": folder}))
        return teacher_fingerprint(Path(folder), {})

    assert named() == named(_name_or_path="elsewhere")
    changes = {"layer_norm_eps": 0.1}, {"num_attention_heads": 4}, {"prompt": "a "}, {"activation": nn.Identity()}
    assert len({named(), *(named(**change) for change in changes)}) == 5
    one = named()
    assert teacher_fingerprint(tmp_path / "0", {"max_seq_length": 8}) != one
    torch.save({}, tmp_path / "0/pytorch_model.bin")  # beside the safetensors nobody reads it
    assert teacher_fingerprint(tmp_path / "0", {}) == one
    weights = load_file(tmp_path / "0/2_Dense/model.safetensors")
    save_file({name: weight + 1e-3 for name, weight in weights.items()}, tmp_path / "0/2_Dense/model.safetensors")
    assert teacher_fingerprint(tmp_path / "0", {}) != one
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert named() == one
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert named() != one, "TF32"


def test_dropout_is_set_wherever_a_module_keeps_its_rate():
    """T5's attention hands its own to a function."""
    config = T5Config(vocab_size=3000, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.5)
    encoder = tiny_encoder(transformer=T5EncoderModel(config))
    inputs = encoder.inputs(encoder.token_ids(["Amo le piante.", "a"]))
    expected = encoder(**inputs)
    set_dropout(encoder.train(), 0.0)
    assert torch.equal(encoder(**inputs), expected) and config.dropout_rate == 0.5
    set_dropout(encoder, 0.1)
    rates = {name: m.dropout for name, m in encoder.named_modules() if name.endswith("SelfAttention")}
    assert set(rates.values()) == {0.1} and not torch.equal(encoder(**inputs), expected)


@pytest.mark.parametrize(
    "transformer, first",
    [
        (lambda: T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2)), "encoder.block.0."),
        (lambda: GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=2, n_head=2)), "h.0."),
    ],
)
def test_the_first_layers_are_frozen_whatever_they_are_called(transformer, first):
    encoder = tiny_encoder(transformer=transformer())
    freeze(encoder, embeddings=False, layers=1)
    frozen = {name for name, parameter in encoder.transformer.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in encoder.transformer.named_parameters() if name.startswith(first)}


def test_one_layer_s_weights_that_all_share_are_not_frozen():
    albert = AlbertModel(AlbertConfig(vocab_size=9, embedding_size=8, hidden_size=8, num_attention_heads=2))
    with pytest.raises(UserError, match="--freeze_layers 1: AlbertModel has no list of separate layers"):
        freeze(tiny_encoder(transformer=albert), embeddings=False, layers=1)


# ---------------------------------------------------------------- the run


def test_a_run_learns_and_leaves_what_it_promises(pairs, teacher, student, tmp_path, capsys):
    more = ["--num_train_epochs", "2", "--eval_steps", "8", "--checkpointing_steps", "8", "--sts_dev", STS]
    output = train(pairs, teacher, student, tmp_path / "run", *more)
    said = capsys.readouterr().out
    assert "the teacher ends in Normalize" in said
    assert "--max_seq_length 128: the student reads 32 tokens at most" in said
    assert re.search(r"pairs/s; on each process \d+ tokens/s, 0.0% padding, \d+\.\d\d GB at the peak", said)
    by_language = metrics(output, "loss_by_language")[-1]
    assert set(by_language) == {"source", *LANGUAGES}
    losses, scores = metrics(output, "loss"), metrics(output, "spearman_cosine")
    assert min(by_language.values()) < losses[-1] < max(by_language.values())
    assert losses[-1] < 0.9 * losses[0]
    per_epoch = -(-len(metrics_pairs(pairs)) // 64)
    assert metrics(output, "step")[-1] == 2 * per_epoch
    assert {path.name for path in output.iterdir()} == {
        *("args.json", "metrics.jsonl", "curves.png", "student", "last"),
        *(f"checkpoint-{step}" for step in (8 * (2 * per_epoch // 8), 2 * per_epoch)),
    }
    best = SentenceEncoder.from_pretrained(str(output / "student"))
    start = SentenceEncoder.from_pretrained(student)
    sentences = load_pairs(pairs)["dev"]["source"][:]
    target = SentenceEncoder.from_pretrained(teacher)
    target.normalize = False
    error = [np.square(model.encode(sentences) - target.encode(sentences)).mean() for model in (start, best)]
    assert error[1] < error[0]
    peer = SentenceTransformer(str(output / "student"), device="cpu")
    np.testing.assert_allclose(peer.encode(sentences), best.encode(sentences), atol=1e-5)
    assert known_by(output / f"checkpoint-{2 * per_epoch}")["best_score"] == max(scores[1:])


def test_frozen_parts_stay_and_the_others_learn(pairs, teacher, student, tmp_path):
    more = ["--max_train_steps", "3", "--freeze_embeddings", "--freeze_layers", "1"]
    output = train(pairs, teacher, student, tmp_path / "run", *more)
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (student, output / "student"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if "word_embeddings" in name or "layer.0." in name}
    assert same == frozen | {name for name in before if name.startswith("pooler")}


def test_gradient_checkpointing_changes_memory_only(pairs, teacher, student, tmp_path):
    more = ["--max_train_steps", "5", "--logging_steps", "1"]
    plain = train(pairs, teacher, student, tmp_path / "plain", *more)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        output = train(pairs, teacher, student, tmp_path / "run", *more, "--gradient_checkpointing")
    np.testing.assert_allclose(metrics(output, "loss"), metrics(plain, "loss"), rtol=1e-5)


def test_a_student_that_cannot_be_packed_is_padded_and_said_so_only_when_asked(pairs, teacher, tmp_path, capsys):
    config = MPNetConfig(**tiny_encoder().transformer.config.to_diff_dict() | {"model_type": "mpnet"})
    student = saved(tiny_encoder(transformer=MPNetModel(config)), tmp_path / "student")
    train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "1")
    assert refused(pairs, teacher, student, tmp_path / "other", "--attn_implementation", "packed")
    assert "error: --attn_implementation packed: MPNetModel on cpu, as it is trained here" in capsys.readouterr().err


def test_compiled_padded_batches_learn_what_packed_ones_learn(pairs, teacher, student, tmp_path, monkeypatch):
    """Traced and differentiated as for inductor, whose code would take a minute to build."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    more = ["--max_train_steps", "5", "--logging_steps", "1"]
    plain = train(pairs, teacher, student, tmp_path / "plain", *more)
    output = train(pairs, teacher, student, tmp_path / "run", *more, "--torch_compile")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "something was compiled"
    np.testing.assert_allclose(metrics(output, "loss"), metrics(plain, "loss"), rtol=1e-5)
    assert load_file(output / "student/model.safetensors").keys() == load_file(f"{student}/model.safetensors").keys()


def test_bf16_learns_what_fp32_learns(pairs, teacher, student, tmp_path, in_bf16, capsys):
    more = ["--max_train_steps", "10", "--logging_steps", "1"]
    plain = train(pairs, teacher, student, tmp_path / "plain", *more)
    in_bf16()
    output = train(pairs, teacher, student, tmp_path / "run", *more)
    assert "mixed precision: bf16" in capsys.readouterr().out
    assert metrics(output, "loss") != metrics(plain, "loss"), "it computed in half precision"
    np.testing.assert_allclose(metrics(output, "loss"), metrics(plain, "loss"), rtol=0.02)
    weights = load_file(output / "student/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    "precision, why", [("bf16", "this CPU has no instructions for bf16"), ("fp16", "fp16 needs a GPU")]
)
def test_a_precision_that_the_cpu_has_not_is_fp32(
    pairs, teacher, student, tmp_path, monkeypatch, capsys, precision, why
):
    more = ["--max_train_steps", "3", "--logging_steps", "1"]
    plain = train(pairs, teacher, student, tmp_path / "plain", *more)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    AcceleratorState._reset_state(True)
    output = train(pairs, teacher, student, tmp_path / "run", *more)
    assert f"{why}: this run computes in fp32" in capsys.readouterr().out
    np.testing.assert_allclose(metrics(output, "loss"), metrics(plain, "loss"), rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 with loss scaling needs a GPU")
def test_fp16_learns_what_fp32_learns(pairs, teacher, student, tmp_path, monkeypatch):
    more = ["--max_train_steps", "10", "--logging_steps", "1"]
    plain = train(pairs, teacher, student, tmp_path / "plain", *more)
    AcceleratorState._reset_state(True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    output = train(pairs, teacher, student, tmp_path / "run", *more)
    np.testing.assert_allclose(metrics(output, "loss"), metrics(plain, "loss"), rtol=0.02)


def test_early_stopping_and_the_metric_of_the_best_student(pairs, teacher, student, tmp_path):
    """At a learning rate that does harm, the first evaluation stays the best and two more end the run."""
    more = ["--max_train_steps", "60", "--eval_steps", "4", "--learning_rate", "1", "--early_stopping_patience", "2"]
    more += ["--sts_dev", STS, "--metric_for_best_model", "mean_accuracy"]
    output = train(pairs, teacher, student, tmp_path / "run", *more)
    accuracy = metrics(output, "mean_accuracy")[1:]
    best = int(np.argmax(accuracy))
    assert len(accuracy) == best + 3 < 15
    last = 4 * len(accuracy)
    state = known_by(output / f"checkpoint-{last}")
    assert (state["best_step"], state["best_score"]) == (4 * (best + 1), accuracy[best])
    again = train(pairs, teacher, student, output, *more, "--resume_from_checkpoint", "latest")
    assert metrics(again, "step")[-1] == last, "a run that was stopped stays so"


def test_tensorboard_gets_what_metrics_jsonl_gets(pairs, teacher, student, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    more = ["--max_train_steps", "4", "--logging_steps", "2", "--report_to", "tensorboard"]
    output = train(pairs, teacher, student, tmp_path / "run", *more)
    events = event_accumulator.EventAccumulator(str(output / "train_distill"))
    events.Reload()
    logged = {tag: [event.value for event in events.Scalars(tag)] for tag in ("loss", "bitext/it/mean_accuracy")}
    assert logged["loss"] == pytest.approx(metrics(output, "loss"))
    assert logged["bitext/it/mean_accuracy"] == pytest.approx(
        [scores["it"]["mean_accuracy"] for scores in metrics(output, "bitext")]
    )


def test_trackio_gets_what_metrics_jsonl_gets(pairs, teacher, student, tmp_path):
    pytest.importorskip("trackio")
    more = ["--max_train_steps", "4", "--logging_steps", "2", "--report_to", "trackio"]
    folder = str(tmp_path / "trackio")
    given = arguments(pairs, teacher, student, tmp_path / "run", *more)
    codes, _, errors = forked.run(tmp_path / "said", "train_distill.py", *given, TRACKIO_DIR=folder)
    assert codes == [0], errors
    [path] = Path(folder).glob("*.db")
    rows = sqlite3.connect(path).execute("select metrics from metrics order by step").fetchall()
    logged = [json.loads(row) for (row,) in rows]
    assert [line["loss"] for line in logged if "loss" in line] == pytest.approx(metrics(tmp_path / "run", "loss"))

    # A run that goes on is the same run there
    more += ["--max_train_steps", "8", "--lr_scheduler_type", "constant", "--checkpointing_steps", "2"]
    for number, again in enumerate(([], ["--max_train_steps", "12", "--resume_from_checkpoint", "latest"])):
        given = arguments(pairs, teacher, student, tmp_path / "longer", *more, *again)
        codes, _, errors = forked.run(tmp_path / f"longer{number}", "train_distill.py", *given, TRACKIO_DIR=folder)
        assert codes == [0], errors
    query = "select run_name, max(step) from metrics group by run_name order by max(step)"
    names, steps = zip(*sqlite3.connect(path).execute(query).fetchall(), strict=True)
    assert steps == (4, 12) and names[1] == json.loads((tmp_path / "longer/args.json").read_text())["tracked_as"]


def test_the_last_student_is_kept_beside_the_best(pairs, teacher, student, tmp_path, monkeypatch):
    """The first evaluation is the best here; that of the start is left out if asked."""
    scores = [0.3, 0.2, 0.1]  # after steps 4, 8 and 12
    found = {"bitext": {}, "mean_similarity": 0.0}
    monkeypatch.setattr("train_distill.evaluate", lambda *_: found | {"mean_accuracy": scores.pop(0)})
    more = ["--max_train_steps", "12", "--eval_steps", "4", "--skip_first_evaluation"]
    output = train(pairs, teacher, student, tmp_path / "run", *more)
    made = [json.loads((output / name / "args.json").read_text()) for name in ("student", "last")]
    assert [(one["step"], one["score"]) for one in made] == [(4, 0.3), (12, 0.1)] and not scores
    saved, checkpoint = (load_file(output / folder / "model.safetensors") for folder in ("last", "checkpoint-12"))
    assert all(torch.equal(checkpoint[f"transformer.{name}"], weights) for name, weights in saved.items())


def metrics_pairs(pairs) -> list:
    return [target for row in load_pairs(pairs)["train"] for target in row["targets"]]


def test_two_processes_take_the_same_steps_as_one(pairs, teacher, student, tmp_path):
    runs = []
    for processes in (1, 2):
        output = tmp_path / f"run{processes}"
        more = ["--max_train_steps", "9", "--logging_steps", "1", "--cache_dir", str(tmp_path / f"cache{processes}")]
        given = arguments(pairs, teacher, student, output, *more)
        codes, said, errors = forked.run(tmp_path / f"said{processes}", "train_distill.py", *given, processes=processes)
        assert codes == [0] * processes, errors
        assert f"{processes} process(es) on cpu" in said
        runs.append(output)
    np.testing.assert_allclose(metrics(runs[1], "loss"), metrics(runs[0], "loss"), rtol=1e-5)
    one, two = (load_file(output / "student/model.safetensors") for output in runs)
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-4, rtol=1e-3)
    folders = [tmp_path / "cache1", tmp_path / "cache2"]
    names = [{path.relative_to(folder) for path in folder.rglob("*.bin")} for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:
        one, two = (np.fromfile(folder / name, np.float32) for folder in folders)
        np.testing.assert_allclose(two, one, atol=1e-6)


# ---------------------------------------------------------------- guard rails


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_sentences(pairs, teacher, student, tmp_path, capsys):
    """Labels of two rows are spoilt on disk; the first step that meets one of them is named, with its sentences."""
    given = ["--max_train_steps", "9", "--batch_size", "64", "--seed", "5"]
    first = train(pairs, teacher, student, tmp_path / "whole", *given, "--cache_dir", str(tmp_path / "cache"))
    train_rows = load_pairs(pairs)["train"]
    labels_of_train = max((tmp_path / "cache").glob("labels-*/labels.bin"), key=lambda path: path.stat().st_size)
    labels = np.memmap(labels_of_train, np.float32, mode="r+").reshape(len(train_rows), -1)
    labels[[3, 70], 5] = np.inf
    labels.flush()
    output = tmp_path / "run"
    more = ["--cache_dir", str(tmp_path / "cache"), "--logging_steps", "1", "--checkpointing_steps", "1"]
    with pytest.raises(SystemExit) as end:
        run(main, build_parser().parse_args(arguments(pairs, teacher, student, output, *given, *more)))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"is not a finite number: {0} of" not in error
    lines = [json.loads(line) for line in (output / "not_finite.jsonl").read_text().splitlines()]
    assert f"the loss of step {lines[0]['step']} is not a finite number: {len(lines)} of its sentences" in error
    assert {line["row"] for line in lines} <= {3, 70} and len({line["step"] for line in lines}) == 1
    for line in lines:
        row = train_rows[line["row"]]
        targets = [t["sentence"] for t in row["targets"] if t["language"] == line["language"]]
        assert line["sentences"] == ([row["source"]] if line["language"] == "source" else targets)
    steps = [int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")]
    assert all(step < lines[0]["step"] for step in steps), "no checkpoint holds what came of it"
    assert metrics(first, "loss")


def test_divergence_stops_the_run(pairs, teacher, student, tmp_path, capsys):
    more = ["--max_train_steps", "20", "--learning_rate", "1e30", "--max_grad_norm", "1e30", "--warmup_ratio", "0"]
    assert refused(pairs, teacher, student, tmp_path / "run", *more)
    assert "lower --learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize("scaler", [False, True])
def test_a_gradient_that_is_no_number_reaches_no_checkpoint(
    pairs, teacher, student, tmp_path, capsys, monkeypatch, scaler
):
    """That of step 3, whose loss is one. With a scaler of losses it is the scaler that leaves out such a step."""
    clip, calls = Accelerator.clip_grad_norm_, itertools.count(1)

    def clip_spoilt(self, parameters, most):
        norm = clip(self, parameters, most)
        return norm * math.inf if next(calls) == 3 else norm

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", clip_spoilt)
    more = ["--max_train_steps", "6", "--checkpointing_steps", "2", "--logging_steps", "5"]
    if scaler:
        begin = Tally.__init__
        stand_in = SimpleNamespace(scale=lambda loss: loss, get_scale=lambda: 64.0, state_dict=dict)

        def with_scaler(self, *given) -> None:
            begin(self, *given)
            self.accelerator.scaler = stand_in

        monkeypatch.setattr(Tally, "__init__", with_scaler)
        output = train(pairs, teacher, student, tmp_path / "run", *more)
        assert metrics(output, "step")[-1] == 6
        assert metrics(output, "skipped_steps") == [0, 1, 0, 0], "a line after steps 2, 4, 5, 6"
        assert metrics(output, "loss_scale") == [64] * 4
        return
    assert refused(pairs, teacher, student, tmp_path / "run", *more)
    assert "error: the gradient of step 3 is not a finite number, though its loss is: " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_the_learning_rate_of_a_line_is_that_of_its_step(pairs, teacher, student, tmp_path):
    """Up in two steps of eight, down in six; the first step has none."""
    more = ["--max_train_steps", "8", "--warmup_ratio", "0.25", "--logging_steps", "1"]
    output = train(pairs, teacher, student, tmp_path / "run", *more)
    rates = [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert metrics(output, "learning_rate") == pytest.approx([1e-3 * rate for rate in rates])


def test_what_a_line_says_of_the_last_step_and_of_the_machine(pairs, teacher, student, tmp_path, monkeypatch):
    norms, clip = [], Accelerator.clip_grad_norm_

    def noted(self, *given):
        norms.append(clip(self, *given).item())
        return torch.tensor(norms[-1])

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", noted)
    output = train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "4", "--logging_steps", "2")
    assert metrics(output, "gradient_norm") == norms[1::2] and not metrics(output, "loss_scale")
    for pairs_of, tokens_of in zip(
        metrics(output, "pairs_per_second"), metrics(output, "tokens_per_second"), strict=True
    ):
        assert 5 < tokens_of / pairs_of < 40, "a pair has a target and half a source or more"
    assert all(0.1 < peak < 20 for peak in metrics(output, "peak_memory_gb"))


def test_mean_similarity_by_hand():
    """Three unit vectors, pairwise cosines 0, 1 and 0."""
    assert mean_similarity(np.array([[2.0, 0], [0, 3], [0, 1]])) == pytest.approx(1 / 3)


def test_a_collapsed_student_is_reported(pairs, teacher, tmp_path, capsys):
    """A student that begins with one vector for every sentence and hardly moves."""
    linear = nn.Linear(32, 32)
    linear.weight.data.zero_()
    student = saved(tiny_encoder(dense=nn.Sequential(nn.Sequential(linear, nn.Identity()))), tmp_path / "student")
    train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "2", "--learning_rate", "1e-6")
    assert capsys.readouterr().err.count("the student has collapsed: 1.00 is the mean similarity") == 1
    assert metrics(tmp_path / "run", "mean_similarity") == [pytest.approx(1, abs=1e-3)] * 2


def test_the_student_s_tokenizer_is_shown_and_one_that_cannot_read_is_refused(
    pairs, teacher, student, tmp_path, capsys
):
    """The tiny tokenizer knows the samples' letters; without those that only German has, it cannot read German."""
    more = ["--max_train_steps", "1"]
    train(pairs, teacher, student, tmp_path / "fine", *more)
    table = [line.split() for line in capsys.readouterr().out.splitlines() if "%" in line][:4]
    rows = load_pairs(pairs)["train"]
    tokenizer = SentenceEncoder.from_pretrained(student).tokenizer
    words = sum(len(sentence.split()) for sentence in rows["source"])
    tokens = sum(len(tokenizer.tokenize(sentence)) for sentence in rows["source"])
    assert table[0][0] == "source" and table[0][1] == "0.0%"
    assert float(table[0][2]) == pytest.approx(tokens / words, abs=0.02)

    unread = tmp_path / "unread"
    shutil.copytree(student, unread)
    content = json.loads((unread / "tokenizer.json").read_text())
    entries = content["model"]["vocab"].items()
    content["model"]["vocab"] = {f"unused{i}" if re.search("[ء-ي]", token) else token: i for token, i in entries}
    (unread / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as end:
        run(main, build_parser().parse_args(arguments(pairs, teacher, str(unread), tmp_path / "refused", *more)))
    assert end.value.code == 2 and not (tmp_path / "refused").exists()
    assert re.search(r"tokenizer does not know ar \(\d\d%\) of the tokens: choose", capsys.readouterr().err)
    train(pairs, teacher, str(unread), tmp_path / "allowed", *more, "--allow_unknown_tokens")


# ---------------------------------------------------------------- a user's mistakes


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pairs_dir": "{tmp}/nowhere"}, "nowhere is no folder of build_pairs.py"),
        ({"teacher_model_name_or_path": ["{tmp}/nowhere"]}, "nowhere does not exist: give a model folder or a hub id"),
        ({"student_model_name_or_path": "{tmp}/empty"}, "empty is no model: it has no config.json"),
        ({"student_model_name_or_path": "{tmp}/wide"}, "of 48: choose models of equal width, or add --projection"),
        ({"metric_for_best_model": "spearman_cosine"}, "--metric_for_best_model spearman_cosine needs --sts_dev"),
        ({"metric_for_best_model": "bitext_accuracy"}, "--metric_for_best_model bitext_accuracy needs --eval_bitext"),
        ({"metric_for_best_model": "ndcg_at_10"}, "--metric_for_best_model ndcg_at_10 needs --eval_retrieval"),
        ({"eval_bitext": ["{tmp}/x.{en,it}"]}, "x.en does not exist: check the path"),
        ({"eval_bitext": ["{pairs}", "{pairs}:dev"]}, "both have en-ar: name one, as in x="),
        ({"eval_retrieval": ["{tmp}/empty"]}, "empty has no files corpus.*: --retrieval takes a folder with"),
        ({"freeze_layers": 3}, "--freeze_layers 3: the student has 2"),
        ({"label_pca": True}, "--label_pca is for a teacher wider than the student"),
        ({"sts_dev": "{tmp}/sts-{en,it}.csv"}, "sts-en.csv does not exist"),
        ({"sts_dev": "sts.csv"}, "sts.csv names no languages"),
        ({"output_dir": "{tmp}/foreign"}, "foreign holds student, and no args.json of a run: name another"),
        ({"output_dir": "{tmp}/file"}, "file cannot be written (File exists)"),
        ({"cache_dir": "{tmp}/file/cache"}, "file/cache cannot be written (Not a directory)"),
        ({"output_dir": "{tmp}/theirs"}, "theirs holds thesis.txt, and no args.json of a run: name another folder"),
        ({"output_dir": "{tmp}/theirs", "resume_from_checkpoint": "latest"}, "theirs holds thesis.txt, and no"),
        ({"output_dir": "{pairs}"}, "pairs/student would be written over the input"),
        (
            {"output_dir": "{tmp}/a-student", "resume_from_checkpoint": "latest"},
            "holds 1_Pooling, and no args.json of a run",
        ),
        ({"student_model_name_or_path": "{tmp}/no-pad"}, "no-pad: its tokenizer has neither a padding nor"),
        ({"resume_from_checkpoint": "{tmp}/empty"}, "empty is no checkpoint: it has no settings.json"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(pairs, teacher, student, tmp_path, capsys, change, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign/student").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    for file in ("foreign/student/thesis.txt", "theirs/thesis.txt", "file"):
        (tmp_path / file).write_text("years of work")
    saved(tiny_encoder(width=48), tmp_path / "wide")
    no_pad = tiny_encoder()
    no_pad.tokenizer.pad_token = None
    saved(no_pad, tmp_path / "no-pad")
    saved(tiny_encoder(), tmp_path / "a-student")
    made = {"command_line": "accelerate launch train_distill.py", "files": ["model.safetensors"]}
    (tmp_path / "a-student/args.json").write_text(json.dumps(made))
    output = tmp_path / "run"
    args = vars(build_parser().parse_args(arguments(pairs, teacher, student, output)))
    places = json.dumps(change).replace("{tmp}", str(tmp_path)).replace("{pairs}", pairs)
    args |= json.loads(places)
    with pytest.raises(SystemExit) as end:
        run(main, argparse.Namespace(**args))
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not output.exists()


def test_a_folder_that_holds_a_run_is_not_mixed_with_another(pairs, teacher, student, tmp_path, capsys, in_bf16):
    other, latest = (
        saved(tiny_encoder(seed=8, pooling="cls"), tmp_path / "other"),
        ["--resume_from_checkpoint", "latest"],
    )
    output = train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "2")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for more, message in (
        ([], "holds a run: add --resume_from_checkpoint latest"),
        ([*latest, "--seed", "7"], "was trained with --seed 42, not 7: give the same"),
        ([*latest, "--learning_rate", "1"], "was trained with --learning_rate 0.0"),
        ([*latest, "--max_train_steps", "3"], "a number of steps of 2, not 3: give the"),
        ([*latest, "--teacher_model_name_or_path", other], "was trained on labels of another teacher: give"),
        ([*latest, "--student_model_name_or_path", other], "was trained from a student of other settings: give"),
        (
            [*latest, "--sts_dev", STS],
            "was trained for another --metric_for_best_model, or on other files for it: give",
        ),
    ):
        assert refused(pairs, teacher, student, output, "--max_train_steps", "2", *more)
        assert message in capsys.readouterr().err
    in_bf16()
    assert refused(pairs, teacher, student, output, *latest)
    assert "was trained with --mixed_precision no, not bf16" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_pairs_without_a_dev_split_are_refused(pairs, teacher, student, tmp_path):
    (tmp_path / "pairs").mkdir()
    for name in ("train", "args.json"):
        (tmp_path / "pairs" / name).symlink_to(Path(pairs) / name)
    (tmp_path / "pairs/dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match="pairs has no dev split: build it with a --dev_fraction above 0"):
        train(str(tmp_path / "pairs"), teacher, student, tmp_path / "run")


def test_a_checkpoint_without_settings_is_none(pairs, teacher, student, tmp_path):
    output = train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "2")
    (output / "checkpoint-2/settings.json").unlink()
    for given, message in (
        ("latest", r"is damaged: settings\.json is missing"),
        (str(output / "checkpoint-2"), r"is no checkpoint: it has no settings\.json"),
    ):
        with pytest.raises(UserError, match=f"checkpoint-2 {message}"):
            train(pairs, teacher, student, output, "--resume_from_checkpoint", given)


def test_a_stopped_run_may_write_a_line_where_it_stopped(pairs, teacher, student, tmp_path, monkeypatch):
    """Told to write lines more often, it has one to write before its next step."""
    monkeypatch.setattr(
        "distill.training.watching.Tally.add", acting_in(3, Tally.add, lambda: signal.raise_signal(signal.SIGTERM))
    )
    with ranks.listening(), pytest.raises(ranks.Stopped):
        train(pairs, teacher, student, tmp_path / "run", "--max_train_steps", "9", "--dropout", "0")
    monkeypatch.undo()
    ranks.known.signal = 0
    again = ("--max_train_steps", "9", "--logging_steps", "3", "--resume_from_checkpoint", "latest")
    output = train(pairs, teacher, student, tmp_path / "run", *again)
    assert metrics(output, "step") == [0, 3, 6, 9, 9] and len(metrics(output, "loss")) == 3


def test_a_launcher_that_would_train_separate_copies_is_refused(pairs, teacher, student, tmp_path):
    """Without a GPU and without ACCELERATE_USE_CPU, accelerate starts two worlds of one process."""
    if torch.cuda.is_available():
        pytest.skip("with a GPU the processes find each other")
    given = arguments(pairs, teacher, student, tmp_path / "run")
    done = script("train_distill.py", *given, processes=2, ACCELERATE_USE_CPU="false")
    assert done.returncode != 0
    assert "the launcher started several separate runs: on CPU set ACCELERATE_USE_CPU=true" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_can_be_taken_to_another_folder(pairs, teacher, student, tmp_path):
    more = ["--max_train_steps", "6", "--checkpointing_steps", "3", "--logging_steps", "1"]
    whole = train(pairs, teacher, student, tmp_path / "whole", *more)
    moved = [*more, "--resume_from_checkpoint", str(whole / "checkpoint-3")]
    other = train(pairs, teacher, student, tmp_path / "other", *moved)
    assert metrics(other, "loss") == metrics(whole, "loss")[3:]
    one, two = (load_file(folder / "student/model.safetensors") for folder in (whole, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_finished_run_leaves_a_student_wherever_it_goes_on_and_takes_no_step_more(pairs, teacher, student, tmp_path):
    whole = train(pairs, teacher, student, tmp_path / "whole", "--max_train_steps", "4")
    again = ["--max_train_steps", "4", "--resume_from_checkpoint", str(whole / "checkpoint-4")]
    other = train(pairs, teacher, student, tmp_path / "other", *again)
    assert metrics(other, "loss") == []
    assert (other / "student/model.safetensors").is_file()


def test_a_run_takes_at_least_a_step(pairs, teacher, student, tmp_path):
    output = train(pairs, teacher, student, tmp_path / "run", "--num_train_epochs", "0.001")
    assert len(metrics(output, "loss")) == 1 and (output / "student/model.safetensors").is_file()


def test_runs_that_start_at_once_on_the_same_pairs_share_the_work(pairs, teacher, student, tmp_path):
    """One makes the labels, the others wait for them: a sweep."""
    given = [arguments(pairs, teacher, student, tmp_path / f"run-{i}", "--max_train_steps", "2") for i in range(3)]
    caches = ["--cache_dir", str(tmp_path / "cache")]
    for i in range(3):
        (tmp_path / f"said-{i}").mkdir()
    runs = [forked.start(tmp_path / f"said-{i}", "train_distill.py", *one, *caches)[0] for i, one in enumerate(given)]
    for one in runs:
        one.join()
    assert [one.exitcode for one in runs] == [0, 0, 0]
    found = [load_file(tmp_path / f"run-{i}/student/model.safetensors") for i in range(3)]
    assert all(torch.equal(found[0][name], one[name]) for one in found for name in one)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {""}, "no locks, no parts"


def test_no_room_for_the_order_of_an_epoch_is_said_before_it_is_needed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot take the order of an epoch \(No space left on device\): make room"):
        scratch(tmp_path, 4, 100)


def test_a_disk_that_is_full_when_metrics_are_written_is_said_at_the_next_agreement(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "disk_is_full", lambda folder: True)
    accelerator = Accelerator(cpu=True)
    log = Metrics(tmp_path, 0, accelerator)
    log.path = Path("/dev/full")
    log.write(1, {"loss": 0.5})
    with pytest.raises(UserError, match="the disk of /dev is full: free some of it"):
        ranks.agree(accelerator)


def test_a_disk_that_is_full_when_metrics_are_cut_back_is_said(tmp_path, monkeypatch):
    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ranks, "disk_is_full", lambda folder: True)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="is full: free some of it"):
        Metrics(tmp_path, 0, Accelerator(cpu=True))


def test_exit_code_of_the_real_script(teacher, student, tmp_path):
    done = script("train_distill.py", *arguments(str(tmp_path / "nowhere"), teacher, student, tmp_path / "run"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "is no folder of build_pairs.py" in done.stderr
