"""Retrieval against hand-computed values, sentence-transformers and trec_eval; languages in one pool; bad input."""

import gzip
import json

import numpy as np
import pytest
import pytrec_eval
import torch
from conftest import SAMPLES, saved, tiny_encoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from distill.command import UserError
from distill.scoring import pictures, retrieval, scores
from distill.scoring.bitext import Bitext
from distill.scoring.retrieval import mixed_scores, pools_of, ranked_scores, read_retrieval, retrieval_scores, sample_of
from distill.scoring.search import k_nearest
from distill.scoring.sts import StsSet
from eval_sts import build_parser, main

CPU = torch.device("cpu")


def write(path, text) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def every(pool) -> np.ndarray:
    """Each of its sentences as a query."""
    return np.arange(len(pool.sentences))


def at(*degrees: float) -> np.ndarray:
    """Vectors of length 1 in a plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


# ---------------------------------------------------------------- all languages in one pool


def test_a_model_that_tells_languages_apart(monkeypatch):
    """English at 0 and 40 degrees, its translations at 90 and 130: ranks of the right one are 2, 3, 3, 2."""
    [pool] = pools_of([Bitext("en-it", ("en", "it"), ["a", "b"], ["A", "B"], "")])
    vectors = dict(zip("abAB", at(0, 40, 90, 130), strict=True))
    vectors = np.stack([vectors[sentence] for sentence in pool.sentences])
    scores = {name: values.mean() for name, values in mixed_scores(pool, vectors, every(pool), CPU).items()}
    assert scores["accuracy@1"] == 0 and scores["mrr@10"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert scores["ndcg@10"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(4)) / 2)
    assert scores["language_bias"] == pytest.approx(0), "all that mean something else are among 10"
    monkeypatch.setattr(retrieval, "NEAREST", 1)
    # The nearest that means something else is in the query's language each time, by chance it is every second time.
    assert mixed_scores(pool, vectors, every(pool), CPU)["language_bias"].tolist() == [0.5] * 4


def test_one_that_does_not_has_no_bias(monkeypatch):
    """Translations are 1 degree apart, meanings far: the two nearest of another meaning are one in each language."""
    bitexts = [Bitext("en-it", ("en", "it"), [*"abc"], [*"ABC"], "")]
    [pool] = pools_of(bitexts)
    places = dict(zip("aAbBcC", at(0, 1, 30, 31, 180, 181), strict=True))
    scores = mixed_scores(pool, np.stack([places[sentence] for sentence in pool.sentences]), every(pool), CPU)
    assert scores["accuracy@1"].tolist() == scores["ndcg@10"].tolist() == [1] * 6
    monkeypatch.setattr(retrieval, "NEAREST", 2)
    scores = mixed_scores(pool, np.stack([places[sentence] for sentence in pool.sentences]), every(pool), CPU)
    assert scores["language_bias"].tolist() == [0] * 6


def test_a_pool_has_each_sentence_once_in_a_language():
    """Two bitexts that share a source; a translation of two sources, which makes their meanings one."""
    bitexts = [
        Bitext("en-it", ("en", "it"), ["hi", "hello", "x"], ["ciao", "ciao", "y"], ""),
        Bitext("en-de", ("en", "de"), ["hi", "x"], ["hallo", "y"], ""),
        Bitext("other/en-it", ("en", "it"), ["hi"], ["ciao"], ""),
    ]
    pool, other = pools_of(bitexts)
    assert (pool.name, other.name) == ("mixed", "other/mixed") and other.sentences == ["hi", "ciao"]
    tags = dict(zip(pool.languages.tolist(), pool.sentences, strict=True))
    assert len(pool.sentences) == 7 and len(tags) == 3, "y is a sentence in Italian and one in German"
    meaning = dict(zip(pool.sentences, pool.meanings.tolist(), strict=True))
    assert meaning["hi"] == meaning["hello"] == meaning["ciao"] == meaning["hallo"] != meaning["x"] == meaning["y"]


def test_pools_of_several_languages_by_loops(monkeypatch):
    """Random vectors, three languages of different size, two translations into one: as a plain loop has it."""
    monkeypatch.setattr(retrieval, "NEAREST", 4)
    sources = [f"s{i % 18}" for i in range(20)]
    italian = Bitext("en-it", ("en", "it"), sources, [f"i{i}" for i in range(20)], "")
    german = Bitext("en-de", ("en", "de"), sources[:7], [f"d{i}" for i in range(7)], "")
    [pool] = pools_of([italian, german])
    vectors = np.random.default_rng(0).standard_normal((len(pool.sentences), 3)).astype(np.float32)
    found = mixed_scores(pool, vectors, every(pool), CPU)
    cosines = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    for query, row in enumerate(cosines):
        alike, tongue = pool.meanings == pool.meanings[query], pool.languages == pool.languages[query]
        ranked = [one for one in np.argsort(-row) if not (alike & tongue)[one]]
        hits = [one for one, other in enumerate(ranked[:4], 1) if alike[other]]
        assert found["accuracy@1"][query] == (hits[:1] == [1])
        assert found["mrr@4"][query] == pytest.approx(1 / hits[0] if hits else 0)
        right = (alike & ~tongue).sum()
        best = sum(1 / np.log2(1 + place) for place in range(1, min(4, right) + 1))
        assert found["ndcg@4"][query] == pytest.approx(sum(1 / np.log2(1 + place) for place in hits) / best)
        others = [one for one in ranked if not alike[one]]
        bias = tongue[others[:4]].mean() - tongue[others].mean()
        assert found["language_bias"][query] == pytest.approx(bias)
    some = np.array([3, 30, 31])
    for name, values in mixed_scores(pool, vectors, some, CPU).items():
        np.testing.assert_allclose(values, found[name][some], err_msg=name)


def test_of_a_large_pool_some_sentences_are_queries_of_either_language(monkeypatch):
    monkeypatch.setattr(scores, "QUERIES", 20)
    sides = [f"s{i}" for i in range(50)], [f"t{i}" for i in range(50)]
    vector = dict(zip(sides[0] + sides[1], np.random.default_rng(0).standard_normal((100, 8)), strict=True))
    pools = pools_of([Bitext("en-it", ("en", "it"), *sides, "")])
    entry, headline = scores.score_mixed(pools, vector, CPU, 20, seed=1)
    assert (entry["mixed"]["n"], entry["mixed"]["sentences"], headline["mixed"].trials) == (20, 100, 17)
    same, _ = scores.score_mixed(pools, vector, CPU, 20, seed=1)
    assert same == entry


def test_a_sample_has_meanings_of_most_languages_with_all_their_sentences():
    italian = Bitext("en-it", ("en", "it"), [*"abcdef"], [*"ABCDEF"], "")
    german = Bitext("en-de", ("en", "de"), [*"bde"], ["B!", "D!", "E!"], "")
    [pool] = pools_of([italian, german])
    taken = sample_of(pool, 2)
    assert sorted(taken.sentences) == ["B", "B!", "E", "E!", "b", "e"], "the first and the last of those in three"
    assert taken.tags == ["de", "en", "it"] and len(set(taken.meanings.tolist())) == 2
    assert len(set(sample_of(pool, 5).meanings.tolist())) == 5 and len(sample_of(pool, 99).sentences) == 15


def test_pictures_say_what_they_show(tmp_path, monkeypatch):
    """A map has a panel for each model and a line for each meaning; bars have their numbers and n."""
    figures = []
    monkeypatch.setattr(pictures.plt, "close", figures.append)
    [pool] = pools_of([Bitext("en-it", ("en", "it"), [*"abc"], [*"ABC"], "")])
    vectors = np.random.default_rng(0).standard_normal((6, 4))
    pictures.draw_map(tmp_path / "map.png", pool, {"before": vectors, "after": vectors[:, :3]})
    scores = {"accuracy@1": 0.25, "accuracy@1_ci": [0.1, 0.5], "mean_accuracy": 1.0, "mean_accuracy_ci": [0.9, 1.0]}
    entry = {"bitext": {"en-it": scores | {"n": 1234}}, "mixed": {"mixed": scores | {"n": 9}}, "retrieval": {}}
    pictures.draw_search(tmp_path / "search.png", [entry | {"name": name} for name in ("before", "after")])
    chart, bars = figures
    assert [len(panel.lines) for panel in chart.axes] == [3, 3]
    assert [panel.get_title().split("\n")[0] for panel in chart.axes] == ["before", "after"]
    [panel] = bars.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "en-it, accuracy\nn = 1,234",
        "mixed, accuracy\nn = 9",
    ]
    assert sorted(text.get_text() for text in panel.texts) == ["100", "100", "25", "25"]


def test_a_heatmap_names_the_set_the_model_the_data_and_n(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures.plt, "close", figures.append)
    one = StsSet("x/en", ("en", "en"), ["a", "b"], ["c", "d"], np.array([0.0, 1.0]), "data/stsb-{en}-test.csv")
    pictures.draw_heatmaps(tmp_path / "heatmaps.png", [one], {"after": {"x/en": 50.0}}, None)
    assert figures[0].axes[0].get_title() == "x after\nstsb-test, n = 2"


def test_of_a_cut_pool_the_same_sentences_are_queries(monkeypatch):
    monkeypatch.setattr(scores, "QUERIES", 20)
    sides = [f"s{i}" for i in range(50)], [f"t{i}" for i in range(50)]
    vector = np.random.default_rng(0).standard_normal((50, 8)).repeat(2, axis=0)
    vector += 0.5 * np.random.default_rng(1).standard_normal((100, 8))
    vector = dict(zip([s for both in zip(*sides, strict=True) for s in both], vector, strict=True))
    bitexts = [Bitext("en-it", ("en", "it"), *sides, "")]
    data = scores.Data([], bitexts, pools_of(bitexts), False, [])
    _, whole = scores.score(vector, {}, None, data, CPU, 20, seed=7)
    [cut] = scores.score_cuts(vector, {}, whole, data, [(8, "fp32")], CPU, seed=7)
    assert cut["kept"]["mixed"] == 1 and 0 < cut["summary"]["mixed"] < 1


def test_what_is_hidden_is_hidden_in_every_block():
    vectors = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    number = torch.arange(40)

    def hidden(rows: slice, columns: slice) -> torch.Tensor:
        return (number[rows, None] - number[columns]).abs() < 3

    whole = k_nearest(vectors, vectors, 6, CPU, 64, hidden)
    for block in (1, 7, 40):
        cosines, rows = k_nearest(vectors, vectors, 6, CPU, block, hidden)
        assert np.array_equal(rows, whole[1]) and (abs(rows - np.arange(40)[:, None]) >= 3).all()
        np.testing.assert_allclose(cosines, whole[0], atol=1e-6)


# ---------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path):
    """300 documents, 12 queries, of which two are not judged; grades 1 and 2, and one of 0."""
    random = np.random.default_rng(3)
    words = [f"{one}{other}" for one in "abcdefgh" for other in "aeiou"]
    text = [" ".join(random.choice(words, 5)) for _ in range(312)]
    rows = [(f"q{i}", f"d{d}", 1 + d % 2) for i in range(10) for d in random.choice(300, 1 + i, replace=False)]
    for query, document, grade in rows[::2]:  # some of the relevant are found
        text[int(document[1:])] = text[300 + int(query[1:])] + " ba" * grade
    corpus = [{"_id": f"d{i}", "title": "t" * (i % 2), "text": text[i]} for i in range(300)]
    queries = [{"_id": f"q{i}", "text": text[300 + i]} for i in range(12)]
    rows += [("q10", "d1", 0)]
    root = tmp_path / "beir"
    write(root / "queries.jsonl", "".join(json.dumps(row) + "\n" for row in queries))
    write(
        root / "qrels/test.tsv", "query-id\tcorpus-id\tscore\n" + "".join("{}\t{}\t{}\n".format(*row) for row in rows)
    )
    with gzip.open(root / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in corpus)
    return root


def qrels_of(folder) -> dict[str, dict[str, int]]:
    rows = [line.split("\t") for line in (folder / "qrels/test.tsv").read_text().splitlines()[1:]]
    found = {}
    for query, document, grade in rows:
        found.setdefault(query, {})[document] = int(grade)
    return found


def texts_of(folder) -> tuple[dict, dict]:
    lines = gzip.decompress((folder / "corpus.jsonl.gz").read_bytes()), (folder / "queries.jsonl").read_bytes()
    corpus, queries = ([json.loads(line) for line in text.splitlines()] for text in lines)
    documents = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in corpus}
    return {row["_id"]: row["text"] for row in queries}, documents


def test_scores_are_those_of_trec_eval_and_sentence_transformers(folder, tmp_path, capsys):
    """Graded nDCG as trec_eval has it; the rest as both. The model has a prompt for queries, documents another."""
    model = saved(tiny_encoder(seed=4), tmp_path / "model")
    command = [
        "--model_name_or_path",
        f"m={model}",
        "--retrieval",
        f"set={folder}",
        "--output_dir",
        f"{tmp_path}/scores",
    ]
    main(build_parser().parse_args([*command, "--prompt", "ask: ", "--document_prompt", "read: "]))
    [entry] = json.loads((tmp_path / "scores/scores.json").read_text())["models"]
    found, qrels, (queries, documents) = entry["retrieval"]["set"], qrels_of(folder), texts_of(folder)
    peer = SentenceTransformer(model, device="cpu")
    one, other = (
        dict(zip(texts, peer.encode([*texts.values()], prompt=prompt, normalize_embeddings=True), strict=True))
        for texts, prompt in ((queries, "ask: "), (documents, "read: "))
    )
    judged = {query: {d: g for d, g in grades.items() if g} for query, grades in qrels.items() if any(grades.values())}
    run = {query: {d: float(one[query] @ vector) for d, vector in other.items()} for query in judged}
    trec = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut_10", "recall_100"}).evaluate(run)
    for ours, its in (("ndcg@10", "ndcg_cut_10"), ("recall@100", "recall_100")):
        assert found[ours] == pytest.approx(np.mean([scores[its] for scores in trec.values()]), abs=1e-4)
    asked = {query: f"ask: {queries[query]}" for query in judged}
    evaluator = InformationRetrievalEvaluator(
        asked, documents, {q: set(g) for q, g in judged.items()}, corpus_prompt="read: "
    )
    its = evaluator(peer)
    assert found["mrr@10"] == pytest.approx(its["cosine_mrr@10"], abs=1e-4) and 0 < found["mrr@10"] < 1
    assert found["accuracy@1"] == pytest.approx(its["cosine_accuracy@1"], abs=1e-4)
    assert (found["n"], found["documents"]) == (10, 300) and found["ndcg@10_ci"][0] < found["ndcg@10"]
    assert entry["summary"]["retrieval"]["value"] == found["ndcg@10"]
    printed, report = capsys.readouterr().out, (tmp_path / "scores/report.md").read_text()
    for said in (
        "set: 2 queries, to which nothing is relevant, are left out",
        "m reads 'read: ' + sentence of documents",
    ):
        assert said in printed and said in report
    assert "\nset m " in printed and "## Retrieval" in report
    assert "m,retrieval,set,ndcg@10," in (tmp_path / "scores/scores.csv").read_text()


def test_binary_grades_by_hand():
    """Ranks of the relevant are 1 and 3: 1.5 of the best 1 + 1 / log2(3)."""
    one = retrieval.Retrieval("x", ["q"], [*"abcd"], [{0: 1.0, 2: 1.0}], 0, "")
    scores = retrieval_scores(one, at(0), at(5, 10, 15, 20), CPU)
    assert scores["ndcg@10"] == pytest.approx(1.5 / (1 + 1 / np.log2(3)))
    assert (scores["accuracy@1"], scores["mrr@10"], scores["recall@100"]) == (1, 1, 1)


def test_documents_share_the_vectors_of_sentences_where_no_prompt_tells_them_apart(folder, tmp_path):
    model = saved(tiny_encoder(seed=4), tmp_path / "model")
    command = [
        "--model_name_or_path",
        f"m={model}",
        "--retrieval",
        str(folder),
        "--sts",
        str(SAMPLES / "sts-{en,it}.csv"),
    ]
    main(build_parser().parse_args([*command, "--output_dir", f"{tmp_path}/scores", "--truncate_dim", "8"]))
    [entry] = json.loads((tmp_path / "scores/scores.json").read_text())["models"]
    assert (tmp_path / "scores/search.png").stat().st_size > 10_000 and not (tmp_path / "scores/map.png").exists()
    assert list(entry["retrieval"]) == ["beir"] and entry["cuts"][0]["kept"]["retrieval"] == 1
    assert entry["cuts"][1]["kept"]["retrieval"] != 1


def test_a_perfect_ranking_has_an_ndcg_of_one():
    """To the last digit, though fewer than ten documents are ranked: else its interval would have no width."""
    random = np.random.default_rng(0)
    for _ in range(300):
        best = np.sort(random.random((1, 6)), axis=1)[:, ::-1]
        assert ranked_scores(best, np.pad(best, ((0, 0), (0, 4))))["ndcg@10"].tolist() == [1.0]


def test_what_a_failed_model_left_is_not_another_s(folder, tmp_path, student):
    """A model whose documents alone have no vectors: the cuts are of the one before it."""
    encoder = tiny_encoder(seed=2)
    token = encoder.tokenizer.convert_tokens_to_ids(encoder.tokenizer.tokenize("zyx"))
    with torch.no_grad():
        encoder.transformer.embeddings.word_embeddings.weight[token] = torch.nan
    broken = saved(encoder, tmp_path / "broken")
    command = ["--model_name_or_path", f"good={student}", f"bad={broken}", "--retrieval", str(folder)]
    command += ["--document_prompt", "zyx ", "--truncate_dim", "8", "--output_dir", str(tmp_path / "scores")]
    with pytest.raises(UserError, match="not finite"):
        main(build_parser().parse_args(command))
    good, bad = json.loads((tmp_path / "scores/scores.json").read_text())["models"]
    assert "error" in bad and good["cuts"][0]["kept"]["retrieval"] == 1


def test_a_prompt_that_leaves_no_room_for_documents_is_said(folder, tmp_path, student):
    command = ["--model_name_or_path", student, "--retrieval", str(folder), "--output_dir", str(tmp_path / "scores")]
    with pytest.raises(UserError, match=r"of which special ones and its prompt take .*: raise"):
        main(build_parser().parse_args([*command, "--document_prompt", "a " * 40]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"qrels/test.tsv": None}, r"beir has no files qrels/test\.\*: --retrieval takes a folder with corpus.jsonl"),
        ({"queries.tsv": "_id\ttext\nq\tx\n"}, r"beir has 2 files queries\.\*"),
        ({"queries.jsonl": '{"_id": "q0", "query": "x"}\n'}, "queries.jsonl has no column 'text': it has _id, query"),
        ({"queries.jsonl": '{"_id": "q0", "text": null}\n'}, "queries.jsonl, row 1 has no text: mend or remove it"),
        ({"queries.jsonl": '{"_id": "q0", "text": "x"}\n' * 2}, "queries.jsonl has two rows of _id 'q0'"),
        ({"queries.jsonl": ""}, "queries.jsonl is empty: retrieval needs queries, documents and judgements"),
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq99\td1\t1\n"}, "judges 'q99', which .*queries.jsonl has not"),
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td999\t1\n"}, "judges 'd999', which .*corpus.jsonl.gz has"),
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t0\n"}, "finds nothing relevant to any query"),
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\tinf\n"}, "the score 'inf' of query 'q1' is no number"),
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td1\t0\n"}, "judges 'd1' for query 'q1' twice"),
        (
            {"queries.jsonl": '{"_id": "q0", "text": ["x"]}\n'},
            r"the column text holds List\(String\), not text",
        ),
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\tyes\n"}, "the score 'yes' of query 'q1' is no number"),
    ],
)
def test_mistakes_are_named(folder, change, message):
    for name, text in change.items():
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            write(folder / name, text)
    with pytest.raises(UserError, match=message):
        read_retrieval(str(folder))


def test_a_split_is_named_after_a_colon(folder):
    (folder / "qrels/test.tsv").rename(folder / "qrels/dev.tsv")
    assert len(read_retrieval(f"{folder}:dev").queries) == 10 and read_retrieval(f"{folder}:dev", "x").name == "x"


def test_a_prompt_of_documents_needs_documents(tmp_path):
    command = [
        "--model_name_or_path",
        "m",
        "--sts",
        str(SAMPLES / "sts-{en,it}.csv"),
        "--output_dir",
        str(tmp_path / "s"),
    ]
    with pytest.raises(UserError, match="--document_prompt does nothing without --retrieval"):
        main(build_parser().parse_args([*command, "--document_prompt", "read: "]))
