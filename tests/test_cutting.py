"""What vectors are worth when less of them is kept."""

import json

import numpy as np
import pytest
from conftest import SAMPLES, saved, tiny_encoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.quantization import quantize_embeddings

import build_student
from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.pairs.pairs_folder import load_pairs
from distill.scoring import pictures
from distill.scoring.cutting import bytes_of, cut
from eval_sts import build_parser, main

STS = str(SAMPLES / "sts-{en,it}.csv")


def test_vectors_in_fewer_dimensions_and_bits_by_hand():
    vector = {"a": np.array([1.0, -0.5, 0.25, 9.0]), "b": np.array([0.0, 2.0, -0.25, 0.1])}

    def found(dimensions: int, precision: str) -> list[list[float]]:
        return [row.tolist() for row in cut(vector, dimensions, precision).values()]

    assert found(3, "fp32") == [[1, -0.5, 0.25], [0, 2, -0.25]]
    assert found(3, "int8") == [[127, -64, 32], [0, 127, -16]]
    assert found(4, "binary") == [[1, -1, 1, 1], [-1, 1, -1, 1]]
    assert [bytes_of(384, kind) for kind in ("fp32", "int8", "binary")] == [1536, 384, 48]
    assert bytes_of(9, "binary") == 2


def test_binary_vectors_are_those_of_sentence_transformers():
    vectors = np.random.default_rng(0).standard_normal((5, 24), dtype=np.float32)
    ours = np.stack([*cut(dict(enumerate(vectors)), 24, "binary").values()])
    assert np.array_equal(np.packbits(ours > 0, axis=1), quantize_embeddings(vectors, "ubinary"))


def test_the_picture_names_bytes_as_numbers(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures.plt, "close", figures.append)
    cuts = [{"precision": "fp32", "bytes": size, "summary": {"within": 0.5}} for size in (64, 128, 256)]
    pictures.draw_cuts(tmp_path / "cuts.png", {"summary": {"within": {}}, "cuts": cuts})
    labels = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    assert {"64", "128", "256"} <= set(labels) and all(label.isdigit() for label in labels)


def test_all_dimensions_in_int8_score_as_the_whole_and_fewer_less(tmp_path, student, capsys):
    command = ["--model_name_or_path", f"x={student}", "--sts", STS, "--output_dir", str(tmp_path / "scores")]
    main(build_parser().parse_args([*command, "--truncate_dim", "16", "8", "--precision", "int8", "binary"]))
    [entry] = json.loads((tmp_path / "scores/scores.json").read_text())["models"]
    kinds = ("fp32", "int8", "binary")
    asked = [(dimensions, kind) for dimensions in (32, 16, 8) for kind in kinds]
    assert [(one["dimensions"], one["precision"]) for one in entry["cuts"]] == asked
    whole, int8, *_ = entry["cuts"]
    assert whole["kept"] == {"en": 1, "within": 1, "across": 1}
    assert whole["summary"]["within"] == entry["summary"]["within"]["value"]
    assert int8["kept"]["within"] == pytest.approx(1, abs=0.01) and int8["kept"]["within"] != 1
    assert entry["cuts"][-1]["summary"]["within"] < whole["summary"]["within"]
    said = capsys.readouterr().out
    assert "x cut to" in said and "8 in binary" in said
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80
    assert "| 16 in int8" in (tmp_path / "scores/report.md").read_text()
    assert (tmp_path / "scores/cuts.png").stat().st_size > 10_000


def test_more_dimensions_than_there_are(tmp_path, student):
    command = ["--model_name_or_path", f"x={student}", "--sts", STS, "--output_dir", str(tmp_path / "scores")]
    with pytest.raises(UserError, match="--truncate_dim 64: a vector has 32 dimensions: give fewer"):
        main(build_parser().parse_args([*command, "--truncate_dim", "64"]))
    [entry] = json.loads((tmp_path / "scores/scores.json").read_text())["models"]
    assert entry["sts"]["en"]["n"] > 0 and "cuts" not in entry, "the scores are not lost"


def test_of_nothing_no_share_is_kept(tmp_path):
    """Vectors that find no translation: no warning, no infinite share, no NaN in scores.json."""
    (tmp_path / "b.en").write_text("a\nb\n")
    (tmp_path / "b.it").write_text("c\nd\n")
    np.save(tmp_path / "v.npy", np.array([[1, 0, 0], [0, 1, 0], [0.1, 1, 0.5], [1, 0.1, 0]], np.float32))
    (tmp_path / "v.txt").write_text("a\nb\nc\nd\n")
    command = ["--model_name_or_path", f"x={tmp_path}/v.npy", "--bitext", f"{tmp_path}/b.{{en,it}}"]
    main(build_parser().parse_args([*command, "--output_dir", str(tmp_path / "scores"), "--truncate_dim", "2", "2"]))
    text = (tmp_path / "scores/scores.json").read_text()
    [entry] = json.loads(text, parse_constant=lambda word: pytest.fail(word))["models"]
    whole, less = entry["cuts"]
    assert (whole["summary"]["accuracy"], whole["kept"]["accuracy"], less["kept"]["accuracy"]) == (0, None, None)


def test_a_turned_student_has_its_cosines_and_says_most_in_its_first_dimensions(pairs, tmp_path):
    before = tiny_encoder(seed=3, normalize=True)
    sentences = load_pairs(pairs)["train"]["source"][:]
    command = ["turn", "--model_name_or_path", saved(before, tmp_path / "student"), "--pairs_dir", pairs]
    build_student.main(build_student.build_parser().parse_args([*command, "--output_dir", str(tmp_path / "turned")]))
    after = SentenceEncoder.from_pretrained(str(tmp_path / "turned"))
    one, other = before.encode(sentences), after.encode(sentences)
    np.testing.assert_allclose(other @ other.T, one @ one.T, atol=1e-5)
    for encoder in (before, after):
        encoder.normalize = False
    spread = [encoder.encode(sentences).var(0) for encoder in (before, after)]
    assert np.all(np.diff(spread[1]) < 1e-6), "sorted"
    assert spread[1][:8].sum() > spread[0][:8].sum() and spread[1].sum() == pytest.approx(spread[0].sum(), rel=1e-4)
    peer = SentenceTransformer(str(tmp_path / "turned"), device="cpu")
    np.testing.assert_allclose(peer.encode(sentences), other, atol=1e-5)
    assert f"Of the variance of {len(sentences)} sentences' vectors" in (tmp_path / "turned/README.md").read_text()
