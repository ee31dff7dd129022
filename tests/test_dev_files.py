"""Dev scores on bitexts and retrieval of the user's choice: eval_sts.py's, and what chooses the best student."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pytest
from accelerate import Accelerator
from conftest import SAMPLES, folders, metrics, tiny_encoder, train

import eval_sts
import train_bridge
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.pairs.pairs_folder import load_pairs
from distill.training.checkpoints import Progress
from distill.training.watching import chooser_fingerprint, evaluate, evaluation_report, plot_curves, read_dev_data

LATEST = ("--resume_from_checkpoint", "latest")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Sentences in two languages, line by line, and retrieval of the one by the other; some stand in both."""
    folder = tmp_path_factory.mktemp("files")
    lines = (SAMPLES / "talks.jsonl").read_text(encoding="utf-8").splitlines()[200:260]
    rows = [json.loads(line)["translations"] for line in lines]
    texts = [dict(zip(row["language"], row["translation"], strict=True)) for row in rows]
    for language in ("en", "it"):
        content = "".join(text[language] + "\n" for text in texts[:40])
        (folder / f"text.{language}").write_text(content, encoding="utf-8")
    write_retrieval(folder / "beir", texts, grade=2)
    return folder


def write_retrieval(folder: Path, texts: list[dict[str, str]], grade: int) -> None:
    """English documents for Italian queries; the first of them has another relevant one, of this grade."""
    (folder / "qrels").mkdir(parents=True)
    for name, language in (("corpus", "en"), ("queries", "it")):
        rows = [json.dumps({"_id": f"{language}{i}", "text": text[language]}) for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    judged = [f"it{i}\ten{i}\t1" for i in range(len(texts))] + [f"it0\ten1\t{grade}"]
    (folder / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")


@pytest.fixture(scope="module")
def given(pairs, files) -> tuple[str, ...]:
    """Two bitexts, one of them in three languages, and a set of retrieval."""
    return ("--eval_bitext", f"text={files}/text.{{en,it}}", pairs, "--eval_retrieval", f"{files}/beir")


def evaluations(folder: Path) -> list[dict]:
    return [line for line in metrics(folder) if "mean_accuracy" in line]


@pytest.mark.parametrize("metric", ["bitext_accuracy", "ndcg_at_10"])
def test_they_are_those_of_eval_sts_and_choose_the_student(pairs, teacher, student, given, tmp_path, capsys, metric):
    options = ["--pairs_dir", pairs, "--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student]
    options += ["--learning_rate", "1e-2", "--max_train_steps", "9", "--eval_steps", "3", *given]
    assert train(*options, "--metric_for_best_model", metric, *folders(tmp_path)) == 0
    lines = evaluations(tmp_path)
    made = json.loads((tmp_path / "run/student/args.json").read_text())
    best = max(lines[1:], key=lambda line: line[metric])
    assert (made["step"], made["score"]) == (best["step"], best[metric]) and made["score"] != best["mean_accuracy"]
    assert f"step 9: dev {metric} {lines[-1][metric]:.4f}, mean_accuracy" in capsys.readouterr().err

    call = ["--model_name_or_path", f"m={tmp_path}/run/last", "--output_dir", f"{tmp_path}/scores"]
    call += [option.replace("--eval_", "--") for option in given]
    eval_sts.main(eval_sts.build_parser().parse_args(call))
    [entry] = json.loads((tmp_path / "scores/scores.json").read_text())["models"]
    bitext = {name: found["mean_accuracy"] for name, found in entry["bitext"].items()}
    assert set(bitext) == {"text/en-it", "en-ar", "en-de", "en-it"}
    assert lines[-1]["eval_bitext"] == pytest.approx(bitext)
    assert lines[-1]["bitext_accuracy"] == pytest.approx(np.mean([*bitext.values()]))
    assert lines[-1]["eval_retrieval"] == pytest.approx({"beir": entry["retrieval"]["beir"]["ndcg@10"]})
    assert lines[-1]["ndcg_at_10"] == pytest.approx(entry["summary"]["retrieval"]["value"])

    less = "--eval_bitext" if metric == "bitext_accuracy" else "--eval_retrieval"
    other = [str(SAMPLES / "sts-{en,it}.csv")] if metric == "bitext_accuracy" else [f"{tmp_path}/beir"]
    texts = [{"en": "A dog.", "it": "Un cane."}, {"en": "A cat.", "it": "Un gatto."}]
    write_retrieval(tmp_path / "beir", texts, grade=1)
    assert train(*options, "--metric_for_best_model", metric, less, *other, *folders(tmp_path), *LATEST) == 2
    said = "was trained for another --metric_for_best_model, or on other files for it: give the same again"
    assert said in capsys.readouterr().err


def test_two_processes_have_the_scores_of_one_without_a_teacher(pairs, student, given, tmp_path):
    options = ["--pairs_dir", pairs, "--student_model_name_or_path", student, "--learning_rate", "1e-3", *given]
    options += ["--max_train_steps", "2", "--metric_for_best_model", "ndcg_at_10"]
    train_bridge.main(train_bridge.build_parser().parse_args([*options, *folders(tmp_path / "one")]))
    two = (tmp_path / "said", "train_bridge.py", *options, *folders(tmp_path / "two"))
    codes, _, errors = forked.run(*two, processes=2)
    assert codes == [0, 0], errors
    for one, other in zip(*(evaluations(tmp_path / name) for name in ("one", "two")), strict=True):
        for sets in ("eval_bitext", "eval_retrieval"):
            assert other[sets] == pytest.approx(one[sets])
    (tmp_path / "empty").mkdir()
    options += ["--eval_retrieval", str(tmp_path / "empty"), *folders(tmp_path / "none")]
    bad = (tmp_path / "bad", "train_bridge.py", *options)
    codes, _, errors = forked.run(*bad, processes=2)
    assert codes == [2, 2] and errors.count("has no files corpus.*") == 1 and not (tmp_path / "none/run").exists()


def test_a_sentence_of_several_sets_is_encoded_once(pairs, files, monkeypatch):
    """The bitext's stand in the retrieval too, and the dev split is given as a second bitext."""
    data, _ = read_dev_data(None, [f"{files}/text.{{en,it}}", f"x={pairs}"], [f"{files}/beir"])
    seen, encode = Counter(), SentenceEncoder.encode

    def counted(encoder, sentences, *others):
        seen.update(sentences)
        return encode(encoder, sentences, *others)

    monkeypatch.setattr(SentenceEncoder, "encode", counted)
    evaluate(tiny_encoder(), load_pairs(pairs)["dev"], None, data, Accelerator(cpu=True))
    assert set(seen.values()) == {1} and seen.keys() >= {*data.sentences, *data.documents}


def test_the_chooser_is_known_by_its_content_alone(files, tmp_path):
    """Wherever the files lie, whatever they are called; those that do not choose are anything."""
    bitext, retrieval = f"{files}/text.{{en,it}}", f"{files}/beir"
    both, _ = read_dev_data(None, [bitext], [retrieval])
    (tmp_path / "moved").symlink_to(files)
    moved, _ = read_dev_data(None, [f"x={tmp_path}/moved/text.{{en,it}}"], [f"y={tmp_path}/moved/beir"])
    write_retrieval(tmp_path / "other", [{"en": "A dog.", "it": "Un cane."}, {"en": "A cat.", "it": "Un gatto."}], 1)
    other, _ = read_dev_data(None, [bitext], [f"{tmp_path}/other"])
    by_bitext, by_retrieval = (partial(chooser_fingerprint, metric) for metric in ("bitext_accuracy", "ndcg_at_10"))
    assert by_bitext(both) == by_bitext(moved) == by_bitext(other) != by_retrieval(both)
    assert by_retrieval(both) == by_retrieval(moved) != by_retrieval(other)
    graded = both.retrievals[0]._replace(grades=[{0: 1.0}] * 60)
    assert by_retrieval(both) != by_retrieval(both._replace(retrievals=[graded]))


def test_a_run_may_go_on_with_sets_that_it_had_not(tmp_path):
    """Its picture has a curve of each that there is at its end, from where it begins."""
    first = {"step": 0, "mean_accuracy": 0.5, "bitext": {}, "mean_similarity": 0.1}
    second = first | {"step": 5, "sts": {"en": 0.7}, "spearman_cosine": 0.7, "ndcg_at_10": 0.3, "bitext_accuracy": 0.2}
    plot_curves([first, second], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()
    said = evaluation_report(Progress(step=5), "spearman_cosine", second)
    assert said == "step 5: dev spearman_cosine 0.7000, mean_accuracy 0.5000, bitext_accuracy 0.2000, ndcg_at_10 0.3000"
