"""Write the demo's small corpus: talks.jsonl and one sts-XX.csv per language.

python samples/make_samples.py [--output_dir DIR]
"""

import argparse
import csv
import json
import random
import re
from pathlib import Path

from phrase_slots import HERE, LANGUAGES, SLOTS, read_table

SEED = 11
# Sentences kept out of the talks, so that they can be tried as unseen input.
UNSEEN = {
    "en": {"i love plants", "i have an orange dog"},
    "it": {"mi piacciono le piante", "ho un cane arancione"},
}
ARABIC_TEXT = re.compile(r"[\u0621-\u063a\u0641-\u064a0-9 .،؟!:؛]+")


def normalised(text):
    """Return a sentence without punctuation and capitals, to compare sentences."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def compose(template, slots, language):
    """Fill a template, then elide, drop the spaces of empty slots and capitalise."""
    phrases = {slot: texts[language] for slot, texts in slots.items() if language in texts}
    text = " ".join(template[language].format(**phrases).split())
    text = re.sub(r" ([.,])", r"\1", text)
    if language == "fr":
        text = re.sub(r"\b([Jj]e|ne|pas de|que) (?=[aeiouyéèêhœ])", lambda match: match[1][:-1] + "'", text)
    else:
        text = re.sub(r" ([?؟])", r"\1", text)
    start = 1 if text.startswith("¿") else 0
    return text[:start] + text[start].upper() + text[start + 1 :]


def composed_rows(template, chooser):
    """Yield (topic, {language: sentence}) for the combinations of a template, in a chosen order."""
    name, _, argument = template["slots"].partition(":")
    combinations = list(SLOTS[name](argument) if argument else SLOTS[name]())
    chooser.shuffle(combinations)
    for topic, slots in combinations:
        yield topic, {language: compose(template, slots, language) for language in LANGUAGES}


def make_talks():
    """Return (topic, {language: sentence}) rows, with distinct English sentences."""
    chooser = random.Random(SEED)
    rows = [(row.pop("topic"), row) for row in read_table(HERE / "sentences.tsv")]
    seen = {normalised(row["en"]) for _, row in rows}
    for template in read_table(HERE / "templates.tsv"):
        wanted = len(rows) + int(template["rows"])
        for topic, row in composed_rows(template, chooser):
            english = normalised(row["en"])
            unseen = any(normalised(row[language]) in texts for language, texts in UNSEEN.items())
            if english not in seen and not unseen:
                seen.add(english)
                rows.append((topic, row))
            if len(rows) == wanted:
                break
        assert len(rows) == wanted, f"{template['name']}: {wanted - len(rows)} sentences too few"
    chooser.shuffle(rows)
    return rows


def make_pairs():
    """Return the STS pairs as (row of sentence 1, row of sentence 2, score)."""
    sentences = {row["key"]: row for row in read_table(HERE / "sts_sentences.tsv")}
    pairs = read_table(HERE / "sts_pairs.tsv")
    return [(sentences[pair["first"]], sentences[pair["second"]], float(pair["score"])) for pair in pairs]


def check(talks, pairs):
    """Fail where the corpus breaks one of its promises."""
    assert len({row["en"] for _, row in talks}) == len(talks) >= 2000
    assert len({(first["key"], second["key"]) for first, second, _ in pairs}) == len(pairs) >= 250
    for language in LANGUAGES:
        texts = [row[language] for _, row in talks]
        graded = [sentence[language] for first, second, _ in pairs for sentence in (first, second)]
        known = {normalised(text) for text in texts}
        assert not known & {normalised(text) for text in graded}, language
        assert not known & UNSEEN.get(language, set()), language
        assert all(first[language] != second[language] for first, second, _ in pairs), language
        for text in texts + graded:
            assert text and text == " ".join(text.split()) and not re.search(r"[{}|+/]", text), text
            assert language != "ar" or ARABIC_TEXT.fullmatch(text), text


def write_talks(path, talks):
    """Write the talks, leaving out one or two languages in about 8% of the rows."""
    chooser = random.Random(SEED)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for topic, row in talks:
            missing = []
            if chooser.random() < 0.08:
                missing = chooser.sample(LANGUAGES[1:], chooser.choice([1, 2]))
            languages = [language for language in sorted(LANGUAGES) if language not in missing]
            translations = {"language": languages, "translation": [row[language] for language in languages]}
            talk = {"translations": translations, "talk_name": topic}
            file.write(json.dumps(talk, ensure_ascii=False) + "\n")


def write_pairs(path, pairs, language):
    """Write one language's STS file."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows((first[language], second[language], score) for first, second, score in pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=HERE)
    args = parser.parse_args()
    talks, pairs = make_talks(), make_pairs()
    check(talks, pairs)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_talks(args.output_dir / "talks.jsonl", talks)
    for language in LANGUAGES:
        write_pairs(args.output_dir / f"sts-{language}.csv", pairs, language)
    print(f"{len(talks)} rows, {len(pairs)} pairs")


if __name__ == "__main__":
    main()
