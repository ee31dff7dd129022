"""Prompts: what models read before a sentence, in training, in scores, and as sentence-transformers has it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SAMPLES, folders, saved, tiny_encoder, train
from sentence_transformers import SentenceTransformer
from tokenizers import processors

import eval_sts
import train_distill
from distill.command import UserError
from distill.encoder.sentence_encoder import POOLINGS, SentenceEncoder
from distill.pairs.pairs_folder import load_pairs
from distill.scoring.export import public_settings, training_of

SENTENCES = ["I love plants.", "Amo le piante, anche in inverno.", "a", "Der Hund schläft unter dem Tisch im Garten."]
PROMPTS = {"query": "amo le: ", "passage": "der "}


@pytest.mark.parametrize("pooling", [*POOLINGS, "cls+weightedmean"])
@pytest.mark.parametrize("ends", ["[CLS] $A [SEP]", "[CLS] $A", "$A"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_pooling_without_the_prompt_is_that_of_sentence_transformers(tmp_path, pooling, ends, packed):
    """Of the prompt alone a special token at its end does not count, one at its beginning does."""
    encoder = tiny_encoder(pooling=pooling, include_prompt=False, prompts=PROMPTS)
    special = [(token, i) for token, i in (("[CLS]", 2), ("[SEP]", 3)) if token in ends]
    post_processor = processors.TemplateProcessing(single=ends, special_tokens=special)
    encoder.tokenizer.backend_tokenizer.post_processor = post_processor
    path = saved(encoder, tmp_path / "model")
    assert json.loads((tmp_path / "model/1_Pooling/config.json").read_text())["include_prompt"] is False
    peer, found = SentenceTransformer(path, device="cpu"), []
    for prompt in ({}, {"prompt": ""}, {"prompt": "il gatto "}, {"prompt_name": "query"}):
        ours = SentenceEncoder.from_pretrained(path, **prompt)
        if not packed:
            ours.transformer.config._attn_implementation = "sdpa"
        assert ours.packs(half=False) == packed
        found.append(ours.encode(SENTENCES))
        np.testing.assert_allclose(found[-1], peer.encode(SENTENCES, **prompt), atol=1e-5)
    assert np.abs(found[0] - found[3]).max() > 1e-3, "attention reads the prompt all the same"
    assert ours.settings != tiny_encoder(pooling=pooling, prompts=PROMPTS, default_prompt_name="query").settings


def test_a_sentence_that_adds_nothing_to_an_unpooled_prompt_is_named():
    encoder = tiny_encoder(include_prompt=False)
    encoder.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    encoder.prompts, encoder.default_prompt_name = {"default": "der "}, "default"
    assert encoder.encode(["plants"]).shape == (1, 32)
    with pytest.raises(UserError, match="'' has no token: remove this sentence"):
        encoder.encode(["plants", ""])


def test_a_prompt_by_its_text_by_its_name_and_none(tmp_path):
    path = saved(tiny_encoder(prompts=PROMPTS, default_prompt_name="query"), tmp_path / "model")
    peer = SentenceTransformer(path, device="cpu")
    for number, (given, name, text) in enumerate(
        [
            ({}, "query", "amo le: "),
            ({"prompt_name": "passage"}, "passage", "der "),
            ({"prompt": "der "}, "passage", "der "),
            ({"prompt": "x: "}, "default", "x: "),
            ({"prompt": ""}, None, ""),
        ]
    ):
        ours = SentenceEncoder.from_pretrained(path, **given)
        assert (ours.default_prompt_name, ours.prompt) == (name, text)
        np.testing.assert_allclose(ours.encode(SENTENCES), peer.encode(SENTENCES, **given), atol=1e-5)
        again = SentenceTransformer(saved(ours, tmp_path / f"{number}"), device="cpu")
        np.testing.assert_allclose(again.encode(SENTENCES), ours.encode(SENTENCES), atol=1e-5)


@pytest.mark.parametrize(
    "prompts, given, message",
    [
        (PROMPTS, {"prompt_name": "quest"}, "model has the prompts query, passage, none is called 'quest': give"),
        ({}, {"prompt_name": "query"}, "model has no prompts, none is called 'query': give one's text"),
        (PROMPTS, {"prompt": "a " * 30}, "model reads 32 tokens, of which special ones and its prompt take 32"),
    ],
)
def test_a_prompt_that_is_not_there_or_leaves_no_room_is_refused(tmp_path, prompts, given, message):
    path = saved(tiny_encoder(prompts=prompts), tmp_path / "model")
    with pytest.raises(UserError, match=message):
        SentenceEncoder.from_pretrained(path, **given)


def test_a_default_that_leaves_no_room_can_be_left_out(tmp_path):
    path = saved(tiny_encoder(prompts={"long": "a " * 30}, default_prompt_name="long"), tmp_path / "model")
    assert SentenceEncoder.from_pretrained(path, prompt="").encode(SENTENCES).shape == (4, 32)


# ---------------------------------------------------------------- the trainer


@pytest.fixture(scope="module")
def queries(tmp_path_factory) -> str:
    """A teacher with prompts, none of them its default."""
    return saved(tiny_encoder(seed=1, prompts=PROMPTS), tmp_path_factory.mktemp("queries") / "teacher")


def options(pairs: str, teacher: str, student: str, *more: str) -> list[str]:
    models = ("--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student)
    return ["--pairs_dir", pairs, *models, "--max_train_steps", "3", "--learning_rate", "1e-3", *more]


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_student_of_prompts_is_that_of_sentence_transformers(
    pairs, queries, tmp_path, capsys, monkeypatch, include_prompt
):
    """Token ids as in training, vectors as at its last evaluation, by the exported folder as it is."""
    start = tiny_encoder(seed=2, normalize=True, include_prompt=include_prompt, prompts=PROMPTS)
    student, seen, evaluate = saved(start, tmp_path / "start"), [], train_distill.evaluate

    def watched(encoder, *others):
        seen.append(encoder.encode(SENTENCES))
        return evaluate(encoder, *others)

    monkeypatch.setattr(train_distill, "evaluate", watched)
    given = ("--teacher_prompt", "one: ", "--student_prompt_name", "query", *folders(tmp_path))
    assert train(*options(pairs, queries, student, *given)) == 0
    assert "\nteacher reads 'one: ' + sentence, student reads 'amo le: ' + sentence\n" in capsys.readouterr().out
    peer = SentenceTransformer(str(tmp_path / "run/student"), device="cpu")
    assert peer.default_prompt_name == "query"
    unit = seen[-1] / np.linalg.norm(seen[-1], axis=1, keepdims=True)
    np.testing.assert_allclose(peer.encode(SENTENCES), unit, atol=1e-5)

    rows = load_pairs(pairs)["train"]
    sentences = [s for row in rows for s in (row["source"], *(t["sentence"] for t in row["targets"]))]
    read = peer.preprocess(sentences, prompt=peer.prompts["query"])
    [ids] = (tmp_path / "cache").glob("tokens-*/ids.bin")
    np.testing.assert_array_equal(
        np.fromfile(ids, np.int32), read["input_ids"][read["attention_mask"].bool()].numpy().astype(np.int32)
    )

    expected = SentenceTransformer(queries, device="cpu").encode(rows["source"], prompt="one: ")
    labels = [np.fromfile(path, np.float32).reshape(-1, 32) for path in (tmp_path / "cache").glob("labels-*/*.bin")]
    np.testing.assert_allclose(next(x for x in labels if len(x) == len(rows)), expected, atol=1e-5)


def test_what_is_read_is_said_only_where_there_is_a_prompt(pairs, queries, student, tmp_path, capsys):
    assert train(*options(pairs, queries, student), *folders(tmp_path)) == 0
    assert "teacher reads" not in capsys.readouterr().out
    assert train(*options(pairs, queries, student, "--student_prompt", "x "), *folders(tmp_path / "other")) == 0
    assert "\nteacher reads sentence, student reads 'x ' + sentence\n" in capsys.readouterr().out


def test_prompts_are_part_of_what_a_run_must_go_on_with(pairs, queries, student, tmp_path, capsys):
    again = ("--resume_from_checkpoint", "latest", *folders(tmp_path))
    assert train(*options(pairs, queries, student, "--student_prompt", "x: ", *folders(tmp_path))) == 0
    assert train(*options(pairs, queries, student, *again)) == 2
    assert "was trained with --student_prompt 'x: ', not ''" in capsys.readouterr().err
    given = "--student_prompt", "x: ", "--teacher_prompt_name", "query"
    assert train(*options(pairs, queries, student, *given, *again)) == 2
    assert "was trained on labels of another teacher" in capsys.readouterr().err
    assert train(*options(pairs, queries, student, *given, "--teacher_prompt_name", "quest", *again)) == 2
    assert "teacher has the prompts query, passage, none is called 'quest'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_distill.build_parser().parse_args(["--student_prompt", "", "--student_prompt_name", "query"])
    assert "not allowed with argument --student_prompt" in capsys.readouterr().err


def test_a_prompt_in_a_command_on_a_model_card_is_no_path(tmp_path):
    command = "x --pairs_dir /a/b --teacher_prompt 'one/two: ' --student_prompt 'a/b'"
    given = {"kind": "a trained student", "student_model_name_or_path": "/a/b", "command_line": command}
    given |= {"teacher_model_name_or_path": [], "teacher_vectors": []}
    given["trained_on"] = {"source_language": "en", "corpora": [], "pairs": {}, "untranslated": 0}
    (tmp_path / "args.json").write_text(json.dumps(given))
    assert "--pairs_dir b" in (shown := training_of(str(tmp_path))["command"])
    assert "--teacher_prompt 'one/two: '" in shown and "--student_prompt a/b" in shown
    assert public_settings({"prompt": ["a/b"], "prompt_name": [], "seed": 1}) == {"seed": 1}


# ---------------------------------------------------------------- the dtype of a teacher


def test_labels_of_a_teacher_in_bf16(pairs, teacher, student, tmp_path):
    """Nearly those of one in fp32, and kept under another name; its Dense layers compute in fp32."""
    assert torch.bfloat16 is SentenceEncoder.from_pretrained(teacher, dtype=torch.bfloat16).transformer.dtype
    found = {}
    for dtype in ("fp32", "bf16", "fp16"):
        assert train(*options(pairs, teacher, student, "--teacher_dtype", dtype), *folders(tmp_path / dtype)) == 0
        found[dtype] = {
            path.parent.name: np.fromfile(path, np.float32).reshape(-1, 32)
            for path in tmp_path.glob(f"{dtype}/cache/*/labels.bin")
        }
    assert len({name for labels in found.values() for name in labels}) == 6, "of two splits each"
    one, *others = (max(labels.values(), key=len) for labels in found.values())
    for other in others:
        cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert np.abs(one - other).max() > 0 and cosines.min() > 0.999


@pytest.mark.parametrize(
    "device, given, dtype",
    [
        ("cpu", ["--label_dtype", "fp16"], torch.float32),
        ("cuda", [], torch.float32),
        ("cuda", ["--label_dtype", "fp16"], torch.bfloat16),
        ("cuda", ["--label_dtype", "fp16", "--teacher_dtype", "fp32"], torch.float32),
    ],
)
def test_a_teacher_is_in_bf16_by_itself_on_a_gpu_for_fp16_labels(
    pairs, teacher, student, tmp_path, monkeypatch, device, given, dtype
):
    args = train_distill.build_parser().parse_args([*options(pairs, teacher, student), *folders(tmp_path), *given])
    like = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr(train_distill, "Labelling", lambda *given: given[-1])
    assert train_distill.find_teachers(args, {}, tmp_path, like)["dtype"] == dtype
    assert SentenceEncoder.from_pretrained(teacher, dtype=dtype).transformer.dtype == dtype


# ---------------------------------------------------------------- scores


def scores(tmp_path, *more) -> dict:
    command = ["--output_dir", str(tmp_path / "scores"), "--sts", str(SAMPLES / "sts-{en,it}.csv"), *more]
    eval_sts.main(eval_sts.build_parser().parse_args(command))
    return json.loads((tmp_path / "scores/scores.json").read_text())


def test_models_are_scored_with_their_prompts(queries, student, tmp_path, capsys):
    models = f"plain={queries}", f"named={queries}", f"last={student}"
    given = ("--prompt", "die\nfrage: ", "plain=", "--prompt_name", "named=query", "--export_dir", f"{tmp_path}/export")
    found = scores(tmp_path, "--model_name_or_path", *models, *given)
    assert [entry["prompt"] for entry in found["models"]] == ["", "amo le: ", "die\nfrage: "]
    printed, report = capsys.readouterr().out, (tmp_path / "scores/report.md").read_text()
    for note in ("named reads 'amo le: ' + sentence", "last reads 'die\\nfrage: ' + sentence"):
        assert f"\n{note}\n" in printed and f"\n    {note}\n" in report and note in found["notes"]
    assert "plain reads" not in printed
    assert SentenceTransformer(f"{tmp_path}/export", device="cpu").prompts["default"] == "die\nfrage: "
    sts = [entry["sts"]["en-it"]["pearson_cosine"] for entry in found["models"]]
    path = saved(tiny_encoder(seed=1, prompts=PROMPTS, default_prompt_name="query"), tmp_path / "by_default")
    by_default = scores(tmp_path, "--model_name_or_path", path)["models"][0]
    assert by_default["sts"]["en-it"]["pearson_cosine"] == sts[1] != sts[0] and by_default["prompt"] == "amo le: "


def test_a_teacher_has_a_prompt_of_its_own(queries, tmp_path, capsys):
    """Among the models it may be scored with another: negative MSE is 0 where both are the same."""
    bitext = str(tmp_path / "text.{en,it}")
    for language, lines in (("en", "I love plants.\nA dog\n"), ("it", "I love plants.\nA dog\n")):
        (tmp_path / f"text.{language}").write_text(lines)
    command = ("--model_name_or_path", f"m={queries}", "--teacher_model_name_or_path", queries, "--bitext", bitext)
    for given, equal in (
        (["x: "], True),
        (["teacher=x: "], False),
        (["m=x: ", "teacher=x: "], True),
        (["x: ", "m="], False),
    ):
        found = scores(tmp_path, *command, "--prompt", *given)
        assert (found["models"][0]["bitext"]["en-it"]["negative_mse"] == 0) == equal
        assert "\nteacher reads 'x: ' + sentence\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, message",
    [
        (["--prompt", "x=y: "], r"--prompt 'x=y: ': no model is called x, only m: "),
        (["--prompt", "a: ", "b: "], "--prompt 'b: ' is a second prompt for all models: give one"),
        (["--prompt", "m=a: ", "--prompt_name", "m=query"], "--prompt_name 'm=query' is a second prompt for m: give"),
        (["--prompt_name", "m=quest"], "teacher has the prompts query, passage, none is called 'quest'"),
    ],
)
def test_prompts_that_fit_no_model_are_refused(queries, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        scores(tmp_path, "--model_name_or_path", f"m={queries}", *given)
    assert not (tmp_path / "scores").exists()
