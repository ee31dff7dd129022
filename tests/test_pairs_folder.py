"""A folder of pairs that is damaged, of other columns or empty: one sentence, whoever reads it."""

import json
import shutil
from pathlib import Path

import datasets
import pytest

from distill.command import UserError
from distill.pairs.pairs_folder import language_sentences, load_pairs
from distill.pairs.readers import read_corpus
from distill.scoring.bitext import read_bitext
from distill.scoring.data import Data
from distill.scoring.export import training_notes

READERS = {
    "load_pairs": load_pairs,
    "language_sentences": lambda path: list(language_sentences(path, [])),
    "corpus": lambda path: list(read_corpus(path, "en")),
    "bitext": read_bitext,
}
ROWS = "dev/data-00000-of-00001.arrow"


def assert_refused(folder: Path, error: str, readers=READERS) -> None:
    for name in readers:
        with pytest.raises(UserError, match=error):
            READERS[name](str(folder))


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"features": 5, "splits": 5, "_data_files": 5}', "\udcff"])
@pytest.mark.parametrize("name", ["dev/state.json", "dev/dataset_info.json", "dataset_dict.json"])
def test_damaged_metadata(pairs, tmp_path, name, content):
    folder = shutil.copytree(pairs, tmp_path / "pairs")
    (folder / name).write_text(content, errors="surrogateescape")
    assert_refused(folder, "pairs is no whole Arrow folder")


@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_rows_cut_short(pairs, tmp_path, share):
    folder = shutil.copytree(pairs, tmp_path / "pairs")
    content = (folder / ROWS).read_bytes()
    (folder / ROWS).write_bytes(content[: int(share * len(content))])
    assert_refused(folder, "pairs is no whole Arrow folder|pairs cannot be read")


@pytest.mark.parametrize(
    "targets", [["Un cane."] * 2, [[{"lang": "it", "sentence": "Un cane."}]] * 2, [["Un cane."]] * 2]
)
def test_targets_of_another_shape(tmp_path, targets):
    split = datasets.Dataset.from_dict({"source": ["A dog.", "A cat."], "targets": targets})
    datasets.DatasetDict({"train": split, "dev": split}).save_to_disk(tmp_path / "pairs")
    assert_refused(tmp_path / "pairs", "its targets are not lists of language, sentence")


def test_a_saved_dataset_without_splits_is_no_folder_of_pairs(tmp_path):
    targets = [[{"language": "it", "sentence": "Un cane."}]]
    datasets.Dataset.from_dict({"source": ["A dog."], "targets": targets}).save_to_disk(tmp_path / "pairs")
    assert_refused(tmp_path / "pairs", "pairs is no folder of build_pairs.py", READERS.keys() - {"corpus"})


@pytest.mark.parametrize("name", ["train", "dev"])
def test_an_empty_split(pairs, tmp_path, name):
    folder = shutil.copytree(pairs, tmp_path / "pairs")
    split = datasets.load_from_disk(pairs)[name]
    with datasets.arrow_writer.ArrowWriter(path=str(tmp_path / "none"), features=split.features) as writer:
        writer.finalize()
    (tmp_path / "none").replace(folder / name / Path(ROWS).name)
    assert_refused(folder, f"pairs holds no pair in its split {name}: build it anew", READERS.keys() - {"corpus"})


@pytest.mark.parametrize("content", [5, None, []])
def test_args_that_are_no_object(pairs, tmp_path, content):
    folder = shutil.copytree(pairs, tmp_path / "pairs")
    (folder / "args.json").write_text(json.dumps(content))
    assert_refused(folder, "args.json holds no JSON object: mend or remove it", ["language_sentences", "bitext"])
    with pytest.raises(UserError, match="holds no JSON object"):
        training_notes("student", str(folder), Data([], [], [], False, []))
    assert sum(map(len, READERS["corpus"](str(folder)))) > 0  # of a corpus it may be anyone's
