# SPDX-License-Identifier: Apache-2.0
"""One or two emoji on a coloured canvas, with captions that say what is where.

Scenes are computed from seed and index, as many as wanted, and some combinations are
held out: validation asks for arrangements that were never seen, of objects that were.
The caption can be parsed back, so that a generated picture can be scored for objects,
places and colour.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from rfjax.data.sources.base import Entry, ImageSize
from rfjax.data.sources.held_out import is_held_out
from rfjax.data.sources.openmoji import (
    AUTHOR,
    COLOURS,
    LICENCE,
    LICENCE_NAME,
    emoji_name,
    make_canvas,
    paste,
    render_cropped_emoji,
)
from rfjax.errors import UserError
from rfjax.value_types import Fraction, OpenFraction, PositiveInt, Seed, check_fields

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
class ScenesConfig:
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
    image_size: ImageSize = 32
    min_object_size: PositiveInt = 13
    max_object_size: PositiveInt = 15
    single_fraction: Fraction = 0.2
    held_out_fraction: OpenFraction = 0.1
    num_train: PositiveInt = 8192
    num_validation: PositiveInt = 512
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self, section="source")
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

    def make(self) -> SceneSource:
        """Names the objects.

        Raises:
          UserError: an object has no name.
          MissingPackageError: the package emoji is not installed.
        """
        return SceneSource(self)


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


def is_scene_held_out(scene: Scene, *, fraction: float) -> bool:
    """Whether a combination belongs to validation.

    "A left of B" and "B right of A" are one combination. The colour does not count for
    two objects, so a held-out arrangement is held out on every background.
    """
    if not scene.relation:
        name = f"{scene.objects[0]} on {scene.background}"
        return is_held_out(name, fraction=fraction)
    first, second = scene.objects
    if scene.relation in ("right of", "below"):
        first, second = second, first
    axis = "left of" if scene.relation in ("left of", "right of") else "above"
    return is_held_out(f"{first} {axis} {second}", fraction=fraction)


class SceneSource:
    """One or two emoji on a coloured canvas, with a caption that says what is where."""

    licence = LICENCE
    caption_kinds = ("description",)

    def __init__(self, config: ScenesConfig):
        self._config = config
        self._characters = {emoji_name(c): c for c in config.objects}

    def __len__(self) -> int:
        return self._config.num_train + self._config.num_validation

    def entry(self, index: int) -> Entry:
        """The caption of a scene, and where its objects are."""
        scene, _ = self._draw(index)
        split, number = self._place(index)
        return Entry(
            key=f"{split} {number}",
            captions=(scene_caption(scene),),
            split=split,
            licence=LICENCE_NAME,
            attribution=AUTHOR,
            annotation=dataclasses.asdict(scene),
        )

    def picture(self, index: int) -> np.ndarray:
        """A scene: [image_size, image_size, 3] uint8."""
        return self._draw(index)[1]

    def _place(self, index: int) -> tuple[str, int]:
        """The split of a scene, and its number there: training scenes come first."""
        num_train = self._config.num_train
        if index < num_train:
            return "train", index
        return "validation", index - num_train

    def _draw(self, index: int) -> tuple[Scene, np.ndarray]:
        """Composes a scene, and draws it."""
        config = self._config
        split, number = self._place(index)
        rng = np.random.default_rng((config.seed, split == "validation", number))
        scene = self._draw_scene(rng, held_out=split == "validation")
        canvas = make_canvas(config.image_size, scene.background)
        boxes = []
        for name, (top, left, side) in zip(
            scene.objects, self._draw_places(rng, scene.relation), strict=True
        ):
            picture = render_cropped_emoji(self._characters[name], side)
            height, width = picture.shape[:2]
            top, left = top + (side - height) // 2, left + (side - width) // 2
            paste(canvas, picture, top=top, left=left)
            boxes.append((top, left, top + height, left + width))
        return dataclasses.replace(scene, boxes=tuple(boxes)), canvas

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
            if is_scene_held_out(scene, fraction=config.held_out_fraction) == held_out:
                return scene
        raise UserError(
            f"no {'held-out' if held_out else 'training'} combination was found for "
            f"source.held_out_fraction {config.held_out_fraction} with {len(names)} "
            "objects; choose a fraction nearer to 0.5 or more objects."
        )

    def _draw_places(
        self, rng: np.random.Generator, relation: str
    ) -> Iterator[tuple[int, int, int]]:
        """Yields (top, left, side) of each object: inside, and without overlap."""
        config = self._config
        size, half = config.image_size, config.image_size // 2

        def side() -> int:
            """Pixels of an object's side."""
            return int(rng.integers(config.min_object_size, config.max_object_size + 1))

        def place(low: int, high: int, length: int) -> int:
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


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
