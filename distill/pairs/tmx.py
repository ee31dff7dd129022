"""TMX, the exchange format of translation memories: the same sentence in several languages a unit."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from distill.command import UserError
from distill.languages import language_of_word
from distill.text_files import opened


def tmx_units(path: str) -> Iterator[list[tuple[str, str | None]]]:
    """The translation units of a TMX file: language and text of each variant."""
    body, units = None, 0
    with opened(path) as file:
        try:
            for event, element in ElementTree.iterparse(file, events=("start", "end")):
                name = _tag(element)
                if event == "start":
                    body = element if name == "body" else body
                elif name == "tu":
                    units += 1
                    yield _variants(element, f"{path}, translation unit {units}")
                    if body is not None:
                        body.clear()
        except ElementTree.ParseError as error:
            line, column = error.position
            reason = str(error).partition(":")[0]
            raise UserError(
                f"{path}, line {line}, column {column + 1} is no XML ({reason}): mend or fetch it"
            ) from None
        except (LookupError, ValueError) as error:  # of an encoding that Python or expat does not know
            raise UserError(f"{path} cannot be read ({error}): convert it to UTF-8") from None
    if not units:
        raise UserError(f"{path} holds no translation unit (<tu>): this is no TMX file")


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _variants(unit: ElementTree.Element, where: str) -> list[tuple[str, str | None]]:
    variants = []
    for variant in (element for element in unit.iter() if _tag(element) == "tuv"):
        tag = variant.get("{http://www.w3.org/XML/1998/namespace}lang") or variant.get("lang")
        if tag is None:
            raise UserError(f"{where} has a <tuv> without xml:lang: add it")
        segments = [child for child in variant if _tag(child) == "seg"]
        if len(segments) > 1:
            raise UserError(f"{where} has two <seg> in one <tuv>: give each a <tuv> of its own")
        variants.append((language_of_word(tag) or tag, _segment_text(segments[0]) if segments else None))
    return variants


def _segment_text(segment: ElementTree.Element) -> str:
    """A segment's text without the codes of another format that <bpt>, <ept>, <it>, <ph> and <ut> carry.

    A placeholder (<ph>: a picture, a line end) stands between two words: they stay two.
    """
    parts, waiting = [], [segment]  # by hand: elements may be nested deeper than Python calls
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            parts.append(part)
        elif part is segment or _tag(part) in ("hi", "sub"):
            inner = [part.text or "", *(piece for child in part for piece in (child, child.tail or ""))]
            waiting.extend(reversed(inner))
        elif _tag(part) == "ph":
            parts.append("\0")
    return re.sub(r"(?<=\w)\0+(?=\w)", " ", "".join(parts)).replace("\0", "")
