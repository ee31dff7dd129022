"""Bad input ends in one sentence that names file and line, or in a counted drop; never in a traceback."""

import gzip
import json
import lzma
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

import build_pairs
from distill.command import UserError
from distill.pairs.cleaning import mend

ROOT = Path(__file__).parent.parent
GOOD = "".join(f"Sentence number {i}.\tFrase numero {i}.\n" for i in range(2000)).encode()
TED_ROW = {"translations": {"language": ["en", "it"], "translation": ["A dog runs.", "Un cane corre."]}}
NULL_ROW = {"source": "Hi.", "target": None}
TMX = '<?xml version="1.0"?>\n<tmx version="1.4"><body>\n{}\n</body></tmx>\n'


def build(spec, folder: Path, *options) -> dict:
    """The report of a build without dev split."""
    call = ["--corpus", spec, "--target_languages", "it", "--dev_fraction", 0, "--output_dir", folder / "pairs"]
    build_pairs.main(build_pairs.build_parser().parse_args([str(argument) for argument in (*call, *options)]))
    return json.loads((folder / "pairs/report.json").read_text(encoding="utf-8"))


def jsonl(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def zst(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


# name of the case: files to write, corpus, what the sentence says ({x} stands for the corpus's path)
REFUSED = {
    "a null before the first object": (
        {"a.jsonl": b'null\n{"source": "a"}\n'},
        "a.jsonl",
        "a.jsonl, line 1 is no JSON object",
    ),
    "TED without lists": (
        {"a.jsonl": jsonl({"translations": {"language": "en", "translation": "A dog."}})},
        "a.jsonl",
        "but they are no lists",
    ),
    "TED of numbers": (
        {"a.jsonl": jsonl({"translations": {"language": ["en"], "translation": [5]}})},
        "a.jsonl",
        "the column 'translation' holds Int64, not sentences",
    ),
    "sources that are numbers": (
        {"a.jsonl": jsonl({"source": 5, "targets": [{"language": "it", "sentence": "Un cane."}]})},
        "a.jsonl",
        "the column 'source' holds Int64, not sentences",
    ),
    "translations that are numbers": (
        {"a.jsonl": jsonl({"source": "A dog.", "targets": [{"language": "it", "sentence": 5}]})},
        "a.jsonl",
        "the column 'sentence' holds Int64, not sentences",
    ),
    "translations that are all missing": (
        {"a.jsonl": jsonl({"source": "A dog.", "targets": [{"language": "it", "sentence": None}]})},
        "a.jsonl",
        "no pair is left: 1 read, dropped missing 1",
    ),
    "missing file": ({}, "a-en-it.tsv", "a-en-it.tsv does not exist"),
    "unknown suffix": ({"a.rar": b"PK"}, "a.rar", "a.rar has a name that says no format"),
    "unquoted braces": ({"train.en": b"A dog.\n"}, "train.en", "quoted braces"),
    "truncated gzip": (
        {"a-en-it.tsv.gz": gzip.compress(GOOD)[:-200]},
        "a-en-it.tsv.gz",
        "gz cannot be read .*cut short",
    ),
    "truncated xz": ({"a-en-it.tsv.xz": lzma.compress(GOOD)[:-200]}, "a-en-it.tsv.xz", "xz cannot be read .*cut short"),
    "truncated zst": ({"a-en-it.tsv.zst": zst(GOOD)[:-200]}, "a-en-it.tsv.zst", "zst cannot be read .*cut short"),
    "corrupt gzip": (
        {"a-en-it.tsv.gz": gzip.compress(GOOD)[:900] + b"\x00" * 9 + gzip.compress(GOOD)[909:]},
        "a-en-it.tsv.gz",
        "gz cannot be read",
    ),
    "gzip in name only": ({"a-en-it.tsv.gz": GOOD}, "a-en-it.tsv.gz", "gz cannot be read .*Not a gzipped file"),
    "gzip unnamed": ({"a-en-it.tsv": gzip.compress(GOOD)}, "a-en-it.tsv", "line 1 is not UTF-8"),
    "Latin-1": ({"a-en-it.tsv": GOOD + "It is.\tÈ.\n".encode("latin-1")}, "a-en-it.tsv", "line 2001 is not UTF-8"),
    "UTF-16": ({"a-en-it.tsv": "It is.\tÈ.\n".encode("utf-16")}, "a-en-it.tsv", "line 1 is not UTF-8 .*UTF-16"),
    "surrogate bytes": ({"a-en-it.tsv": b"A.\tB.\nHi.\tx\xed\xa0\x80y\n"}, "a-en-it.tsv", "line 2 is not UTF-8"),
    "TSV row too long": (
        {"a-en-it.tsv": GOOD + b"a\tb\tc\n"},
        "a-en-it.tsv",
        "line 2001: expected 2 columns .* found 3",
    ),
    "TSV row too short": ({"a-en-it.tsv": b"a\tb\nc\n"}, "a-en-it.tsv", "line 2: expected 2 columns .* found 1"),
    "TSV of one column": ({"a-en-it.tsv": b"a\nb\n"}, "a-en-it.tsv", "line 1: found 1 columns"),
    "wide TSV ragged": ({"w.tsv": b"en\tit\tde\na\tb\tc\na\tb\n"}, "w.tsv", "line 3: expected 3 columns .* found 2"),
    "TSV header twice": ({"w.tsv": b"en\tit\tit\na\tb\tc\n"}, "w.tsv", "line 1: the header names 'it' more than once"),
    "one language twice": ({"w.tsv": b"en\tit\tita\na\tb\tc\n"}, "w.tsv", "columns it and ita name the same language"),
    "TSV of no language": ({"data.tsv": b"a\tb\n"}, "data.tsv", "neither a header nor the name says the two languages"),
    "header alone": ({"w.tsv": b"en\tit\n"}, "w.tsv", "holds no sentence pair"),
    "binary": ({"a-en-it.tsv": bytes(range(256)) * 9}, "a-en-it.tsv", "line 2 is not UTF-8"),
    "unequal lines": (
        {"x.en": b"A.\nB.\nC.\n", "x.it": b"A.\nB.\n"},
        "x.{en,it}",
        "x.it ends after line 2 and .*x.en goes on",
    ),
    "braces without source": ({"x.de": b"A.\n", "x.it": b"A.\n"}, "x.{de,it}", "lacks the source language 'en'"),
    "braces of one": ({"x.en": b"A.\n"}, "x.{en}", "two different languages"),
    "braces of twins": ({"x.en": b"A.\n", "x.eng": b"A.\n"}, "x.{en,eng}", "two different languages"),
    "braces unknown": ({"x.en": b"A.\n"}, "x.{en,itallian}", "'itallian' is no known language tag: did you mean it"),
    "braces misspelt": ({"x.en": b"A.\n"}, "x.{en,it}", "x.it does not exist"),
    "braces of CSV": ({"x-en.csv": b"a\n", "x-it.csv": b"a\n"}, "x-{en,it}.csv", "not for csv files"),
    "aligned Latin-1": ({"x.en": b"A.\nB.\n", "x.it": b"A.\n\xe8\n"}, "x.{en,it}", "x.it, line 2 is not UTF-8"),
    "JSON cut": ({"a.jsonl": jsonl(TED_ROW) + b'{"translations": {"la'}, "a.jsonl", "line 2 is no sound JSON"),
    "JSON array": ({"a.json": json.dumps([TED_ROW]).encode()}, "a.json", "one JSON array: write one object a line"),
    "JSON of strings": ({"a.jsonl": jsonl(TED_ROW, "x")}, "a.jsonl", "line 2 is no JSON object"),
    "JSON surrogate": (
        {"a.jsonl": jsonl(TED_ROW, {"translation": {"en": "A \ud800 dog.", "it": "x"}})},
        "a.jsonl",
        "line 2 is no sound JSON .*surrogate",
    ),
    "JSON too deep": ({"a.jsonl": jsonl(TED_ROW) + b'{"a":' * 100_000 + b"\n"}, "a.jsonl", "line 2 is no sound JSON"),
    "JSON of other columns": ({"a.jsonl": jsonl({"text": "x"})}, "a.jsonl", "has the columns text: expected"),
    "JSON text for a struct": ({"a.jsonl": jsonl({"translation": "x"})}, "a.jsonl", "has the columns translation"),
    "TED lists unequal": (
        {"a.jsonl": jsonl(TED_ROW, {"translations": {"language": ["en", "it"], "translation": ["A."]}})},
        "a.jsonl",
        "row 2: 2 languages but 1 translations",
    ),
    "no source anywhere": (
        {"a.jsonl": jsonl({"translations": {"language": ["it"], "translation": ["A."]}})},
        "a.jsonl",
        "holds no sentence pair with source language 'en'",
    ),
    "OPUS without source": (
        {"a.jsonl": jsonl({"translation": {"de": "A.", "it": "B."}})},
        "a.jsonl",
        "lacks the source",
    ),
    "nameless target": (
        {"data.jsonl": jsonl({"english": "A dog.", "non_english": "Un cane."})},
        "data.jsonl",
        "nothing names the target language",
    ),
    "numbers for text": ({"a-en-it.jsonl": jsonl({"source": 1, "target": 2})}, "a-en-it.jsonl", "'source' holds Int64"),
    "CSV ragged": (
        {"w.csv": b"en,it\na,b\na,b,c\n"},
        "w.csv",
        r"w.csv, line 3: expected 2 columns \(en,it\), found 3",
    ),
    "CSV header twice": ({"w.csv": b"en,it,it\na,b,c\n"}, "w.csv", "line 1: the header names 'it' more than once"),
    "CSV quote left open": (
        {"w.csv": b'en,it\n"A dog runs.,Un cane corre.\nThe sun,Il sole\n"We eat",Mangiamo\nA,B\n'},
        "w.csv",
        "w.csv, line 2 begins a row with unsound quotes",
    ),
    "JSON true": ({"a.jsonl": jsonl({"en": "A.", "it": "B."}, {"en": "C.", "it": True})}, "a.jsonl", "line 2: the col"),
    "JSON number": (
        {"a.jsonl": b"\n" + jsonl({"en": "A.", "it": "B."}, {"en": "C.", "it": 3})},
        "a.jsonl",
        "line 3: the column it changed from string to number",
    ),
    "JSON list": (
        {"a.jsonl": jsonl({"translation": {"en": "A.", "it": ["B."]}}, {"translation": {"en": "C.", "it": "D."}})},
        "a.jsonl",
        "line 2: the column translation/it changed from array to string",
    ),
    "JSON key twice": (
        {"a.jsonl": b'{"en": "A.", "en": "B."}\n'},
        "a.jsonl",
        "line 1: the column en was spec",
    ),
    "TMX of two segments": (
        {"a.tmx": TMX.format('<tu><tuv xml:lang="en"><seg>A.</seg><seg>B.</seg></tuv></tu>').encode()},
        "a.tmx",
        "translation unit 1 has two <seg> in one <tuv>",
    ),
    "TMX of unknown encoding": (
        {"a.tmx": TMX.replace("?>", ' encoding="klingon"?>').format("").encode()},
        "a.tmx",
        "a.tmx cannot be read .*encoding",
    ),
    "columns of text": ({"x.en": b"A.\n", "x.it": b"B.\n"}, "en+it=x.{en,it}", "x.{en,it} names its languages itself"),
    "args.json of nobody": (
        {"saved/args.json": b"{", "saved/state.json": b"{}"},
        "saved",
        "args.json is no sound",
    ),
    "CSV Latin-1": ({"w.csv": b"en,it\na,b\nc,\xe8\n"}, "w.csv", "w.csv, line 3 is not UTF-8"),
    "Parquet cut": ({"a.parquet": parquet([TED_ROW])[:-20]}, "a.parquet", "a.parquet cannot be read .*cut short"),
    "Parquet in name only": ({"a.parquet": GOOD}, "a.parquet", "a.parquet cannot be read"),
    "Parquet of numbers": ({"a.parquet": parquet([{"en": 1, "it": 2}])}, "a.parquet", "lacks the source language 'en'"),
    "TMX cut": ({"a.tmx": TMX[:50].encode()}, "a.tmx", r"a.tmx, line 3, column \d+ is no XML"),
    "TMX of no unit": ({"a.tmx": TMX.format("").encode()}, "a.tmx", "holds no translation unit"),
    "TMX without language": (
        {"a.tmx": TMX.format("<tu><tuv><seg>A.</seg></tuv></tu>").encode()},
        "a.tmx",
        "translation unit 1 has a <tuv> without xml:lang",
    ),
    "directory for a file": ({"a-en-it.tsv/x": b""}, "a-en-it.tsv", "a-en-it.tsv"),
    "directory in braces": ({"x.en/x": b"", "x.it": b"A.\n"}, "x.{en,it}", "x.en is a folder"),
    "Arrow folder gutted": (
        {"saved/dataset_dict.json": b'{"splits": ["train"]}'},
        "saved",
        "saved .*cannot be read|saved is no",
    ),
    "Arrow folder garbled": (
        {"saved/state.json": b"{", "saved/dataset_info.json": b"{}"},
        "saved",
        "saved is no whole Arrow",
    ),
    "absent hub id": ({}, "nobody/nothing:en-it:train", "nobody/nothing:en-it:train cannot be loaded"),
    "script dataset": (
        {"ted_multi/ted_multi.py": b"import datasets\n"},
        "ted_multi",
        "script dataset, .*refs/convert/parquet, or download its raw file",
    ),
    "absent split": (
        {"talks/train.jsonl": jsonl(TED_ROW)},
        "talks:default:dev",
        "talks:default:dev cannot be loaded .*dev",
    ),
    **{
        f"empty {name}": ({name: b""}, name, f"{name} (holds no|cannot be read|is no)")
        for name in ("a-en-it.tsv", "a.jsonl", "a.csv", "a.parquet", "a-en-it.tsv.gz")
    },
    "empty TMX": ({"a.tmx": b""}, "a.tmx", "a.tmx, line 1, column 1 is no XML"),
    "empty text": ({"x.en": b"", "x.it": b""}, "x.{en,it}", "holds no sentence pair"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(tmp_path, case, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files, spec, message = REFUSED[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        _, plus, name = spec.rpartition("en+it=")
        build(f"{plus}{tmp_path / name}" if "nobody/" not in spec else spec, tmp_path)
    said = str(error.value)
    assert "\n" not in said and len(said) < 600 and "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


# name of the case: file, its content, pairs read, kept, and what is counted
COUNTED = {
    "NUL bytes": ("a-en-it.tsv", b"A d\x00og runs.\tUn cane\x00 corre.\n", 1, 1, {"control_characters": 1}),
    "a line of 1 MB": ("a-en-it.tsv", GOOD + b"a" * 2**20 + b"\tb\n", 2001, 2000, {"too_long": 1}),
    "blank lines": ("a-en-it.tsv", GOOD + b"\n\n", 2002, 2000, {"missing": 2}),
    "no last line end": ("a-en-it.tsv", GOOD.rstrip(b"\n"), 2000, 2000, {}),
    "byte order mark": ("w.tsv", b"\xef\xbb\xbfen\tit\nA dog runs.\tUn cane corre.\n", 1, 1, {}),
    "Windows line ends": ("a-en-it.tsv", b"A dog runs.\tUn cane corre.\r\n", 1, 1, {}),
    "half a pair": ("a-en-it.tsv", GOOD + b"\tCiao.\nHi.\t\n", 2002, 2000, {"missing": 2}),
    "null in JSON": ("a-en-it.jsonl", jsonl(NULL_ROW, {"source": "Bye.", "target": "Ciao."}), 2, 1, {"missing": 1}),
    "null translations": ("a.jsonl", jsonl(TED_ROW, {"translations": None}), 1, 1, {}),
    "new line in CSV": ("w.csv", b'en,it\n"A dog\nruns.","Un cane\r\ncorre."\n', 1, 1, {"white_space": 1}),
    "empty CSV cells": (
        "w.csv",
        "en,it,de\nA dog runs.,,Ein Hund rennt.\nThe sun is hot.,Il sole è caldo.,\n".encode(),
        1,
        1,
        {},
    ),
    "CSV of blanks after commas": ("w.csv", b'en, it\n"A dog, runs.", "Un cane, corre."\n', 1, 1, {}),
    "upper-case suffix": ("A-EN-IT.TSV", b"A dog runs.\tUn cane corre.\n", 1, 1, {}),
    "blank line in CSV": ("w.csv", b"en,it\n\nA dog runs.,Un cane corre.\n", 2, 1, {"missing": 1}),
    "CSV of trailing commas": ("w.csv", b"en,it,,\nA dog runs.,Un cane corre.,,\n", 1, 1, {}),
    "a cell of 1 MB": ("w.csv", b"en,it\nA dog runs.,Un cane corre.\nA," + b"b" * 2**20 + b"\n", 2, 1, {"too_long": 1}),
    "nested TMX": ("a.tmx", TMX.format(
        f'<tu><tuv xml:lang="en"><seg>A dog.</seg></tuv><tuv xml:lang="it"><seg>{"<hi>" * 3000}Un cane.'
        f'{"</hi>" * 3000}</seg></tuv></tu>'
    ).encode(), 1, 1, {}),
    "empty segment": ("a.tmx", TMX.format(
        '<tu><tuv xml:lang="en"><seg>A dog.</seg></tuv><tuv xml:lang="it"/></tu>'
        '<tu><tuv xml:lang="en"><seg>A cat.</seg></tuv><tuv xml:lang="it"><seg>Un gatto.</seg></tuv></tu>'
    ).encode(), 2, 1, {"missing": 1}),
}  # fmt: skip


def test_lists_of_fixed_size(tmp_path):
    lists = [pa.array([both], pa.list_(pa.string(), 2)) for both in (["en", "it"], ["A dog.", "Un cane."])]
    struct = pa.StructArray.from_arrays(lists, ["language", "translation"])
    pa.parquet.write_table(pa.table({"translations": struct}), tmp_path / "a.parquet")
    assert build(tmp_path / "a.parquet", tmp_path)["corpora"][0]["languages"]["it"]["kept"] == 1


def test_placeholders_part_words_and_khmer_keeps_its_zero_width_spaces(tmp_path):
    units = [("A dog<ph/>runs<bpt/>!", "Un<ph/> cane."), ("A b<bpt/>ig<ept/> dog.", "Un c<ph/>.")]
    text = "".join(f'<tu><tuv lang="en"><seg>{e}</seg></tuv><tuv lang="it"><seg>{i}</seg></tuv></tu>' for e, i in units)
    (tmp_path / "a.tmx").write_text(TMX.format(text))
    build(tmp_path / "a.tmx", tmp_path)
    rows = datasets.load_from_disk(tmp_path / "pairs")["train"]
    assert {(row["source"], row["targets"][0]["sentence"]) for row in rows} == {
        ("A dog runs!", "Un cane."),
        ("A big dog.", "Un c."),
    }
    khmer = "ខ្ញុំ\u200bស្រលាញ់"
    texts = pl.Series([f"{khmer}\u200b\u200b រុក្ខជាតិ\u200b", "a\u200b\u200bb\u200b"])
    assert mend(texts, ["control_characters"])[0].to_list() == [f"{khmer} រុក្ខជាតិ", "ab"]


@pytest.mark.parametrize("case", COUNTED)
def test_counted(tmp_path, case):
    name, content, read, kept, counts = COUNTED[case]
    (tmp_path / name).write_bytes(content)
    entry = build(tmp_path / name, tmp_path)["corpora"][0]["languages"]["it"]
    assert (entry["read"], entry["kept"]) == (read, kept)
    assert entry["mended"] | entry["dropped"] == counts
    assert read == kept + sum(entry["dropped"].values())


def test_endless_line(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.text_files.MAX_LINE", 1000)
    monkeypatch.setattr("distill.text_files.BLOCK", 500)
    (tmp_path / "a-en-it.tsv").write_bytes(b"A.\tB.\n" + b"x" * 5000)
    with pytest.raises(UserError, match=r"a-en-it.tsv, line 2 is longer than"):
        build(tmp_path / "a-en-it.tsv", tmp_path)


def test_line_numbers_beyond_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.text_files.BLOCK", 500)
    (tmp_path / "a-en-it.tsv").write_bytes(GOOD + b"x\xff\ty\n")
    with pytest.raises(UserError, match=r"line 2001 is not UTF-8"):
        build(tmp_path / "a-en-it.tsv", tmp_path)
    (tmp_path / "b-en-it.tsv").write_bytes(GOOD + b"x\n")
    with pytest.raises(UserError, match=r"line 2001: expected 2 columns"):
        build(tmp_path / "b-en-it.tsv", tmp_path)
    (tmp_path / "c.jsonl").write_bytes(jsonl(*[TED_ROW] * 50) + b"{\n")
    with pytest.raises(UserError, match=r"line 51 is no sound JSON"):
        build(tmp_path / "c.jsonl", tmp_path)


def test_pipe_without_a_writer_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a-en-it.tsv")
    with pytest.raises(UserError, match="is a folder or a device"):
        build(tmp_path / "a-en-it.tsv", tmp_path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("no.csv", None, "no.csv does not exist"),
        ("sts.csv", b"A.,B.,1\nA.,\xe8,1\n", "sts.csv, line 2 is not UTF-8"),
        ("sts.csv", b'"A dog,1\nA "cat",2\n', "sts.csv, line 1 begins a row with unsound quotes"),
        ("test.txt", b"\n", "test.txt holds no sentence to exclude"),
        ("test.txt", b"", "test.txt holds no sentence to exclude"),
        ("test.jsonl", b"", "test.jsonl holds no sentence to exclude"),
        ("sts-{en,it}.csv", None, "sts-en.csv does not exist"),
    ],
)
def test_bad_exclude(tmp_path, name, content, message):
    (tmp_path / "a-en-it.tsv").write_bytes(GOOD)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        build(tmp_path / "a-en-it.tsv", tmp_path, "--exclude", tmp_path / name)


@pytest.mark.parametrize("columns, message", [("a b", "lacks the column 'a'"), ("n target", "'n' holds Int64")])
def test_bad_columns(tmp_path, columns, message):
    (tmp_path / "a-en-it.jsonl").write_bytes(jsonl({"source": "A.", "target": "B.", "n": 1}))
    source, target = columns.split()
    with pytest.raises(UserError, match=message):
        build(tmp_path / "a-en-it.jsonl", tmp_path, "--source_column", source, "--target_column", target)


# ---------------------------------------------------------------- the machine says no


@pytest.fixture
def open_folder():
    """A folder that every user may enter and write, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def plain_user():
    """Root may read and write anything: become nobody for the test."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_no_permission_to_read(open_folder, plain_user):
    path = open_folder / "a-en-it.tsv"
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(UserError, match=r"a-en-it.tsv may not be read"):
        build(path, open_folder)
    path.chmod(0o600)


def test_no_permission_to_write(open_folder, plain_user):
    path = open_folder / "a-en-it.tsv"
    path.write_bytes(GOOD)
    (open_folder / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"locked/pairs cannot be written \(Permission denied\)"):
        build(path, open_folder / "locked")


def test_output_below_a_file(tmp_path):
    (tmp_path / "a-en-it.tsv").write_bytes(GOOD)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/pairs cannot be written \(Not a directory\)"):
        build(tmp_path / "a-en-it.tsv", tmp_path / "file")


@pytest.mark.parametrize("limit", [1000, 40_000])
def test_full_disk(tmp_path, limit):
    """A file-size limit fails writes as a full disk does; the old output stays."""
    (tmp_path / "a-en-it.tsv").write_bytes(GOOD)
    build(tmp_path / "a-en-it.tsv", tmp_path)
    old = {path: path.read_bytes() for path in (tmp_path / "pairs").rglob("*") if path.is_file()}
    call = ["--corpus", "a-en-it.tsv", "--target_languages", "it", "--output_dir", "pairs", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "build_pairs.py", *call],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == "build_pairs.py: error: pairs cannot be written (File too large): nothing was changed there\n"
    assert {path: path.read_bytes() for path in (tmp_path / "pairs").rglob("*") if path.is_file()} == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-en-it.tsv", "pairs"]
