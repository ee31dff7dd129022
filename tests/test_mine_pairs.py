"""mine_pairs.py: margins by hand, neighbours against brute force, planted pairs by the script, stops, bad input."""

import json
import re
from collections import Counter
from pathlib import Path

import faiss
import forked
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from conftest import SAMPLES, launch

import mine_pairs
from build_pairs import build_parser as pairs_parser
from build_pairs import main as build_pairs
from distill.command import Stopped, UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.mining import neighbours
from distill.mining.margins import best_margins, mined_pairs, one_to_one
from distill.mining.text import FAULTS, Rules, files_by_language, write_sentences
from distill.pairs.pairs_folder import load_pairs
from distill.ranks import known
from distill.scoring import search

PLANTED = 40


def test_margins_by_hand():
    cosines = np.array([[0.9, 0.6], [0.8, 0.8]], np.float32)
    rows = np.array([[2, 0], [1, 2]])
    around = np.array([0.6, 0.4, 1.0], np.float32)
    # Source 0: 0.9 / mean(0.75, 1) = 1.029 with 2, 0.6 / mean(0.75, 0.6) = 0.889 with 0; source 1: 1.333 with 1
    copies = np.zeros((2, 2), bool)
    found, margins = best_margins(cosines, rows, around, copies)
    assert found.tolist() == [2, 1]
    assert margins == pytest.approx([0.9 / 0.875, 0.8 / 0.6])
    copies[0, 0] = copies[1] = True
    found, margins = best_margins(cosines, rows, around, copies)
    assert found[0] == 0 and margins == pytest.approx([0.6 / 0.675, -np.inf])


def test_a_sentence_that_is_near_to_none_is_in_no_pair():
    """Its neighbours' cosines are about zero, and a ratio of them would be anything."""
    cosines = np.array([[0.01, -0.02], [-0.1, -0.2]], np.float32)
    _, margins = best_margins(cosines, np.array([[0, 1], [0, 1]]), np.zeros(2, np.float32), np.zeros((2, 2), bool))
    assert margins.tolist() == [-np.inf, -np.inf]


def test_a_sentence_is_in_one_pair():
    kept = one_to_one(np.array([0, 0, 1, 1, 2]), np.array([5, 6, 5, 6, 7]))
    assert kept.tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("k", [2, 4])
def test_pairs_are_those_of_every_candidate_taken_by_falling_margin(k):
    random = np.random.default_rng(k)
    source, target = random.random((30, 5)), random.random((20, 5))
    source[:10] = target[:10] + 0.1 * random.random((10, 5))
    both = [neighbours.k_nearest(*sides, k, "cpu", 7) for sides in ((source, target), (target, source))]
    contents = np.arange(30, dtype=np.uint64), np.arange(100, 120, dtype=np.uint64)
    found, best = mined_pairs(*both, contents, 0.0)

    cosines = (source / np.linalg.norm(source, axis=1)[:, None]) @ (target / np.linalg.norm(target, axis=1)[:, None]).T
    around = [np.sort(side, axis=1)[:, -k:].mean(1) for side in (cosines, cosines.T)]
    near = [np.sort(side, axis=1)[:, -k] for side in (cosines, cosines.T)]
    margins = cosines / ((around[0][:, None] + around[1]) / 2)
    forward = np.where(cosines >= near[0][:, None], margins, -np.inf)
    backward = np.where(cosines >= near[1], margins, -np.inf)
    candidates = {(i, forward[i].argmax()) for i in range(30)} | {(backward[:, j].argmax(), j) for j in range(20)}
    expected, taken = [], set()
    for i, j in sorted(candidates, key=lambda pair: -margins[pair]):
        if not taken & {("source", i), ("target", j)}:
            taken |= {("source", i), ("target", j)}
            expected.append((i, j))
    assert list(zip(found.sources, found.targets, strict=True)) == expected
    assert found.margins == pytest.approx([margins[pair] for pair in expected], abs=1e-5)
    assert best == pytest.approx(forward.max(1), abs=1e-5)
    some, _ = mined_pairs(*both, contents, 1.05)
    assert some.sources.tolist() == found.sources[found.margins >= 1.05].tolist()
    contents[1][expected[0][1]] = expected[0][0]  # the best pair is of equal sentences
    assert expected[0] not in zip(*mined_pairs(*both, contents, 0.0)[0][:2], strict=True)


