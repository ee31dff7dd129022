"""Where labels come from: a model that need not be loaded, tables of vectors, several teachers."""

import json
from argparse import Namespace
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import SAMPLES, saved, tiny_encoder
from safetensors.torch import load_file

from distill import vectors
from distill.command import UserError, run
from distill.encoder.sentence_encoder import SentenceEncoder, set_matmul_precision
from distill.folders import check_output
from distill.pairs.pairs_folder import load_pairs
from distill.scoring.sts import read_sts
from distill.training.labels import Labelling
from distill.vectors import VectorTable, vector_batches
from eval_sts import build_parser as evaluation_parser
from eval_sts import main as evaluate
from train_distill import build_parser, main

STS = str(SAMPLES / "sts-{en,it}.csv")


def given(pairs, student, folder: Path, *more, name: str = "run") -> list[str]:
    return [
        *("--pairs_dir", pairs, "--student_model_name_or_path", student, "--output_dir", f"{folder}/{name}"),
        *("--cache_dir", f"{folder}/cache", "--max_train_steps", "2", "--learning_rate", "1e-3", *map(str, more)),
    ]


def train(*arguments, **name) -> Path:
    AcceleratorState._reset_state(True)
    words = given(*arguments, **name)
    main(build_parser().parse_args(words))
    return Path(words[5])


def refused(capsys, *arguments) -> str:
    """What a run says that ends as after a user's mistake."""
    words = given(*arguments)
    with pytest.raises(SystemExit) as end:
        run(main, build_parser().parse_args(words))
    assert end.value.code == 2 and not Path(words[5]).exists()
    [error] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "error: " in error
    return error


def sentences_of(pairs) -> list[str]:
    return [source for split in load_pairs(pairs).values() for source in split["source"][:]]


def labels_in(folder: Path, rows: int, width: int = 32) -> np.ndarray:
    """The labels of so many rows that a run left on disk."""
    files = (np.fromfile(path, np.float32) for path in folder.glob("cache/labels-*/labels.bin"))
    [labels] = [file.reshape(rows, width) for file in files if file.size == rows * width]
    return labels


