"""An export: opens elsewhere with equal vectors, says how good it is, replaces an old one only when whole."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLES, saved, tiny_encoder
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import ModernBertConfig, ModernBertModel

import train_distill
from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.scoring import export
from distill.scoring.bitext import Bitext
from distill.scoring.data import Data
from distill.scoring.export import hub_ids, public, trained_on, training_notes, training_of
from distill.scoring.retrieval import Retrieval
from distill.scoring.sts import StsSet, set_title
from eval_sts import build_parser, main

STS = str(SAMPLES / "sts-{en,it}.csv")
SENTENCES = ["I love plants.", "Amo le piante, anche in inverno.", "a"]


def export_of(tmp_path, model, *more) -> dict:
    """Score and export a model to tmp_path/export; its entry in the export's scores.json."""
    command = ["--model_name_or_path", f"good={model}", "--sts", STS, "--output_dir", str(tmp_path / "scores")]
    command += ["--bootstrap_samples", "50", "--export_dir", str(tmp_path / "export"), *more]
    main(build_parser().parse_args(command))
    (entry,) = json.loads((tmp_path / "export/scores.json").read_text())["models"]
    return entry


@pytest.mark.parametrize("top", ["plain", "dense and normalize", "prompt"])
def test_it_opens_in_sentence_transformers_with_equal_vectors(tmp_path, top):
    settings = {}
    if top == "dense and normalize":
        settings = {"dense": nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.Tanh())), "normalize": True}
    elif top == "prompt":
        settings = {"prompts": {"query": "I love ", "other": "x"}, "default_prompt_name": "query"}
    model = tiny_encoder(**settings)
    export_of(tmp_path, saved(model, tmp_path / "model"))
    opened = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    np.testing.assert_allclose(opened.encode(SENTENCES), model.encode(SENTENCES), atol=1e-5)
    assert top != "prompt" or opened.default_prompt_name == "query"


def test_servers_find_what_they_read_by_its_name(tmp_path):
    """text-embeddings-inference (router/src/lib.rs) and vLLM (get_pooling_config), neither of which pip brings here."""
    dense = nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.Tanh()))
    export_of(tmp_path, saved(tiny_encoder(dense=dense, normalize=True), tmp_path / "model"))
    names = ("config", "sentence_bert_config", "modules", "1_Pooling/config", "2_Dense/config")
    config, reads, modules, pooling, layer = (json.loads((tmp_path / f"export/{n}.json").read_text()) for n in names)
    assert config["model_type"] == "bert" and config["architectures"] == ["BertModel"]
    assert config["max_position_embeddings"] == 64 and config["pad_token_id"] == 0
    assert reads == {"max_seq_length": 32, "do_lower_case": False}
    keys = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")  # the one refuses a file without all four
    modes = {f"pooling_mode_{key}": key == "mean_tokens" for key in keys}
    assert pooling == {"word_embedding_dimension": 32} | modes  # the other takes any key that is true for a pooling
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    assert {one["path"]: one["type"] for one in modules} == {
        path: f"sentence_transformers.models.{kind}" for path, kind in kinds.items()
    }
    activation = "torch.nn.modules.activation.Tanh"
    assert layer == {"in_features": 32, "out_features": 8, "bias": True, "activation_function": activation}
    assert {*load_file(tmp_path / "export/2_Dense/model.safetensors")} == {"linear.weight", "linear.bias"}
    content = json.loads((tmp_path / "export/tokenizer.json").read_text())
    assert content["model"]["type"] == "WordPiece"


