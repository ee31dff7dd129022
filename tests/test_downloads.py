"""Corpora as they are downloaded: archives of OPUS, tables of Tatoeba and manythings.org, patterns of files, URLs."""

import gzip
import json
import zipfile
from pathlib import Path

import fsspec
import pytest

import build_pairs
from distill.command import UserError
from distill.pairs.tables import texts
from distill.text_files import expand_globs

ENGLISH = [f"The dog number {number} runs home." for number in range(30)]
ITALIAN = [f"Il cane numero {number} corre a casa." for number in range(30)]


def build(folder: Path, *corpora, options: tuple = ()) -> list[tuple[str, str]]:
    """The pairs that a build keeps."""
    call = ["--corpus", *corpora, "--target_languages", "it", "--dev_fraction", "0", "--export_tsv", *options]
    build_pairs.main(build_pairs.build_parser().parse_args([*map(str, call), "--output_dir", str(folder / "pairs")]))
    with gzip.open(folder / "pairs/tsv/en-it-train.tsv.gz", "rt", encoding="utf-8") as file:
        return sorted(tuple(line.rstrip("\n").split("\t")) for line in file)


def text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def packed(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


EXPECTED = sorted(zip(ENGLISH, ITALIAN, strict=True))
OPUS = {"README": b"A README.\n", "TED2020.en-it.en": text(ENGLISH), "TED2020.en-it.it": text(ITALIAN)}


def test_an_archive_of_opus(tmp_path):
    path = packed(tmp_path / "en-it.txt.zip", **OPUS, **{"TED2020.en-it.xml": b"<cesAlign/>"})
    assert build(tmp_path, path) == EXPECTED
    assert build(tmp_path, f"zip://TED2020.en-it.{{en,it}}::{path}") == EXPECTED
    assert sorted(line for part in texts(str(path)) for line in part) == sorted(ENGLISH + ITALIAN)
    assert json.loads((tmp_path / "pairs/report.json").read_text())["corpora"][0]["languages"]["it"]["read"] == 30


def test_tables_of_tatoeba_and_manythings(tmp_path):
    licence = "CC-BY 2.0 (France) Attribution: tatoeba.org #1 (CK) & #2 (CK)"
    manythings = text([f"{s}\t{t}\t{licence}" for s, t in zip(ENGLISH, ITALIAN, strict=True)])
    path = packed(tmp_path / "ita-eng.zip", **{"_about.txt": b"About.\n", "ita.txt": manythings})
    assert build(tmp_path, f"en+it=zip://ita.txt::{path}") == EXPECTED
    (tmp_path / "ita.txt").write_bytes(manythings)
    assert build(tmp_path, f"en+it={tmp_path}/ita.txt") == EXPECTED
    numbered = [f"{i}\t{t}\t{i + 9}\t{s}" for i, (s, t) in enumerate(zip(ENGLISH, ITALIAN, strict=True))]
    (tmp_path / "pairs-it-en.tsv").write_bytes(b"\xef\xbb\xbf" + text(numbered))
    assert build(tmp_path, tmp_path / "pairs-it-en.tsv") == EXPECTED


def test_three_columns_that_nobody_knows_are_refused(tmp_path):
    (tmp_path / "en-it.tsv").write_bytes(text([f"{s}\t{t}\tx" for s, t in EXPECTED]))
    with pytest.raises(UserError, match="line 1: found 3 columns"):
        build(tmp_path, tmp_path / "en-it.tsv")


def test_what_fsspec_reaches(tmp_path):
    files = fsspec.filesystem("memory")
    for name, lines in (("en", ENGLISH), ("it", ITALIAN)):
        files.pipe(f"/corpus/talks.{name}.gz", gzip.compress(text(lines)))
    assert build(tmp_path, "memory://corpus/talks.{en,it}.gz") == EXPECTED
    rows = [json.dumps({"en": s, "it": t}) for s, t in EXPECTED]
    files.pipe("/corpus/talks.jsonl", text(rows))
    assert build(tmp_path, "memory://corpus/talks.jsonl") == EXPECTED


def test_patterns_of_files(tmp_path):
    for number in range(3):
        part = slice(10 * number, 10 * number + 10)
        for name, lines in (("en", ENGLISH), ("it", ITALIAN)):
            (tmp_path / f"news-{number}.{name}").write_bytes(text(lines[part]))
        rows = text([f"{s}\t{t}" for s, t in zip(ENGLISH[part], ITALIAN[part], strict=True)])
        (tmp_path / f"talks-{number}.tsv").write_bytes(rows)
    assert build(tmp_path, f"{tmp_path}/news-*.{{en,it}}") == EXPECTED
    read = [corpus["corpus"] for corpus in json.loads((tmp_path / "pairs/report.json").read_text())["corpora"]]
    assert read == [f"{tmp_path}/news-{number}.{{en,it}}" for number in range(3)]
    assert build(tmp_path, f"en+it={tmp_path}/talks-[012].tsv") == EXPECTED
    assert expand_globs(f"{tmp_path}/n*w*-?.{{en,it}}") == read
    (tmp_path / "a[b].tsv").write_bytes(b"")
    assert expand_globs(f"{tmp_path}/a[b].tsv") == [f"{tmp_path}/a[b].tsv"], "a file that is called so"
    assert expand_globs("user/dataset:en-it") == ["user/dataset:en-it"]


@pytest.mark.parametrize(
    "spec, message",
    [
        ("{tmp}/*.nothing", r"\*.nothing matches no file: check the pattern"),
        ("zip://ted.{{en,it}}::{tmp}/nowhere.zip", "nowhere.zip does not exist: check the path"),
        ("zip://ted.{{en,it}}::{tmp}/other.zip", "zip://ted.en::.*other.zip does not exist: check the path"),
        ("{tmp}/other.zip", "other.zip holds no two files like ted.en-it.en and ted.en-it.it, but a.txt: name those"),
        ("{tmp}/broken.zip", "broken.zip cannot be read .File is not a zip file"),
        ("nope://x.{{en,it}}", "nope://x.en cannot be read: Protocol not known: nope"),
    ],
)
def test_mistakes(tmp_path, spec, message):
    packed(tmp_path / "other.zip", **{"a.txt": b"A.\n"})
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=message):
        build(tmp_path, spec.format(tmp=tmp_path))
    assert not (tmp_path / "pairs").exists()
