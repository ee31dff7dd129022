"""The demo's data: what its README promises, and that its script makes it again."""

import csv
import json
import subprocess
import sys

from conftest import SAMPLES

LANGUAGES = {"en", "it", "es", "ar", "fr", "de"}
ROWS = [json.loads(line) for line in (SAMPLES / "talks.jsonl").open(encoding="utf-8")]


def test_the_script_writes_the_same_files_again(tmp_path):
    subprocess.run([sys.executable, SAMPLES / "make_samples.py", "--output_dir", tmp_path], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(made) == {"talks.jsonl"} | {f"sts-{language}.csv" for language in LANGUAGES}
    for name, content in made.items():
        assert (SAMPLES / name).read_bytes() == content, name


def test_talks_are_in_the_ted_schema():
    english = []
    for row in ROWS:
        languages, sentences = row["translations"]["language"], row["translations"]["translation"]
        assert len(languages) == len(set(languages)) == len(sentences) and set(languages) <= LANGUAGES
        assert all(sentence == sentence.strip() and sentence and "  " not in sentence for sentence in sentences)
        english.append(sentences[languages.index("en")])
    assert len(set(english)) == len(ROWS) >= 1200


def test_sts_pairs_are_aligned_graded_and_not_in_the_talks():
    talks = {sentence for row in ROWS for sentence in row["translations"]["translation"]}
    rows = {}
    for language in LANGUAGES:
        rows[language] = list(csv.reader((SAMPLES / f"sts-{language}.csv").read_text(encoding="utf-8").splitlines()))
        assert all(len(row) == 3 and row[0] != row[1] for row in rows[language])
        assert not talks & {sentence for row in rows[language] for sentence in row[:2]}
    scores = [float(row[2]) for row in rows["en"]]
    assert all([float(row[2]) for row in listed] == scores for listed in rows.values())
    assert len(scores) >= 200
    assert all(sum(low <= score < low + 1 or score == low + 1 == 5 for score in scores) >= 35 for low in range(5))
