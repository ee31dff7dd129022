"""Bitext retrieval against hand-computed values, brute force and sentence-transformers; pairs folders, bad files."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator

from distill.command import UserError
from distill.pairs.pairs_folder import load_pairs
from distill.scoring.bitext import negative_mse, read_bitext, translation_accuracy, translation_hits
from distill.scoring.search import nearest_neighbours


def test_translation_accuracy_by_hand():
    source = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    target = np.array([[2.0, 0.0], [3.0, 0.1], [0.0, 5.0]])
    # Source 0 finds target 0; 1 finds 2 and 2 finds 1 (cosines 0.707, 0.73, 0.707). Target 0 and 1 find source 0.
    expected = {"src2trg_accuracy": 1 / 3, "trg2src_accuracy": 1 / 3, "mean_accuracy": 1 / 3}
    for block in (1, 2, 100):
        hits = translation_hits(list("abc"), list("xyz"), nearest_neighbours(source, target, block=block))
        assert hits.tolist() == [[True, False, False], [True, False, False]]
        assert translation_accuracy(hits) == pytest.approx(expected)


def test_margin_by_hand():
    """One target is near to every source; the ratio to its neighbourhood sees through that."""
    source = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.2]])
    hub = np.array([0.0, 1.0])
    target = np.stack([source[0] + 1.2 * hub, hub, source[2] + 1.2 * hub])
    cosines = (source / np.linalg.norm(source, axis=1, keepdims=True)) @ (
        target / np.linalg.norm(target, axis=1, keepdims=True)
    ).T
    k = 2
    around = [np.sort(side, axis=1)[:, -k:].mean(1) for side in (cosines, cosines.T)]
    margin = cosines / ((around[0][:, None] + around[1]) / 2)
    assert not np.array_equal(margin.argmax(0), cosines.argmax(0))
    for block in (1, 2, 100):
        forth, back = nearest_neighbours(source, target, margin_k=k, block=block)
        assert forth.tolist() == margin.argmax(1).tolist() and back.tolist() == margin.argmax(0).tolist()


@pytest.mark.parametrize("margin_k", [0, 4])
@pytest.mark.parametrize("block", [7, 64, 1000])
def test_blocks_give_what_all_at_once_gives(margin_k, block):
    random = np.random.default_rng(0)
    source, target = random.normal(size=(150, 8)).astype(np.float32), random.normal(size=(131, 8)).astype(np.float32)
    x, y = (torch.nn.functional.normalize(torch.from_numpy(side), dim=1) for side in (source, target))
    scores = x @ y.T
    if margin_k:
        near_x, near_y = scores.topk(4, dim=1).values.mean(1), scores.topk(4, dim=0).values.mean(0)
        scores = scores / ((near_x[:, None] + near_y) / 2)
    forth, back = nearest_neighbours(source, target, margin_k=margin_k, block=block)
    assert forth.tolist() == scores.argmax(1).tolist() and back.tolist() == scores.argmax(0).tolist()


def test_a_sentence_that_stands_twice_is_found_in_either_place():
    """As TranslationEvaluator compares texts and not places."""
    sources, targets = ["one", "two", "two", "three"], ["uno", "due", "due", "tre"]
    vectors = {
        "one": [1, 0, 0],
        "two": [0, 1, 0],
        "three": [0, 0.9, 1],
        "uno": [1, 0, 0.1],
        "due": [0, 1, 0.1],
        "tre": [0.9, 0, 1],
    }
    source, target = (np.array([vectors[s] for s in side], np.float32) for side in (sources, targets))

    class Model:
        def encode(self, sentences, **_):
            return list(torch.tensor([vectors[s] for s in sentences], dtype=torch.float32))

    evaluator = TranslationEvaluator(sources, targets)
    evaluator.store_metrics_in_model_card_data = lambda *_: None
    expected = evaluator(Model())
    for block in (1, 100):
        hits = translation_hits(sources, targets, nearest_neighbours(source, target, block=block))
        assert translation_accuracy(hits) == pytest.approx(expected)
    assert 0 < expected["mean_accuracy"] < 1


def test_one_of_two_translations_is_enough():
    """Two translations of a source, two sources of a translation: a model that gives all of them one vector is perfect.

    "two" finds one text, that of its first row; for its second row that is right too.
    """
    sources, targets = ["one", "two", "two", "three", "drei"], ["uno", "due", "ambedue", "tre", "tre"]
    vectors = np.eye(3)[[0, 1, 1, 2, 2]]
    found = nearest_neighbours(vectors, vectors)
    assert translation_hits(sources, targets, found).all()
    assert not translation_hits(list("abcde"), list("vwxyz"), found).all()


def test_memory_is_that_of_the_blocks():
    """16,000 x 16,000 similarities are 1 GB of fp32; the process grows by a small part of that."""
    program = """