def test_neighbours_are_those_of_brute_force_in_blocks_of_any_size():
    random = np.random.default_rng(0)
    queries, answers = random.normal(size=(7, 4)), random.normal(size=(11, 4))
    unit = [side / np.linalg.norm(side, axis=1)[:, None] for side in (queries, answers)]
    cosines = unit[0] @ unit[1].T
    expected = np.argsort(-cosines, axis=1)[:, :3]
    for block in (1, 2, 100):
        found, rows = neighbours.k_nearest(queries, answers, 3, "cpu", block)
        assert rows.tolist() == expected.tolist()
        assert found == pytest.approx(np.take_along_axis(cosines, expected, 1), abs=1e-6)


def test_lists_find_nearly_what_exact_search_finds(tmp_path):
    random = np.random.default_rng(0)
    centres = random.normal(size=(300, 16))
    answers = centres[random.integers(0, 300, 20_000)] + 0.5 * random.normal(size=(20_000, 16))
    answers = (answers / np.linalg.norm(answers, axis=1)[:, None]).astype(np.float16)
    exact, lists = (
        neighbours.searcher(answers, exact, tmp_path / "index", Accelerator())(answers[:200], 4)
        for exact in (True, False)
    )
    assert isinstance(faiss.read_index(f"{tmp_path}/index/index.bin"), faiss.IndexIVFScalarQuantizer)
    agreeing = np.mean([len(set(one) & set(other)) / 4 for one, other in zip(exact[1], lists[1], strict=True)])
    assert agreeing > 0.95
    same = exact[1] == lists[1]
    assert lists[0][same] == pytest.approx(exact[0][same], abs=2e-3)


@pytest.mark.parametrize("count, k", [(8, 4), (2000, 1000)])
def test_lists_give_as_many_neighbours_as_there_are(tmp_path, count, k):
    """Of few sentences, and where the lists that are searched hold too few."""
    answers = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float16)
    cosines, rows = neighbours.searcher(answers, False, tmp_path / "index", Accelerator())(answers[:5], k)
    assert all(len(set(row)) == k and min(row) >= 0 for row in rows.tolist()) and np.isfinite(cosines).all()


def test_all_cosines_are_computed_up_to_a_number():
    cpu = torch.device("cpu")
    assert neighbours.is_exact("auto", 10**5, 10**6, cpu) and not neighbours.is_exact("auto", 10**6, 10**6, cpu)
    assert neighbours.is_exact("exact", 10**9, 10**9, cpu) and not neighbours.is_exact("lists", 1, 1, cpu)


def test_a_vector_that_is_not_finite_is_told_with_its_sentence(tmp_path):
    sentences = ["fine", "broken"]
    vectors = np.array([[1.0, 2.0], [np.nan, 1.0]], np.float32)
    with pytest.raises(UserError, match="the vector of 'broken' is not finite"):
        read = 2, lambda start, stop: sentences[start:stop]
        neighbours.write_vectors(tmp_path / "vectors", *read, lambda texts: vectors, Accelerator())


# ---------------------------------------------------------------- text


def test_sentences_are_mended_judged_and_taken_once(tmp_path):
    lines = ["Hello  there.", "", "hello there!", "123", "x" * 30, "Привет", "Wir essen heute Brot."]
    lines.append("Mr. Smith came. He left!")
    (tmp_path / "a.en").write_text("\n".join(lines), encoding="utf-8")
    for split, last in ((False, ["Mr. Smith came. He left!"]), (True, ["Mr. Smith came.", "He left!"])):
        folder = tmp_path / f"split-{split}"
        folder.mkdir()
        write_sentences("en-GB", [f"{tmp_path}/a.en"], Rules(split, FAULTS, 25), folder)
        sentences = mine_pairs.datasets.Dataset.from_file(f"{folder}/sentences.bin")
        rows = np.fromfile(folder / "rows.bin", np.int64)
        assert sentences[rows]["sentence"] == ["Hello there.", *last]
        counts = json.loads((folder / "counts.json").read_text())
        dropped = {"empty": 1, "too_long": 1, "no_letters": 1, "wrong_script": 1, "wrong_language": 1, "duplicate": 1}
        assert counts == {"lines": 8, "sentences": 1 + len(last)} | dropped


