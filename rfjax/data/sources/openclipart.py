# SPDX-License-Identifier: Apache-2.0
"""Open Clip Art: thousands of drawings by hundreds of authors, with captions.

Debian's package openclipart-svg (25 MB, release 0.18): SVG drawings of many shapes,
nearly all in the public domain, whose metadata hold a title, keywords and the author.
What is drawn twice, or not for everyone, is for the filters of `encode` to remove.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import numpy as np

from rfjax.data.sources.base import Entry, ImageSize
from rfjax.data.sources.held_out import is_held_out
from rfjax.data.sources.main_colour import main_colour
from rfjax.data.sources.openclipart_captions import captions_of, names_colour
from rfjax.data.sources.openclipart_titles import repair, subject_of
from rfjax.data.sources.openmoji import COLOURS
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.data.sources.svg import draw_svg, lay_on
from rfjax.errors import MissingFileError
from rfjax.value_types import InputPath, OneOf, OpenFraction, Text, check_fields

LICENCE = (
    "Drawings of the Open Clip Art Library (https://openclipart.org), Debian package "
    "openclipart-svg. Nearly all are dedicated to the public domain by their authors, "
    "whom credits.csv names with the licence of each."
)

FOLDER = "/usr/share/openclipart/svg"

# Drawn larger than needed and reduced by Lanczos' filter, which draws lines smoothly.
_OVERSAMPLING = 2
# Of a drawing that does not fill its frame: blank on each side, of its longer side.
_MARGIN = 1 / 16
_COLOUR_SIZE = 32  # of a drawing whose colour is asked for
_KEYWORDS_AS_FOUND = 8


@dataclasses.dataclass(frozen=True)
class OpenClipartConfig:
    """Which drawings, and how they are drawn and called.

    Attributes:
      path: folder of SVG files in folders.
      image_size: pixels of a side of a square drawing in the data set.
      background: key of `COLOURS`.
      clean_captions: whether captions are made from what titles, keywords, folders and
        colours say; False: title and keywords, as they are in the file.
      held_out: short captions that are held out, so that a prompt for them asks for a
        combination of words that no training caption begins with.
      validation_fraction: share of the other short captions that name a colour that is
        held out, by hash: combinations of colours and nouns that are seen otherwise.
    """

    path: InputPath = FOLDER
    image_size: ImageSize = 64
    background: Annotated[str, OneOf(COLOURS)] = "white"
    clean_captions: bool = True
    held_out: tuple[Text, ...] = ("red car", "green tree")
    validation_fraction: OpenFraction = 0.1

    def __post_init__(self):
        check_fields(self, section="source")

    def make(self) -> OpenClipartSource:
        """Lists the drawings.

        Raises:
          MissingFileError: there are none.
        """
        return OpenClipartSource(self)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What an SVG file says of itself in RDF; empty where it says nothing.

    Attributes:
      title: as written.
      description: as written.
      creator: name of the author.
      licence: "public domain", or the end of the licence's address.
      keywords: as written, but those that are blank or left by a program.
    """

    title: str = ""
    description: str = ""
    creator: str = ""
    licence: str = ""
    keywords: tuple[str, ...] = ()