def test_card_and_scores_of_a_trained_student(tmp_path, pairs, teacher, student):
    run_dir = tmp_path / "run"
    command = f"--pairs_dir {pairs} --teacher_model_name_or_path {teacher} --student_model_name_or_path {student} "
    command += f"--output_dir {run_dir} --max_train_steps 2 --eval_steps 2 --label_dtype fp16"
    args = train_distill.build_parser().parse_args(command.split())
    train_distill.main(args)
    entry = export_of(tmp_path, run_dir / "student", "--bitext", pairs)
    scores = json.loads((tmp_path / "scores/scores.json").read_text())
    notes, scored = scores["notes"], scores["models"][0]
    assert entry["sts"] == scored["sts"] and entry["bitext"] == scored["bitext"]

    card = ModelCard.load(tmp_path / "export/README.md")
    about = card.data.to_dict()
    assert about["language"] == ["en", "ar", "de", "it"] and about["library_name"] == "sentence-transformers"
    found = {(one.dataset_config, one.metric_type): one.metric_value for one in card.data.eval_results}
    expected = {
        (name, metric): one[metric]
        for name, one in entry["sts"].items()
        for metric in ("spearman_cosine", "pearson_cosine")
    }
    expected |= {(name, "mean_accuracy"): one["mean_accuracy"] for name, one in entry["bitext"].items()}
    assert found == expected
    counts = json.loads((Path(pairs) / "report.json").read_text())["splits"]["train"]["pairs"]
    for part in (
        "Teacher: `teacher`. Student at the start: `student`.",
        "; from talks.jsonl.",
        f"- {notes[-1]}",
        f"ar {counts['ar']}, de {counts['de']}",
        f"{100 * entry['sts']['en-it']['spearman_cosine']:.1f}",
    ):
        assert part in card.text, part
    written = card.text[card.text.index("accelerate launch") :].replace("\\\n", " ").strip()
    words = shlex.split(written)
    assert words[:3] == ["accelerate", "launch", "train_distill.py"]
    written = vars(train_distill.build_parser().parse_args(words[3:]))
    del written["command_line"], written["called_from"]
    given = {name: Path(value).name if isinstance(value, str) else value for name, value in vars(args).items()}
    given |= {"teacher_model_name_or_path": ["teacher"], "loss": None}
    assert written == {name: given[name] for name in written} and len(words) < 20, "defaults are left out"

    # Said where it was chosen on what it is scored on, and nothing of this machine.
    assert notes[-1] == "good was chosen on pairs:dev: other text may score lower"
    assert str(tmp_path) in json.dumps(scores)
    for path in (tmp_path / "export").rglob("*.*"):
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, ["chosen on pairs:dev", "trained on pairs:train"]),
        ({"sts_dev": "./sts-{it,en}.csv"}, ["chosen on sts-{en,it}.csv", "trained on pairs:train"]),
        ({"sts_dev": "sts-{en}.csv", "metric_for_best_model": "mean_accuracy"}, ["chosen on pairs:dev", "trained on"]),
        ({"eval_bitext": ["x=text.{en,it}"]}, ["chosen on pairs:dev", "trained on pairs:train"]),
        (
            {"eval_bitext": ["text.{en,it}", "pairs:test"], "metric_for_best_model": "bitext_accuracy"},
            ["chosen on text.{it,en}", "chosen on pairs:test", "trained on pairs:train"],
        ),
        (
            {"eval_retrieval": ["./beir/"], "metric_for_best_model": "ndcg_at_10"},
            ["chosen on beir:test", "trained on pairs:train"],
        ),
        (
            {"eval_retrieval": ["beir:train", "gone"], "metric_for_best_model": "ndcg_at_10"},
            ["trained on pairs:train", "made with gone, not found"],
        ),
        ({"pairs_dir": "elsewhere"}, []),
        ({"kind": "a grafted student"}, []),
    ],
)
def test_what_a_student_was_trained_or_chosen_on(tmp_path, monkeypatch, change, expected):
    monkeypatch.chdir(tmp_path)
    given = {"kind": "a trained student", "pairs_dir": "a/pairs/", "sts_dev": None} | change
    given["pairs_dir"] = given["pairs_dir"].replace("a/", f"{tmp_path}/")
    (tmp_path / "args.json").write_text(json.dumps(given))
    (tmp_path / "beir").mkdir()
    for language in ("en", "it"):
        (tmp_path / f"sts-{language}.csv").touch()
        (tmp_path / f"text.{language}").touch()
    sets = [StsSet("en", ("en", "en"), [], [], np.array([]), f"{tmp_path}/sts-{{en,it}}.csv")]
    specs = ("pairs:dev", "pairs:train", "pairs:test", "text.{it,en}")
    bitexts = [Bitext("en-it", ("en", "it"), [], [], spec) for spec in specs]
    retrievals = [Retrieval("beir", [], [], [], 0, "beir:test")]
    notes = training_notes("m", ".", Data(sets, bitexts, [], False, retrievals))
    assert len(notes) == len(expected)
    for note, part in zip(notes, expected, strict=True):
        assert note.startswith(f"m was {part}")


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, ["chosen on sts-{en,it}.csv", "trained on pairs:train"]),
        ({"called_from": "moved"}, ["made with sts-{en,it}.csv, not found", "made with pairs, not found"]),
        ({"called_from": "moved", "sts_dev": "a/b:{en,it}:dev"}, ["made with pairs, not found"]),
        ({"sts_dev": "a/b:{en,it}:test"}, ["chosen on a/b:{en,it}:test", "trained on pairs:train"]),
    ],
)
def test_relative_paths_of_a_run_begin_where_it_was_called(tmp_path, monkeypatch, change, expected):
    """The evaluation is called from another folder, where the same names are other files."""
    for folder in ("there", "here"):
        (tmp_path / folder / "pairs").mkdir(parents=True)
        for language in ("en", "it"):
            (tmp_path / folder / f"sts-{language}.csv").touch()
    given = {"kind": "a trained student", "pairs_dir": "pairs", "sts_dev": "sts-{en,it}.csv", "called_from": "there"}
    given |= change
    (tmp_path / "args.json").write_text(json.dumps(given | {"called_from": f"{tmp_path}/{given['called_from']}"}))
    monkeypatch.chdir(tmp_path / "here")
    specs = ("../there/sts-{en,it}.csv", "sts-{en,it}.csv", "a/b:{en,it}:test")
    sets = [StsSet("en", ("en", "en"), [], [], np.array([]), spec) for spec in specs]
    specs = ("../there/pairs:train", "pairs:train")
    bitexts = [Bitext("en-it", ("en", "it"), [], [], spec) for spec in specs]
    notes = training_notes("m", "..", Data(sets, bitexts, [], False, []))
    assert len(notes) == len(expected)
    for note, part in zip(notes, expected, strict=True):
        assert note.startswith(f"m was {part}")