def write_table(path: Path, sentences: list[str], table: np.ndarray) -> str:
    """A table in the format that its name ends in."""
    kind, columns = path.suffix, {"sentence": sentences, "vector": table.tolist()}
    if kind == ".npy":
        np.save(path, table)
        path.with_suffix(".txt").write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
    elif kind == ".jsonl":
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    elif kind == ".parquet":
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(table.ravel()), table.shape[1])
        pq.write_table(pa.table({"id": range(len(table)), "vector": fixed, "sentence": sentences}), path)
    else:
        content = pa.table({"sentence": sentences, "vector": pa.array(columns["vector"], pa.list_(pa.float32()))})
        with (pa.ipc.new_stream if kind == ".arrow" else pa.ipc.new_file)(str(path), content.schema) as writer:
            writer.write_table(content)
    return str(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    """A teacher without Normalize."""
    return saved(tiny_encoder(seed=3), tmp_path_factory.mktemp("plain") / "plain")


@pytest.fixture(scope="module")
def table(plain, pairs, tmp_path_factory) -> str:
    """The vectors of the same teacher, computed as the trainer would."""
    set_matmul_precision(torch.device("cpu"))
    encoder = SentenceEncoder.from_pretrained(plain)
    parts = [encoder.encode(split["source"][:]) for split in load_pairs(pairs).values()]
    path = tmp_path_factory.mktemp("table") / "plain.parquet"
    return write_table(path, sentences_of(pairs), np.concatenate(parts))


# ---------------------------------------------------------------- a model


@pytest.mark.parametrize("more", [[], ["--projection"]])
def test_a_teacher_whose_labels_are_on_disk_is_not_loaded(pairs, plain, student, tmp_path, monkeypatch, more):
    more = ["--teacher_model_name_or_path", plain, *more]
    first = train(pairs, student, tmp_path, *more)
    load = SentenceEncoder.from_pretrained.__func__
    loaded = []

    def counted(cls, name_or_path, *settings, **more):
        loaded.append(name_or_path)
        return load(cls, name_or_path, *settings, **more)

    monkeypatch.setattr(SentenceEncoder, "from_pretrained", classmethod(counted))
    again = train(pairs, student, tmp_path, *more, name="again")
    assert plain not in loaded and student in loaded
    one, two = (load_file(output / "student/model.safetensors") for output in (first, again))
    assert all((one[name] == two[name]).all() for name in one)
    train(pairs, student, tmp_path, *more, "--label_dtype", "fp16", name="half")
    assert loaded.count(plain) == 1


def test_on_a_cpu_weights_stay_where_they_were_loaded(plain):
    """Mapped from their file, whose pages processes share; accelerate calls a CPU cpu:0 where there are several."""
    encoder = SentenceEncoder.from_pretrained(plain)
    before = [weight.data_ptr() for weight in encoder.parameters()]
    assert [weight.data_ptr() for weight in encoder.on(torch.device("cpu:0")).parameters()] == before


# ---------------------------------------------------------------- a table of vectors


def test_a_table_teaches_what_its_model_teaches(pairs, plain, table, student, tmp_path):
    """Bit for bit: labels, and weights after 20 steps."""
    steps, runs = ("--max_train_steps", "20"), {}
    for name, teacher in (("model", ["--teacher_model_name_or_path", plain]), ("table", ["--teacher_vectors", table])):
        (tmp_path / name).mkdir()
        runs[name] = load_file(train(pairs, student, tmp_path / name, *teacher, *steps) / "student/model.safetensors")
    rows = len(load_pairs(pairs)["train"])
    one, two = (labels_in(tmp_path / name, rows) for name in runs)
    expected = SentenceEncoder.from_pretrained(plain).encode(load_pairs(pairs)["train"]["source"][:])
    np.testing.assert_allclose(one, expected, atol=1e-6)
    assert np.array_equal(one, two)
    assert all((runs["model"][name] == runs["table"][name]).all() for name in runs["model"])


@pytest.mark.parametrize("kind", [".parquet", ".arrow", ".feather", ".jsonl", ".npy"])
def test_tables_of_every_format(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(vectors, "ROWS", 3)
    sentences = [f'{i} "ä\t"' for i in range(8)]
    expected = np.random.default_rng(0).standard_normal((8, 5), dtype=np.float32)
    path = write_table(tmp_path / f"x{kind}", sentences, expected)
    found = [*vector_batches([path])]
    assert [text for texts, _ in found for text in texts] == sentences
    assert np.array_equal(np.concatenate([part for _, part in found]), expected)
    assert all(len(texts) == len(part) <= 3 and part.dtype == np.float32 for texts, part in found)


def test_a_parquet_file_is_never_in_memory_as_a_whole(tmp_path):
    """Not even one of a single row group, as most writers make them."""
    path = write_table(
        tmp_path / "x.parquet", ["a"] * 40_000, np.random.default_rng(0).random((40_000, 64), np.float32)
    )
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in vector_batches([path]))
    assert Path(path).stat().st_size > 10e6 and most < 8e6


def written(content: str, folder: Path) -> str:
    path = folder / "x.jsonl"
    path.write_text(content)
    return str(path)


A, B = '{"sentence": "a", "vector": [1, 2]}\n', '{"sentence": "b", "vector": [1.5, -2]}\n'


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "holds no vector"),
        ("null\n" + A, "line 1 is no JSON object"),
        (f"[{A}]", "line 1 is no JSON object"),
        (A + '{"sentence": "b", "vector": [1]}\n', "the vector of 'b' is not of 2 dimensions, as others are"),
        (A + '{"sentence": "b"}\n', "the vector of 'b' is empty or lacks a number"),
        (A + '{"sentence": "b", "vector": [1, null]}\n', "the vector of 'b' is empty or lacks a number"),
        (A + '{"sentence": "b", "vector": []}\n', "the vector of 'b' is empty or lacks a number"),
        (A + '{"vector": [1, 2]}\n', "has a vector without a sentence"),
        (A + '{"sentence": "b", "vector": [1, NaN]}\n', "the vector of 'b' holds a number that is not finite"),
        (A + '{"sentence": "b", "vector": [1, 1e39]}\n', "the vector of 'b' holds a number that is not finite"),
        (A + '{"sentence": "b", "vector": "no"}\n', "cannot be read in or after line 1"),
        (A + '{"sentence": "b", "vector": [1, "2"]}\n', "cannot be read in or after line 1"),
        (A + '{"sentence": "b", "vec', "cannot be read in or after line 2"),
    ],
)
def test_damaged_json_lines_end_in_one_sentence(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        [*vector_batches([written(content, tmp_path)])]


def parquet(folder: Path, **columns) -> list[str]:
    pq.write_table(pa.table(columns), folder / "x.parquet")
    return [str(folder / "x.parquet")]


def numpy_file(folder: Path, array, lines: str) -> list[str]:
    np.save(folder / "x.npy", array)
    (folder / "x.txt").write_text(lines)
    return [str(folder / "x.npy")]


def archive(folder: Path) -> list[str]:
    with (folder / "x.npy").open("wb") as file:
        np.savez(file, vectors=np.ones((1, 2)))
    return [str(folder / "x.npy")]


@pytest.mark.parametrize(
    "made, message",
    [
        (partial(parquet, text=["a"], vector=[[1.0]]), "has no column sentence, only text, vector: rename one"),
        (partial(parquet, sentence=[1], vector=[[1.0]]), "its column sentence is of the type int64"),
        (partial(parquet, sentence=["a"], vector=[["1"]]), "its column vector is of the type list"),
        (partial(parquet, sentence=["a"], vector=[1.0]), "its column vector is of the type double"),
        (partial(parquet, sentence=["a", None], vector=[[1.0], [2.0]]), "has a vector without a sentence"),
        (lambda folder: [str(folder / "no.parquet")], "no.parquet does not exist"),
        (lambda folder: [str(folder)], "is no table of vectors: give .parquet"),
        (lambda folder: [*parquet(folder, sentence=["a"], vector=[[1.0]]), written(A, folder)], "after others of 1"),
        (partial(numpy_file, array=np.ones((2, 3)), lines="a\n"), "x.npy has 2 rows and .*x.txt 1 lines"),
        (partial(numpy_file, array=np.ones((1, 3)), lines="a\nb\n"), "x.npy has 1 rows and .*x.txt 2 lines"),
        (partial(numpy_file, array=np.ones(3), lines="a\n"), "holds float64 of the shape"),
        (archive, "x.npy is an archive of arrays: write one with numpy.save"),
        (lambda folder: [written('{"text": "a", "embedding": [1.0]}\n', folder)], "line 1 has no field sentence"),
        (partial(numpy_file, array=np.array([["a"]]), lines="a\n"), "holds <U1 of the shape"),
    ],
)
def test_damaged_tables_end_in_one_sentence(tmp_path, made, message):
    with pytest.raises(UserError, match=message):
        [*vector_batches(made(tmp_path))]


def test_the_vectors_of_some_sentences(tmp_path):
    path = written(B + A + B.replace("-2", "9"), tmp_path)
    found = VectorTable(path).vectors_of(["a", "b", "a"])
    assert {name: vector.tolist() for name, vector in found.items()} == {"a": [1, 2], "b": [1.5, -2]}
    with pytest.raises(UserError, match=r"has no vector for 2 of 3 sentences, such as 'c', 'd': add them"):
        VectorTable(path).vectors_of(["c", "a", "d"])


def test_of_two_vectors_of_a_sentence_the_first_counts(pairs, table, student, tmp_path, capsys):
    frame = pq.read_table(table)
    other = frame.set_column(1, "vector", pa.array((np.stack(frame["vector"].to_numpy()) + 1).tolist()))
    pq.write_table(pa.concat_tables([frame, frame, other.slice(0, 7).cast(frame.schema)]), tmp_path / "twice.parquet")
    train(pairs, student, tmp_path, "--teacher_vectors", tmp_path / "twice.parquet")
    said = capsys.readouterr().out
    counts = [int(line.split(": ")[1].split()[0]) for line in said.splitlines() if "vectors differ from the" in line]
    assert sum(counts) == 7
    (tmp_path / "once").mkdir()
    train(pairs, student, tmp_path / "once", "--teacher_vectors", table)
    rows = len(load_pairs(pairs)["train"])
    assert np.array_equal(*(labels_in(folder, rows) for folder in (tmp_path, tmp_path / "once")))


def test_rows_without_a_vector_are_refused_or_dropped_and_counted(pairs, plain, table, student, tmp_path, capsys):
    splits, frame = load_pairs(pairs), pq.read_table(table)
    train_rows, dev_rows = (splits[name]["source"][:] for name in ("train", "dev"))
    lost = {*train_rows[5:8], train_rows[60], *dev_rows[:2]}
    kept = frame.filter(pa.array([sentence not in lost for sentence in frame["sentence"].to_pylist()]))
    parts = [str(tmp_path / f"part-{i}.parquet") for i in range(2)]  # one table in two files
    pq.write_table(kept.slice(0, 50), parts[0]), pq.write_table(kept.slice(50), parts[1])
    error = refused(capsys, pairs, student, tmp_path, "--teacher_vectors", *parts)
    total = len(train_rows) + len(dev_rows)
    assert f"part-1.parquet has no vector for 6 of {total} sentences, such as {train_rows[5][:80]!r}, " in error
    assert error.endswith("add them, or drop their rows by --allow_missing_vectors")

    more = ["--teacher_vectors", *parts, "--allow_missing_vectors", "--num_train_epochs", "1", "--batch_size", "16"]
    output = train(pairs, student, tmp_path, *more)
    said = capsys.readouterr().out
    assert f": 4 of {len(train_rows)} rows of train, 2 of {len(dev_rows)} rows of dev" in said
    encoder = SentenceEncoder.from_pretrained(plain)
    for rows in (train_rows, dev_rows):
        left = [sentence for sentence in rows if sentence not in lost]
        np.testing.assert_allclose(labels_in(tmp_path, len(left)), encoder.encode(left), atol=1e-6)
    assert (output / "student").is_dir()

    # Both are part of what labels and token ids are named by
    train(pairs, student, tmp_path, "--teacher_vectors", table, name="whole")
    assert len([*(tmp_path / "cache").glob("tokens-*")]) == 2
    pq.write_table(kept.filter(pa.array([s in train_rows for s in kept["sentence"].to_pylist()])), parts[0])
    (tmp_path / "none").mkdir()
    more = ["--teacher_vectors", parts[0], "--allow_missing_vectors"]
    assert "no vector for any source sentence of the split dev" in refused(
        capsys, pairs, student, tmp_path / "none", *more
    )


def test_a_language_that_loses_all_rows_is_none_any_more(pairs, table, student, tmp_path, capsys):
    """Neither is it looked for in the files, which hold it still."""
    folder, splits = tmp_path / "pairs", load_pairs(pairs)
    lost = {row["source"] for row in splits["train"].select([3, 20, 50, 51, 90])}

    def only(row: dict) -> dict:
        targets = row["targets"][:1] if row["source"] not in lost else [row["targets"][0] | {"language": "fr"}]
        return {"targets": targets}

    splits.map(only, keep_in_memory=True).save_to_disk(folder)
    frame = pq.read_table(table)
    pq.write_table(
        frame.filter(pa.array([s not in lost for s in frame["sentence"].to_pylist()])), tmp_path / "x.parquet"
    )
    train(str(folder), student, tmp_path, "--teacher_vectors", tmp_path / "x.parquet", "--allow_missing_vectors")
    said = capsys.readouterr().out
    assert "5 of" in said and "\nfr " not in said


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "no teacher is given: add --teacher_model_name_or_path or --teacher_vectors"),
        (
            ["--teacher_model_name_or_path", "{plain}", "--allow_missing_vectors"],
            "--allow_missing_vectors does nothing",
        ),
        (["--teacher_model_name_or_path", "{plain}", "--teacher_weights", "2"], "--teacher_weights are for several"),
        (["--teacher_vectors", "{table}", "--teacher_weights", "2", "1"], "a weight each, and not 2 for 1"),
        (["--teacher_vectors", "{tmp}/nowhere.parquet"], "nowhere.parquet does not exist: check the path"),
        (
            ["--teacher_vectors", "{table}", "--teacher_dtype", "bf16"],
            "--teacher_dtype is for a teacher that is a model",
        ),
        (["--teacher_vectors", "{plain}"], "plain is no table of vectors: give .parquet"),
        (
            ["--teacher_vectors", "{table}", "--teacher_model_name_or_path", "{plain}"],
            "plain.parquet gives vectors of 64 dimensions and",
        ),
    ],
)
def test_a_mistake_ends_in_one_sentence(pairs, plain, table, student, tmp_path, capsys, more, message):
    places = {"{plain}": plain, "{table}": table, "{tmp}": str(tmp_path)}
    for name, place in places.items():
        more = [word.replace(name, place) for word in more]
    assert message in refused(capsys, pairs, student, tmp_path, *more)