class OpenClipartSource:
    """Every drawing once: files that are linked from further folders count as one."""

    licence = LICENCE

    def __init__(self, config: OpenClipartConfig):
        self._config = config
        self.caption_kinds = (
            ("short", "full") if config.clean_captions else ("original",)
        )
        self._root = Path(config.path)
        self._folders = _list_drawings(self._root)
        self._keys = sorted(self._folders)
        if not self._keys:
            raise MissingFileError(
                f"source.path must be a folder of SVG drawings, got {config.path} with "
                "none; run `apt-get install openclipart-svg`, or name their folder."
            )
        # All entries are asked for several times, and each needs the drawing's colour.
        self.entry = functools.lru_cache(maxsize=None)(self._entry)

    def __len__(self) -> int:
        return len(self._keys)

    def _entry(self, index: int) -> Entry:
        """Captions, author and licence of a drawing."""
        key = self._keys[index]
        folders = self._folders[key]
        metadata = read_metadata(self._root / key)
        colour = ""
        with contextlib.suppress(BrokenPicture):  # it is reported when it is encoded
            colour = main_colour(self._draw(index, _COLOUR_SIZE))
        subject = subject_of(
            key.removesuffix(".svg"),
            metadata.title,
            metadata.creator,
            metadata.keywords,
        )
        short, full = captions_of(
            subject or "drawing",
            colour,
            folders=folders,
            keywords=metadata.keywords,
        )
        return Entry(
            key=key,
            captions=(
                (short, full) if self._config.clean_captions else (_as_found(metadata),)
            ),
            split="validation" if self._is_held_out(short) else "train",
            licence=metadata.licence,
            attribution=metadata.creator,
            columns={
                "title": metadata.title,
                "keywords": metadata.keywords,
                "description": metadata.description,
                "folders": folders,
                "file": key,
                "colour": colour,
            },
        )

    def picture(self, index: int) -> np.ndarray:
        """A drawing on the background: [H, W, 3] uint8, of its own shape.

        Raises:
          BrokenPicture: the file cannot be drawn, or nothing is in it.
        """
        drawing = self._draw(index, self._config.image_size * _OVERSAMPLING)
        edges = (drawing[0], drawing[-1], drawing[:, 0], drawing[:, -1])
        fills_frame = all(np.median(edge[:, 3]) == 255 for edge in edges)
        margin = 0 if fills_frame else round(max(drawing.shape[:2]) * _MARGIN)
        return lay_on(drawing, COLOURS[self._config.background], margin=margin)

    def _draw(self, index: int, size: int) -> np.ndarray:
        key = self._keys[index]
        return draw_svg(self._root / key, size=size, name=key)

    def _is_held_out(self, caption: str) -> bool:
        """Whether it is one of the combinations that training does not see."""
        config = self._config
        return caption in config.held_out or (
            names_colour(caption)
            and is_held_out(caption, fraction=config.validation_fraction)
        )


def read_metadata(path: Path) -> Metadata:
    """Reads the RDF of an SVG file, which stands before the drawing.

    A file that is broken, or without metadata, gives empty ones.
    """
    found = {}
    with contextlib.suppress(ElementTree.ParseError, OSError, ValueError):
        for _, element in ElementTree.iterparse(path):
            name = _local_name(element)
            if name == "Work":
                found = {_local_name(child): child for child in reversed(element)}
            if name in ("Work", "metadata"):
                break
    return Metadata(
        title=_text(found.get("title")),
        description=_text(found.get("description")),
        creator=repair(_text(found.get("creator"))),
        licence=_licence(found.get("license")),
        keywords=tuple(
            repair(keyword)
            for keyword in _texts(found.get("subject"))
            if not keyword.lower().startswith(("hash", "0x"))
        ),
    )


def _list_drawings(root: Path) -> dict[str, tuple[str, ...]]:
    """Path of each drawing below `root` -> the folders that hold it or a link to it."""
    folders: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.svg")):
        drawing = path
        if path.is_symlink():
            drawing = path.resolve()
            if not drawing.is_relative_to(root.resolve()) or not drawing.is_file():
                continue
            drawing = root / drawing.relative_to(root.resolve())
        key = drawing.relative_to(root).as_posix()
        folders.setdefault(key, []).extend(path.relative_to(root).parts[:-1])
    return {key: tuple(dict.fromkeys(names)) for key, names in folders.items()}


def _as_found(metadata: Metadata) -> str:
    keywords = metadata.keywords[:_KEYWORDS_AS_FOUND]
    return ", ".join(filter(None, (metadata.title, *keywords)))


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rsplit("}", 1)[-1]


def _texts(element: ElementTree.Element | None) -> Iterator[str]:
    """The texts in an element, without blanks around them."""
    for text in () if element is None else element.itertext():
        if words := " ".join(text.split()):
            yield words


def _text(element: ElementTree.Element | None) -> str:
    return " ".join(_texts(element))


def _licence(element: ElementTree.Element | None) -> str:
    address = "" if element is None else next(iter(element.attrib.values()), "")
    name = " ".join(part for part in address.rstrip("/").split("/")[-2:] if part)
    return "public domain" if "public" in name.lower() else name
