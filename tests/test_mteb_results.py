"""Scores in MTEB's own files: read by its library, equal to what it computes itself."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import SAMPLES, saved, tiny_encoder
from sentence_transformers import SentenceTransformer

from distill.command import UserError
from distill.scoring.bitext import translation_f1
from eval_sts import build_parser, main

# Python 3.10 cannot have it.
mteb = pytest.importorskip("mteb")
abstasks, task_metadata = pytest.importorskip("mteb.abstasks"), pytest.importorskip("mteb.abstasks.task_metadata")

STS = str(SAMPLES / "sts-{en,it}.csv")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return saved(tiny_encoder(seed=4), tmp_path_factory.mktemp("model") / "tiny")


def rows_of(language: str) -> list[dict]:
    return datasets.load_dataset(
        "csv", data_files=str(SAMPLES / f"sts-{language}.csv"), column_names=["sentence1", "sentence2", "score"]
    )["train"].to_list()


def evaluate(tmp_path, model, *more) -> dict:
    command = ["--model_name_or_path", f"tiny={model}", "--output_dir", str(tmp_path / "scores"), *more]
    main(build_parser().parse_args([*command, "--mteb_results", str(tmp_path / "mteb")]))
    return json.loads((tmp_path / "scores/scores.json").read_text())["models"][0]


def about(name: str, kind: str, main_score: str, languages: dict) -> task_metadata.TaskMetadata:
    return task_metadata.TaskMetadata(
        name=name,
        dataset={"path": "none/none", "revision": "1"},
        description="local",
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=languages,
        main_score=main_score,
    )


class LocalSTS(abstasks.AbsTaskSTS):
    metadata = about("LocalSTS", "STS", "cosine_spearman", {"en": ["eng-Latn"], "it": ["ita-Latn"]})

    def load_data(self, **_):
        self.dataset = {tag: {"test": datasets.Dataset.from_list(rows_of(tag))} for tag in ("en", "it")}
        self.data_loaded = True


class LocalBitext(abstasks.AbsTaskBitextMining):
    metadata = about("LocalBitext", "BitextMining", "f1", {"ita-eng": ["ita-Latn", "eng-Latn"]})

    def load_data(self, **_):
        sides = ([row["sentence1"] for row in rows_of(tag)] for tag in ("it", "en"))
        rows = [{"sentence1": one, "sentence2": other} for one, other in zip(*sides, strict=True)]
        self.dataset = {"ita-eng": {"test": datasets.Dataset.from_list(rows)}}
        self.data_loaded = True


def test_files_are_read_by_mteb_and_hold_what_it_computes(tmp_path, model, capsys):
    """Sets of the samples under the names of two tasks; the same rows as tasks of MTEB's, offline."""
    for tag in ("eng", "ita"):
        lines = [row["sentence1"] for row in rows_of(tag[:2])]
        (tmp_path / f"text.{tag}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "sts").mkdir()
    for tag in ("en", "it"):
        (tmp_path / f"sts/stsb-{tag}-test.csv").write_text((SAMPLES / f"sts-{tag}.csv").read_text())
    sets = ["--sts", f"STSBenchmarkMultilingualSTS={tmp_path}/sts/stsb-{{en,it}}-test.csv", STS]
    entry = evaluate(tmp_path, model, *sets, "--bitext", f"Tatoeba={tmp_path}/text.{{eng,ita}}")
    assert "MTEB's results: " in capsys.readouterr().out

    loaded = mteb.ResultCache(tmp_path / "mteb").load_results(
        models=["local/tiny"], tasks=["STSBenchmarkMultilingualSTS", "Tatoeba"], include_remote=False
    )
    [of_model] = loaded.model_results
    assert of_model.model_revision == "no_revision_available"
    found = {result.task_name: result for result in of_model.task_results}
    assert set(found) == {"STSBenchmarkMultilingualSTS", "Tatoeba"}
    subsets = {one["hf_subset"]: one for one in found["STSBenchmarkMultilingualSTS"].scores["test"]}
    assert set(subsets) == {"en", "it"}, "pairs of two languages are none of its subsets"
    italian = entry["sts"]["STSBenchmarkMultilingualSTS/it"]["spearman_cosine"]
    assert subsets["it"]["main_score"] == pytest.approx(italian, abs=1e-6), "MTEB keeps six digits"
    meta = json.loads((tmp_path / "mteb/results/local__tiny/no_revision_available/model_meta.json").read_text())
    assert (meta["name"], meta["embed_dim"]) == ("local/tiny", 32)

    peer = SentenceTransformer(model, device="cpu")
    its = mteb.evaluate(peer, [LocalSTS(), LocalBitext()], cache=None, encode_kwargs={"batch_size": 400})
    for result in its.task_results:
        ours = found["STSBenchmarkMultilingualSTS" if result.task_name == "LocalSTS" else "Tatoeba"].scores["test"]
        for one in result.scores["test"]:
            [same] = [mine for mine in ours if mine["hf_subset"] == one["hf_subset"]]
            compared = set(same) - {"hf_subset", "languages", "mteb_version"}
            assert len(compared) == (9 if result.task_name == "LocalSTS" else 2)
            for metric in compared:
                assert same[metric] == pytest.approx(one[metric], abs=1e-4), (result.task_name, metric)


def test_f1_by_hand():
    """Of three targets the first is found by two sources, once rightly: 2 / (1 + 2); the second by its own: 1."""
    scores = translation_f1((np.array([0, 1, 0]), np.array([2, 1, 0])))
    assert scores == {"src2trg_f1": pytest.approx((2 / 3 + 1 + 0) / 3), "trg2src_f1": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    "sets, message",
    [
        (["--sts", STS], "no set is one of MTEB's: name it as its task, STSBenchmarkMultilingualSTS, STS17"),
        (["--bitext", f"STS17={STS}"], "no set is one of MTEB's"),
        (["--sts", f"STSBenchmarkMultilingualSTS={STS}"], "does not say which split of .*: dev, test"),
    ],
)
def test_mistakes_are_named_before_scoring(tmp_path, model, sets, message):
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path, model, *sets)
    assert not (tmp_path / "mteb").exists() and not (tmp_path / "scores").exists()


@pytest.mark.parametrize("folder", ["{tmp}/file", "{model}/mteb", "{tmp}/scores/mteb"])
def test_results_lie_beside_what_is_read_and_written(tmp_path, model, folder):
    (tmp_path / "file").write_text("precious")
    command = ["--model_name_or_path", model, "--sts", f"STS17={STS}", "--output_dir", f"{tmp_path}/scores"]
    with pytest.raises(UserError, match=r"lies with an input|lie in one another"):
        main(build_parser().parse_args([*command, "--mteb_results", folder.format(tmp=tmp_path, model=model)]))
    assert not (tmp_path / "scores").exists() and not list(Path(model).glob("mteb"))


def test_without_the_library(tmp_path, model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    with pytest.raises(UserError, match="--mteb_results needs MTEB's library: pip install mteb"):
        evaluate(tmp_path, model, "--sts", f"STS17={STS}")