def test_no_output_takes_the_place_of_a_table(table):
    with pytest.raises(UserError, match="would be written over the input"):
        check_output(Path(table).parent, Namespace(teacher_vectors=[["other.npy", table]]), "a trained student")


# ---------------------------------------------------------------- several teachers


def test_several_teachers_by_hand(pairs, plain, student, tmp_path):
    """Each of unit length, times the root of its weight, beside one another: models, then tables."""
    sentences, random = sentences_of(pairs), np.random.default_rng(1)
    vectors = random.standard_normal((len(sentences), 16), dtype=np.float32)
    other = write_table(tmp_path / "other.npy", sentences, vectors)
    more = ["--teacher_model_name_or_path", plain, "--teacher_vectors", other, "--teacher_weights", "4", "1"]
    train(pairs, student, tmp_path, *more, "--projection")
    sources = load_pairs(pairs)["train"]["source"][:]
    parts = SentenceEncoder.from_pretrained(plain).encode(sources), vectors[[sentences.index(s) for s in sources]]
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    labels = labels_in(tmp_path, len(sources), 48)
    np.testing.assert_allclose(labels, np.concatenate([2 * unit[0], unit[1]], axis=1), atol=1e-6)

    # Narrowed: each teacher's labels and the two together are found, the narrowed ones are new
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/labels-*/labels.bin")}
    train(pairs, student, tmp_path, *more, "--label_pca", name="pca")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/labels-*/labels.bin")}
    assert before.items() <= after.items() and len(after) == len(before) + 2
    directions = np.linalg.svd(labels - labels.mean(0), full_matrices=False)[2][:32]
    expected = labels @ directions.T
    narrow = next(np.fromfile(path, np.float32) for path in after.keys() - before.keys() if path.stat().st_size > 16000)
    narrow = narrow.reshape(expected.shape)
    np.testing.assert_allclose(narrow, np.sign((narrow * expected).sum(0)) * expected, atol=1e-4)


