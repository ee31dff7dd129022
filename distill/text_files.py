"""Text files of any size, plain or compressed, with file and line in every error."""

import bz2
import fnmatch
import glob
import gzip
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import fsspec
import polars as pl
import pyarrow as pa

from distill.command import UserError

BLOCK = 1 << 23  # bytes of text at a time
MAX_LINE = 1 << 26  # a file without line ends is no corpus: stop before it fills the memory
PART = 1 << 26  # bytes of a plain file that are one part of it
OPENERS = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    # Arrow's own, because zstandard's reader takes a truncated file for a whole one.
    ".zst": lambda file: pa.input_stream(file, compression="zstd"),
}


def file_name(path: str) -> Path:
    """A path's own name: of `zip://ted.en::en-it.zip` that in the archive."""
    return Path(path.partition("::")[0])


def expand_globs(spec: str) -> list[str]:
    """'news/*.{en,it}.gz' -> ['news/1.{en,it}.gz', 'news/2.{en,it}.gz']: the files of a pattern, in order.

    A spec without *, ? or [ stands for itself, and so does a file that is called so. Of a brace path the files of its
    first language count. UserError where there is none.
    """
    mark, path = re.fullmatch(r"((?:[A-Za-z][\w+-]*=)?)(.*)", spec).groups()
    if not glob.has_magic(path) or "://" in path or Path(spec).exists():
        return [spec]
    before, braces, after = [*re.split(r"(\{[^{}]+\})", path, maxsplit=1), "", ""][:3]
    first = braces[1:-1].split(",")[0].rpartition("=")[2]
    place = re.compile(f"(?P<start>{as_expression(before)}){re.escape(first)}(?P<end>{as_expression(after)})")
    found = sorted(glob.glob(before + glob.escape(first) + after, recursive=True))
    if not found:
        raise UserError(f"{spec} matches no file: check the pattern, and that it stands in quotes")
    if not braces:
        return [mark + name for name in found]
    return [mark + place.fullmatch(name).expand(rf"\g<start>{braces}\g<end>") for name in found]


def as_expression(pattern: str) -> str:
    """A part of a pattern of files as a regular expression."""
    return fnmatch.translate(pattern).removesuffix(r"\Z").removesuffix(r"\z")


def expand_languages(spec: str) -> dict[str, str]:
    """'x.{en,it}.gz' -> {'en': 'x.en.gz', 'it': 'x.it.gz'}: the files of a brace path by language.

    'x.{en,pt-BR=ptbr}.gz' -> {'en': 'x.en.gz', 'pt-BR': 'x.ptbr.gz'}: TAG=TEXT says what a part of a name stands for.
    """
    match = re.search(r"\{([^{}]+)\}", spec)
    if match is None:
        raise UserError(f"{spec} names no languages: write them in quoted braces, as in 'stsb-{{en,it}}-test.csv'")
    files = {}
    for part in match[1].split(","):
        tag, _, text = part.rpartition("=")
        if (tag or text) in files:
            raise UserError(f"{spec} names {tag or text} twice: leave one out")
        files[tag or text] = spec[: match.start()] + text + spec[match.end() :]
    return files


UNREADABLE = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, pa.ArrowException, OSError)


@contextmanager
def reading(spec: str) -> Iterator[None]:
    """Turn what libraries raise on bad input into a UserError that names the corpus."""
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, KeyError):  # KeyError: of an archive's member
        raise UserError(f"{spec} does not exist: check the path") from None
    except PermissionError:
        raise UserError(f"{spec} may not be read: ask its owner for the permission") from None
    except UNREADABLE as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"{spec} cannot be read ({reason}): it may be cut short or of another format") from error


@contextmanager
def opened(path: str) -> Iterator:
    """A file's bytes, unpacked as its suffix says. What fsspec reaches is one too: `zip://a.en::a.zip`, `s3://...`."""
    with reading(path):
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"{path} is a folder or a device: give a file")
        try:
            there = fsspec.open(path, "rb")
        except (ImportError, ValueError) as error:  # what it would need, or a protocol that nobody knows
            raise UserError(f"{path} cannot be read: {error}") from None
        with there as packed, OPENERS.get(file_name(path).suffix.lower(), nullcontext)(packed) as file:
            yield file


Part = tuple[int, int]  # of a file, from here to there: bytes of text, row groups of Parquet


def parts_of_text(path: str) -> list[Part]:
    """A plain file in parts of PART bytes."""
    return [(start, start + PART) for start in range(0, max(1, Path(path).stat().st_size), PART)]


def text_blocks(path: str, part: Part | None = None) -> Iterator[tuple[int, bytes]]:
    """Whole lines of a file, about `BLOCK` bytes at a time, each with the number of its first line.

    Of a part, the lines that begin in it; where they are not the file's first, they are counted from 2 on.
    """
    start, stop = part or (0, math.inf)
    number, rest = 1, b""
    with opened(path) as file:
        if start:
            file.seek(start - 1)
            start += len(file.readline(MAX_LINE)) - 1  # of a line that begins before
            number = 2
        while start < stop and (block := file.read(min(BLOCK, stop - start))):
            start += len(block)
            if start >= stop and not block.endswith(b"\n"):
                block += file.readline(MAX_LINE)
            block = rest + block
            end = block.rfind(b"\n") + 1
            if end:
                yield number, block[:end]
                number += block.count(b"\n", 0, end)
            rest = block[end:]
            if len(rest) > MAX_LINE:
                raise UserError(f"{path}, line {number} is longer than {MAX_LINE >> 20} MB: this is no corpus")
        if rest:
            yield number, rest


def decode(path: str, number: int, block: bytes) -> str:
    """The text of a block that begins at line `number`; UserError with the line where it is not UTF-8."""
    try:
        return block.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = number + block.count(b"\n", 0, error.start)
        guess = "UTF-16" if block[:2] in (b"\xff\xfe", b"\xfe\xff") else "the encoding it has"
        raise UserError(
            f"{path}, line {line} is not UTF-8 (byte 0x{block[error.start]:02x}): convert the file, as in "
            f"'iconv -t utf-8 -f ENCODING' with {guess}"
        ) from None


def text_lines(path: str, part: Part | None = None) -> Iterator[tuple[int, pl.Series]]:
    """The lines of a UTF-8 text file without line ends, in blocks, each with the number of its first line."""
    for number, block in text_blocks(path, part):
        text = decode(path, number, block).removesuffix("\n")
        yield number, pl.Series("line", [text]).str.split("\n").explode().str.strip_suffix("\r")


def read_lines(path: str) -> list[str]:
    """All lines of a text file, without line ends."""
    return [line for _, lines in text_lines(path) for line in lines]


def read_aligned_lines(spec: str) -> dict[str, list[str]]:
    """Line-aligned files of a brace path, by language. UserError when their line counts differ."""
    lines = {language: read_lines(path) for language, path in expand_languages(spec).items()}
    counts = {language: len(sentences) for language, sentences in lines.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"{spec}: the files are not line-aligned, their line counts are {counts}")
    return lines