import resource
import numpy as np
from distill.scoring.search import nearest_neighbours
source, target = np.random.default_rng(0).normal(size=(2, 16_000, 4)).astype(np.float32)
nearest_neighbours(source[:10], target[:10])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest_neighbours(source, target)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True)
    assert float(done.stdout) < 400


def test_negative_mse_by_hand():
    labels = np.array([[1.0, 2.0], [0.0, 0.0]])
    vectors = np.array([[1.0, 0.0], [1.0, 1.0]])
    assert negative_mse(labels, vectors) == pytest.approx(-100 * (0 + 4 + 1 + 1) / 4)
    assert np.isnan(negative_mse(labels, vectors[:, :1])), "a teacher of another width has no such error"


# ---------------------------------------------------------------- reading


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_line_aligned_files_the_first_language_with_each_other(tmp_path):
    for tag, text in (("eng", "one\ntwo\n"), ("ita", "uno\ndue\n"), ("deu", "eins\nzwei\n")):
        write(tmp_path / f"text.{tag}", text)
    bitexts = read_bitext(str(tmp_path / "text.{eng,ita,deu}"), name="tiny")
    assert [(one.name, one.sources, one.targets) for one in bitexts] == [
        ("tiny/en-it", ["one", "two"], ["uno", "due"]),
        ("tiny/en-de", ["one", "two"], ["eins", "zwei"]),
    ]


def test_a_pairs_folder(pairs):
    rows = load_pairs(pairs)["dev"]
    expected = [(row["source"], one["sentence"]) for row in rows for one in row["targets"] if one["language"] == "it"]
    for spec in (pairs, f"{pairs}:dev"):
        bitexts = {one.name: one for one in read_bitext(spec)}
        assert set(bitexts) == {"en-ar", "en-de", "en-it"}
        assert list(zip(bitexts["en-it"].sources, bitexts["en-it"].targets, strict=True)) == expected


@pytest.mark.parametrize(
    "files, message",
    [
        ({"en": "a\nb\n", "it": "c\n"}, "the files are not line-aligned, their line counts are {'en': 2, 'it': 1}"),
        ({"en": "a\nb\n"}, "text.it does not exist"),
        ({"en": "a\nb\n", "it": "c\n \n"}, "line 2 of it is empty: remove it from all of the files"),
        ({"en": "a\n", "it": "c\n"}, "holds no two pairs of a language: retrieval needs at least two"),
    ],
)
def test_bad_files(tmp_path, files, message):
    for tag, text in files.items():
        write(tmp_path / f"text.{tag}", text)
    with pytest.raises(UserError) as error:
        read_bitext(str(tmp_path / "text.{en,it}"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("text.{en}", "must name two different languages or more, found en"),
        ("text.{en,eng}", "must name two different languages or more, found en eng"),
        ("text.{en,xyzzy}", "'xyzzy' is no known language tag"),
        ("text.en", "give line-aligned files in quoted braces"),
        (".", "is no folder of build_pairs.py"),
        ("PAIRS:test", "has no split 'test': it has"),
    ],
)
def test_bad_specs(tmp_path, monkeypatch, pairs, spec, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "text.en", "a\nb\n")
    write(tmp_path / "text.eng", "a\nb\n")
    write(tmp_path / "text.xyzzy", "a\nb\n")
    with pytest.raises(UserError) as error:
        read_bitext(spec.replace("PAIRS", pairs))
    assert message in str(error.value)