def test_two_processes_make_the_labels_of_one(pairs, plain, table, student, tmp_path):
    more = ["--teacher_model_name_or_path", plain, "--teacher_vectors", table, "--label_pca"]
    for processes in (1, 2):
        folder = tmp_path / f"{processes}"
        folder.mkdir()
        words = given(pairs, student, folder, *more)
        codes, _, error = forked.run(folder / "said", "train_distill.py", *words, processes=processes)
        assert codes == [0] * processes, error
    files = [sorted((tmp_path / name / "cache").glob("*/*.bin")) for name in "12"]
    assert [path.relative_to(tmp_path / "2") for path in files[1]] == [
        path.relative_to(tmp_path / "1") for path in files[0]
    ]
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes(), one


def test_equal_weights_are_the_default_and_none_stays_in_memory(pairs, plain, teacher, tmp_path, capsys):
    splits = {"train": load_pairs(pairs)["train"]}
    cache = tmp_path / "cache", Accelerator(cpu=True)
    one = Labelling([plain, teacher], [], None, False, "float32", splits, *cache)
    labels = one.labels()
    assert one.width == 64 and not one.teachers
    assert "Normalize" not in capsys.readouterr().out
    two = Labelling([plain, teacher], [], [1.0, 1.0], False, "float32", splits, *cache).labels()
    assert two.name == labels.name
    lengths = np.linalg.norm(labels.of["train"].reshape(-1, 2, 32), axis=2)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