def test_a_card_is_about_the_pairs_that_there_were(pairs, teacher, student, tmp_path):
    """They are other ones by now."""
    folder, run_dir = shutil.copytree(pairs, tmp_path / "pairs"), tmp_path / "run"
    command = f"--pairs_dir {folder} --teacher_model_name_or_path {teacher} --student_model_name_or_path {student} "
    command += f"--output_dir {run_dir} --max_train_steps 1"
    train_distill.main(train_distill.build_parser().parse_args(command.split()))
    before = training_of(run_dir / "student")
    (folder / "report.json").write_text('{"splits": {"train": {"pairs": {"xx": 5}}}}')
    assert training_of(run_dir / "student") == before and before["languages"] == ["en", "ar", "de", "it"]


def test_a_card_says_what_was_trained_on():
    of_hub = [
        "sentence-transformers/talks:en-it",
        "sentence-transformers/talks:en-de",
        "en+it=opus/books@main",
        "x.tsv",
    ]
    assert hub_ids(of_hub) == ["sentence-transformers/talks", "opus/books"] and hub_ids(["x.tsv"]) is None
    training = {"pairs": {"de": 5, "it": 7000}, "untranslated": 0, "corpora": ["talks", "en=news.txt"]}
    assert trained_on(training) == "Sentence pairs by language: de 5, it 7,000; from talks, en=news.txt."
    alone = "de 5, it 7,000; sentences without translations: 1,200; from"
    assert alone in trained_on(training | {"untranslated": 1200})
    only = trained_on(training | {"pairs": {}, "untranslated": 1200})
    assert only == "Sentences without translations: 1,200; from talks, en=news.txt."


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("a=/home/x/model/", "a=model"),
        ("/home/x/pairs/:dev", "pairs:dev"),
        ("data/x-{en,pt-BR=pt-br}.csv", "x-{en,pt-BR=pt-br}.csv"),
        ("x=mteb/sts17:{en-de}:test", "x=mteb/sts17:{en-de}:test"),
        ("org/model", "org/model"),
        ("samples/sts-en.csv", "sts-en.csv"),
        ("--pairs_dir=/x/y", "--pairs_dir=y"),
    ],
)
def test_what_others_may_see_of_a_spec(spec, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert public(spec) == expected


def test_a_model_from_elsewhere_has_no_training_in_its_card(tmp_path, teacher):
    export_of(tmp_path, teacher)
    card = (tmp_path / "export/README.md").read_text()
    assert "## Training" not in card and "exported from `teacher`" in card


def test_fp16_weights_and_their_loss(tmp_path, capsys):
    model = tiny_encoder(dense=nn.Sequential(nn.Sequential(nn.Linear(32, 8), nn.Identity())))
    entry = export_of(tmp_path, saved(model, tmp_path / "model"), "--export_dtype", "fp16")
    for path in ("model.safetensors", "2_Dense/model.safetensors"):
        weights = load_file(tmp_path / "export" / path)
        assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {torch.float16}
    full = json.loads((tmp_path / "scores/scores.json").read_text())["models"][0]
    loss = entry["compared_with"]["fp32"]["sts"]["en"]["difference"]
    assert loss == pytest.approx(entry["sts"]["en"]["spearman_cosine"] - full["sts"]["en"]["spearman_cosine"])
    assert entry["sts"]["en"]["pearson_cosine"] != full["sts"]["en"]["pearson_cosine"]
    within = f"within {100 * entry['compared_with']['fp32']['summary']['within']['difference'] + 0:+.2f}".replace(
        "-0.00", "+0.00"
    )
    assert within in (tmp_path / "export/README.md").read_text() and within in capsys.readouterr().out
    opened = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    rounded = SentenceEncoder.from_pretrained(str(tmp_path / "export"))
    np.testing.assert_allclose(opened.encode(SENTENCES), rounded.encode(SENTENCES), atol=1e-5)
    assert np.abs(rounded.encode(SENTENCES) - model.encode(SENTENCES)).max() > 1e-6


def test_fp16_weights_of_a_model_that_computes_its_positions(tmp_path):
    """What a model keeps beside its weights, such as rotary frequencies, is not in the file and not rounded."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ModernBertConfig(vocab_size=3000, max_position_embeddings=64, pad_token_id=0, **settings)
    model = tiny_encoder(transformer=ModernBertModel(config))
    export_of(tmp_path, saved(model, tmp_path / "model"), "--export_dtype", "fp16")
    opened = SentenceEncoder.from_pretrained(str(tmp_path / "export"))
    np.testing.assert_allclose(opened.encode(SENTENCES), model.encode(SENTENCES), atol=1e-2)


def test_an_old_export_stays_until_the_new_one_is_whole(tmp_path, teacher, student, monkeypatch):
    export_of(tmp_path, teacher)
    before = {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()}
    save = SentenceEncoder.save

    def damaged(self, folder, dtype):
        save(self, folder, dtype)
        weights = load_file(folder / "model.safetensors")
        key = "embeddings.word_embeddings.weight"
        torch.nn.init.zeros_(weights[key])
        save_file(weights, folder / "model.safetensors")

    monkeypatch.setattr(SentenceEncoder, "save", damaged)
    with pytest.raises(RuntimeError, match="the exported model's vectors differ from its own by"):
        export_of(tmp_path, student)
    assert before == {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()}
    assert {path.name for path in tmp_path.iterdir()} == {"scores", "export"}, "no temporary folder is left"
    monkeypatch.undo()
    export_of(tmp_path, student)
    assert (tmp_path / "export/model.safetensors").read_bytes() != before[tmp_path / "export/model.safetensors"]


class StandInHub:
    """Takes what HfApi is given, in place of the hub."""

    calls, fails = [], False

    def create_repo(self, repo_id, **settings):
        self.calls.append(("create_repo", repo_id, settings))

    def upload_folder(self, **settings):
        if self.fails:
            raise OSError("the hub is down.\nsecond line")
        self.calls.append(("upload_folder", settings))


def test_push_to_hub(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(export, "HfApi", StandInHub)
    export_of(tmp_path, teacher, "--push_to_hub", "someone/good")
    create, upload = StandInHub.calls
    assert create == ("create_repo", "someone/good", {"exist_ok": True})
    assert upload[1] == {
        "repo_id": "someone/good",
        "folder_path": str(tmp_path / "export"),
        "ignore_patterns": ["args.json"],
    }
    monkeypatch.setattr(StandInHub, "fails", True)
    with pytest.raises(UserError, match=r"is whole but could not be pushed to someone/good \(the hub is down\)"):
        export_of(tmp_path, teacher, "--push_to_hub", "someone/good")
    assert (tmp_path / "export/model.safetensors").is_file()


@pytest.mark.parametrize(
    "spec, title",
    [
        ("data/stsb-{en,it}-test.csv", "stsb-test"),
        ("tatoeba/tatoeba.ita-eng.{eng,ita}", "tatoeba"),
        ("mteb/sts17-crosslingual-sts:{en-de,es-en}:test", "sts17-crosslingual-sts"),
        ("pairs/", "pairs"),
    ],
)
def test_titles_of_sets(spec, title):
    assert set_title(spec) == title