def test_files_by_language(tmp_path):
    assert files_by_language(["a.{en,ita}", "b.{pt-BR=br,en}"]) == {
        "en": ["a.en", "b.en"],
        "it": ["a.ita"],
        "pt-BR": ["b.br"],
    }
    with pytest.raises(UserError, match=r"--text names a.en twice"):
        files_by_language(["a.{en,it}", "a.{en,de}"])


# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Planted pairs among sentences that have no translation.

    A model that knows neither of their last letters, and no case, reads them as equal. The second language and the
    third, Maori and Hawaiian, no identifier knows.
    """
    folder = tmp_path_factory.mktemp("text")
    talks = [json.loads(line)["translations"] for line in (SAMPLES / "talks.jsonl").open(encoding="utf-8")]
    rows = [dict(zip(row["language"], row["translation"], strict=True)).get("en") for row in talks]
    rows = [*dict.fromkeys(filter(None, rows))]
    planted, rest = rows[:PLANTED], rows[PLANTED:]
    for language, last, sentences in (
        ("en", "ξ", rest[:150] + planted),
        ("mi", "ω", planted[::-1] + rest[150:260]),
        ("haw", "ω", rest[260:400] + planted[:10]),
    ):
        text = "".join(f"{sentence} {last}\n" for sentence in sentences)
        (folder / f"news.{language}").write_text(text, encoding="utf-8")
    return folder


def options(text: Path, model: str, output: Path, languages: str = "en,mi,haw", margin: float = 1.004) -> list[str]:
    """A random model finds all sentences near to one another: its margins are small."""
    data = ["--text", f"{text}/news.{{{languages}}}", "--model_name_or_path", model, "--output_dir", str(output)]
    return [*data, "--min_margin", str(margin)]


def mine(*given: str) -> None:
    mine_pairs.main(mine_pairs.build_parser().parse_args(given))


def test_planted_pairs_are_found_by_two_processes_as_by_one_and_build_pairs_reads_them(tmp_path, text, teacher, capsys):
    mine(*options(text, teacher, tmp_path / "one"))
    said = capsys.readouterr().out
    code, _, errors = launch("mine_pairs.py", *options(text, teacher, tmp_path / "two"), processes=2)
    assert code == 0, errors
    one, two = ((tmp_path / name / "pairs.parquet").read_bytes() for name in ("one", "two"))
    assert one == two

    planted = set((text / "news.en").read_text().splitlines()[-PLANTED:])
    rows = pq.read_table(tmp_path / "one/pairs.parquet").to_pylist()
    for language in ("mi", "haw"):
        margins = [row["margin"] for row in rows if row["language"] == language]
        assert margins == sorted(margins, reverse=True)
    right = [row for row in rows if row["source"][:-1] == row["target"][:-1]]
    assert {row["source"] for row in right} <= planted
    found = Counter(row["language"] for row in right)
    assert found == {"mi": PLANTED, "haw": 10}
    assert all(row in right for row in rows[: PLANTED // 2]), "the best are planted, whatever a random model is near to"

    report = json.loads((tmp_path / "one/report.json").read_text())
    assert report["texts"]["en"] == dict.fromkeys(report["texts"]["en"], 0) | {"lines": 190, "sentences": 190}
    assert report["mined"]["mi"]["pairs"] + report["mined"]["haw"]["pairs"] == len(rows)
    assert sum(report["mined"]["mi"]["margins"]["counts"]) == 190
    assert report["mined"]["mi"]["last"][-1]["margin"] == pytest.approx(report["mined"]["mi"]["lowest_margin"])
    assert (tmp_path / "one/margins.png").is_file()
    assert re.search(rf"en-mi +{report['mined']['mi']['pairs']} ", said) and "can be removed" in said

    command = f"--corpus {tmp_path}/one --target_languages mi haw --dev_fraction 0.1 --output_dir {tmp_path}/pairs"
    build_pairs(pairs_parser().parse_args(command.split()))
    pairs = load_pairs(f"{tmp_path}/pairs")
    found = {
        (row["source"], target["sentence"]) for split in pairs.values() for row in split for target in row["targets"]
    }
    assert found == {(row["source"], row["target"]) for row in rows}
    wrong = [*command.split()[:-1], f"{tmp_path}/other", "--source_language", "de"]
    with pytest.raises(UserError, match="has the source language en, not de"):
        build_pairs(pairs_parser().parse_args(wrong))


def test_another_threshold_encodes_nothing_and_searches_nothing(tmp_path, text, teacher, monkeypatch):
    given = ["--cache_dir", f"{tmp_path}/cache", *options(text, teacher, tmp_path / "mined", "en,mi")]
    mine(*given)
    monkeypatch.setattr(SentenceEncoder, "from_pretrained", None)
    monkeypatch.setattr(search, "cosine_blocks", None)
    mine(*given[:-2], "--number_of_pairs", "7")
    rows = pq.read_table(tmp_path / "mined/pairs.parquet").to_pylist()
    assert len(rows) == 7 and all(row["source"][:-1] == row["target"][:-1] for row in rows)
    mine(*given, "--min_margin", "0")
    assert len(pq.read_table(tmp_path / "mined/pairs.parquet")) > PLANTED


def test_after_a_stop_the_same_command_goes_on(tmp_path, text, teacher, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", 50)
    mine(*options(text, teacher, tmp_path / "whole", "en,mi"))
    encode, stop_after, encoded = SentenceEncoder.encode, 250, 0

    def counting(encoder, sentences, *more):
        nonlocal encoded
        encoded += len(sentences)
        if encoded > stop_after:
            known.signal = 15
        return encode(encoder, sentences, *more)

    monkeypatch.setattr(SentenceEncoder, "encode", counting)
    with pytest.raises(Stopped):
        mine(*options(text, teacher, tmp_path / "mined", "en,mi"))
    assert not (tmp_path / "mined").exists()
    known.signal, known.stopping, stop_after, encoded = 0, False, 10_000, 0
    mine(*options(text, teacher, tmp_path / "mined", "en,mi"))
    assert encoded == 340 - 240, "what was there is not encoded again"
    assert (tmp_path / "mined/pairs.parquet").read_bytes() == (tmp_path / "whole/pairs.parquet").read_bytes()


def test_mistakes_are_one_sentence(tmp_path, text, teacher):
    output = tmp_path / "mined"
    (text / "news.fr").write_text("1\n2\n")
    (text / "news.es").write_text("uno\ndos\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kept").write_text("kept")
    for given, said in [
        (options(text, teacher, output, "mi,haw"), "--text must name en and another language, found mi haw"),
        (options(text, teacher, output, "en,q1"), "q1"),
        (options(text, teacher, output, "en,fr"), "holds no sentence in fr (0 empty, 0 too_long, 2 no_letters"),
        (options(text, teacher, output, "en,es"), "2 sentences of es are fewer than --k 4"),
        (options(text, teacher, output, "en,mi", 9), "have a margin of 9.0, the highest is of mi 1.0"),
        ([*options(text, teacher, output, "en,mi"), "--cache_dir", f"{output}/cache"], "name another --cache_dir"),
        ([*options(text, teacher, output, "en,mi"), "--prompt_name", "none"], "has no prompt"),
        (options(text, str(tmp_path / "none"), output, "en,mi"), "none"),
        (options(text, teacher, tmp_path / "mine", "en,mi"), "holds kept, which no script wrote"),
        (options(text, teacher, text, "en,mi"), "would be written over the input"),
        (options(tmp_path, teacher, output, "en,mi"), "news.en does not exist"),
    ]:
        codes, _, errors = forked.run(tmp_path / "said" / said[:20].replace("/", "-"), "mine_pairs.py", *given)
        assert codes == [2] and said in errors and "Traceback" not in errors, errors
        assert not output.exists()
    assert (tmp_path / "mine/kept").read_text() == "kept"
