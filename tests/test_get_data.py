"""runs/get_data.py on repositories of a few lines, to which git goes instead of GitHub."""

import gzip
import subprocess
from pathlib import Path

import polars as pl
import pytest
from conftest import script

from runs import get_data

STSB = ["de", "en", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh"]
MULTI30K = ["cs", "de", "en", "fr"]
NTREX = sorted(get_data.NTREX_FILES)


def commit(folder: Path, files: dict[str, bytes]) -> str:
    """Commit these files to a repository, made where there is none; the commit."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=test"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def instead_of_github(folder: Path) -> dict[str, str]:
    """What git must find in the environment to go to a folder instead of GitHub."""
    rule = {"KEY": f"url.{folder}/.insteadOf", "VALUE": "https://github.com/"}
    return {"GIT_CONFIG_COUNT": "1"} | {f"GIT_CONFIG_{name}_0": text for name, text in rule.items()}


@pytest.fixture
def github(tmp_path, monkeypatch) -> None:
    """STSb of two pairs, Multi30k of two captions, NTREX of 1,001 sentences, each named by language and number."""
    stsb = {language: f'"{language}, 0",{language} 1,5.0\n{language} 2,{language} 3,0.4\n' for language in STSB}
    captions = {language: f"{language} 0 \n{language}\u2028 1\n" for language in MULTI30K}
    news = {language: "".join(f"{language} {i}\n" for i in range(1001)) for language in NTREX}
    contents = {
        "PhilipMay/stsb-multi-mt": {f"data/stsb-{language}-train.csv": text for language, text in stsb.items()},
        "facebookresearch/LASER": {"data/tatoeba/v1/tatoeba.ita-eng.ita": "ciao\r\n", "README.md": "LASER"},
        "multi30k/dataset": {f"data/task1/raw/train.{language}.gz": text for language, text in captions.items()},
        "MicrosoftTranslator/NTREX": {
            f"NTREX-128/newstest2019-{get_data.NTREX_FILES[language]}.txt": text for language, text in news.items()
        }
        | {"DOCUMENT_IDS.tsv": "bbc.381790\n" * 999 + "rt.com.9\n" * 2},
    }
    for repository, files in contents.items():
        coded = {
            name: gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
            for name, text in files.items()
        }
        monkeypatch.setitem(get_data.COMMITS, repository, commit(tmp_path / "github" / repository, coded))
    for name, value in instead_of_github(tmp_path / "github").items():
        monkeypatch.setenv(name, value)


def get(output: Path) -> pl.DataFrame:
    get_data.main(get_data.build_parser().parse_args(["--output_dir", str(output)]))
    return pl.read_parquet(output / "ted_multi_sample.parquet")


def test_folders_are_taken_as_they_are(tmp_path, github):
    get(tmp_path / "data")
    folders = {"multi30k", "stsb_multi_mt", "tatoeba"}
    assert {path.name for path in (tmp_path / "data").iterdir()} == folders | {"args.json", "ted_multi_sample.parquet"}
    assert (tmp_path / "data/tatoeba/tatoeba.ita-eng.ita").read_bytes() == b"ciao\r\n"
    assert (tmp_path / "data/stsb_multi_mt/stsb-it-train.csv").read_bytes() == b'"it, 0",it 1,5.0\nit 2,it 3,0.4\n'
    assert gzip.decompress((tmp_path / "data/multi30k/train.cs.gz").read_bytes()).decode() == "cs 0 \ncs\u2028 1\n"


def test_the_sample_joins_the_corpora_in_the_schema_of_ted(tmp_path, github):
    sample = get(tmp_path / "data")
    texts = pl.List(pl.String)
    assert sample.schema == {
        "translations": pl.Struct({"language": texts, "translation": texts}),
        "talk_name": pl.String,
    }
    talks = ["stsb_train_000"] * 4 + ["multi30k_train_000"] * 2 + ["ntrex_bbc_381790"] * 999 + ["ntrex_rt_com_9"]
    assert sample["talk_name"].to_list() == talks
    rows = sample["translations"].to_list()
    assert rows[0] == {"language": STSB, "translation": [f"{language}, 0" for language in STSB]}
    assert rows[2]["translation"] == [f"{language} 2" for language in STSB]
    assert rows[4] == {"language": MULTI30K, "translation": ["cs 0 ", "de 0 ", "en 0 ", "fr 0 "]}
    assert rows[-1]["translation"] == [f"{language} 999" for language in rows[-1]["language"]]


def test_languages_are_missing_by_the_seed(tmp_path, github):
    """Read off from random.Random(7): which of its numbers are above 0.9, and above 0.995 for English."""
    languages = [set(row["language"]) for row in get(tmp_path / "data")["translations"]]
    assert [set(STSB) - row for row in languages[:4]] == [set(), {"pl", "zh"}, set(), set()]
    assert [set(MULTI30K) - row for row in languages[4:6]] == [set(), {"cs"}]
    assert [set(NTREX) - row for row in languages[6:9]] == [{"vi", "cs"}, {"sv"}, {"fa"}]
    assert set(NTREX) - languages[-1] == {"ru", "hi", "id", "cs"}
    assert [i for i, row in enumerate(languages[6:]) if "en" not in row] == [353, 430, 504, 939]


def test_a_later_commit_changes_nothing(tmp_path, github):
    commit(tmp_path / "github/facebookresearch/LASER", {"data/tatoeba/v1/tatoeba.ita-eng.ita": b"salve\n"})
    get(tmp_path / "data")
    assert (tmp_path / "data/tatoeba/tatoeba.ita-eng.ita").read_bytes() == b"ciao\r\n"


@pytest.mark.parametrize(
    "file, path, message",
    [
        ("args.json", None, "PhilipMay/stsb-multi-mt cannot be fetched"),
        ("args.json", "", "git is not there"),
        ("mine.txt", None, "data holds mine.txt, which no script wrote"),
    ],
    ids=["no network", "no git", "a folder of the user's"],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(tmp_path, file, path, message):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / file).write_text('{"command_line": "x", "files": []}')
    variables = instead_of_github(tmp_path / "nowhere") | ({} if path is None else {"PATH": path})
    done = script("runs/get_data.py", "--output_dir", f"{tmp_path}/data", **variables)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["data", f"data/{file}"]