# ---------------------------------------------------------------- scores of a table


@pytest.fixture(scope="module")
def scored_table(plain, tmp_path_factory) -> str:
    """The vectors of all that the tests below are about."""
    path, sentences = tmp_path_factory.mktemp("scored"), [*SENTENCES]
    for one in read_sts(STS):
        sentences += [*one.sentence1, *one.sentence2]
    distinct = [*dict.fromkeys(sentences)]
    return write_table(path / "scored.npy", distinct, SentenceEncoder.from_pretrained(plain).encode(distinct))


SENTENCES = ["I love plants.", "Amo le piante.", "A cat.", "Un gatto."]


def scores_of(folder: Path, *more) -> dict:
    for language, lines in (("en", SENTENCES[::2]), ("it", SENTENCES[1::2])):
        (folder / f"text.{language}").write_text("".join(f"{line}\n" for line in lines))
    words = ["--output_dir", f"{folder}/scores", "--sts", STS, "--bitext", f"{folder}/text.{{en,it}}", *more]
    evaluate(evaluation_parser().parse_args(words))
    return json.loads((folder / "scores/scores.json").read_text())


def test_a_table_has_the_scores_of_its_model(tmp_path, plain, scored_table):
    more = ["--model_name_or_path", f"model={plain}", f"table={scored_table}"]
    model, table = scores_of(tmp_path, *more, "--teacher_model_name_or_path", scored_table)["models"]
    for kind in ("sts", "bitext"):
        for name, metrics in model[kind].items():
            for metric, value in metrics.items():
                assert table[kind][name][metric] == pytest.approx(value, abs=1e-5), metric
    assert table["bitext"]["en-it"]["negative_mse"] < 0


def test_sentences_that_a_table_lacks_are_told_of_and_the_others_scored(tmp_path, plain, scored_table):
    pq.write_table(pa.table({"sentence": SENTENCES, "vector": [[1.0, 2.0]] * 4}), tmp_path / "few.parquet")
    more = ["--model_name_or_path", f"few={tmp_path}/few.parquet", f"all={scored_table}"]
    with pytest.raises(UserError, match=r"few.parquet has no vector for \d+ of \d+ sentences, such as '.*: add them"):
        scores_of(tmp_path, *more)
    few, complete = json.loads((tmp_path / "scores/scores.json").read_text())["models"]
    assert "has no vector for" in few["error"] and "error" not in complete and complete["sts"]


def test_labels_that_overflow_name_their_sentence(pairs, table, student, tmp_path, capsys):
    frame = pq.read_table(table)
    large = frame.set_column(1, "vector", pa.array((1e6 * np.stack(frame["vector"].to_numpy())).tolist()))
    pq.write_table(large, tmp_path / "large.parquet")
    error = refused(
        capsys, pairs, student, tmp_path, "--teacher_vectors", tmp_path / "large.parquet", "--label_dtype", "fp16"
    )
    assert "is not finite in float16: take --teacher_dtype" in error and sentences_of(pairs)[0][:20] in error


def test_what_a_table_does_not_read_is_refused(tmp_path, plain, scored_table):
    for more in (["--prompt", "x: "], ["--prompt", "t=x: "], ["--prompt_name", "query"]):
        with pytest.raises(UserError, match="is for a model, a table's vectors are as they are: leave it out"):
            scores_of(tmp_path, "--model_name_or_path", f"t={scored_table}", *more)
    teacher = ["--teacher_model_name_or_path", plain]
    with pytest.raises(UserError, match="is called teacher, as the teacher is: name it otherwise"):
        scores_of(tmp_path, "--model_name_or_path", f"teacher={scored_table}", *teacher)


def test_a_second_vector_of_a_sentence_is_counted_in_the_scores(tmp_path, scored_table):
    vectors = np.load(scored_table)
    sentences = Path(scored_table).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    both = np.concatenate([vectors, vectors[:2], vectors[:7] + 1])
    twice = write_table(tmp_path / "twice.npy", [*sentences, *sentences[:2], *sentences[:7]], both)
    scores = scores_of(tmp_path, "--model_name_or_path", f"t={twice}")
    assert "t: 7 vectors differ from the first of their sentence, which counts" in scores["notes"]


def test_a_table_cannot_be_exported(tmp_path, plain, scored_table):
    more = ["--model_name_or_path", plain, scored_table, "--export_dir", f"{tmp_path}/export"]
    with pytest.raises(UserError, match=r"scored.npy is a table of vectors, not a model: leave --export_dir out"):
        scores_of(tmp_path, *more)
    assert not (tmp_path / "scores").exists()
