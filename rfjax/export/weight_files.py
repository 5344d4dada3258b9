# SPDX-License-Identifier: Apache-2.0
"""Which files hold the weights that a user named: one, or shards with their index.

diffusers writes STEM.safetensors, or STEM-00001-of-00002.safetensors, ... with
STEM.safetensors.index.json; a variant such as fp16 is between the dots. The index
decides which shard a tensor is read from; a whole file beside it is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rfjax import whole_files
from rfjax.errors import MissingFileError, UserError
from rfjax.export import foreign_files
from rfjax.export.tensor_file import StoredTensor, read_header

INDEX = re.compile(r"(?P<stem>.+)\.safetensors\.index(\.(?P<variant>.+))?\.json")
SHARD = re.compile(
    r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(\.(?P<variant>.+))?\.safetensors"
)
WHOLE = re.compile(r"(?P<stem>.+)\.safetensors")
# Only these have variants: sd3.5_medium is a name like any other.
STEM_WITH_VARIANT = re.compile(r"(diffusion_pytorch_model|model)\.(.+)")


class Candidate(NamedTuple):
    """One set of weights in a folder.

    Attributes:
      kind: `INDEX`, `SHARD` (without an index) or `WHOLE`.
      variant: as "fp16"; "" for the weights that are loaded by default.
      paths: the index, the shards, or the file.
    """

    kind: re.Pattern
    variant: str
    paths: tuple[Path, ...]


def open_files(source: Path, *, layout: str) -> tuple[dict[str, StoredTensor], Path]:
    """The tensors of a file or folder, and the folder that they are in.

    Args:
      source: a safetensors file, an index, or a folder with one of them; for
        "diffusers" also a pipeline, whose `transformer` folder is taken.
      layout: of the weights.

    Raises:
      UserError: files of another kind, damaged ones, several sets of weights, shards
        and an index that contradict each other, or an index that names files elsewhere.
      MissingFileError: nothing to read, or a shard is missing.
    """
    if not source.exists():
        raise MissingFileError(f"{source} does not exist; give a file or a folder.")
    if not source.is_dir():
        is_index = INDEX.fullmatch(source.name)
        tensors = _open_index(source) if is_index else read_header(source)
        return tensors, source.parent
    if layout == "diffusers" and (source / "transformer").is_dir():
        source = source / "transformer"
    chosen = _choose(source)
    if chosen.kind is SHARD:
        return _open_shards(chosen.paths), source
    read = _open_index if chosen.kind is INDEX else read_header
    return read(chosen.paths[0]), source


def _choose(folder: Path) -> Candidate:
    """The only set of weights of a folder, or its only one without a variant."""
    found = _candidates(folder)
    found = [each for each in found if not each.variant] or found
    chosen = [each for each in found if each.kind is INDEX] or found
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        names = ", ".join(each.paths[0].name for each in chosen)
        raise UserError(
            f"{folder} must hold one safetensors file, or several and one index, got "
            f"{names}; give the file itself."
        )
    for path in sorted(folder.iterdir()):
        foreign_files.refuse_by_name(path)
    if (folder / "unet").is_dir():
        raise UserError(
            f"{folder} holds unet, a U-Net as that of Stable Diffusion 1, 2 or XL; "
            "choose Stable Diffusion 3 or 3.5, whose network is in transformer."
        )
    raise MissingFileError(f"{folder} holds no *.safetensors; give another folder.")


def _candidates(folder: Path) -> list[Candidate]:
    """Every set of weights of a folder, by name."""
    paths = sorted(folder.iterdir())
    indices = [path for path in paths if INDEX.fullmatch(path.name)]
    listed = {name for index in indices for name in _read_weight_map(index).values()}
    sets: dict[tuple[re.Pattern, str, str, str], list[Path]] = {}
    for path in paths:
        if path.name in listed:
            continue
        for kind in (INDEX, SHARD, WHOLE):
            if match := kind.fullmatch(path.name):
                fields = match.groupdict()
                stem, variant = match["stem"], fields.get("variant") or ""
                if inner := STEM_WITH_VARIANT.fullmatch(stem):
                    stem, variant = inner.groups()
                group = (kind, variant, stem, fields.get("count", ""))
                sets.setdefault(group, []).append(path)
                break
    return [
        Candidate(kind, variant, tuple(group))
        for (kind, variant, *_), group in sets.items()
    ]


def _open_shards(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    """The tensors of shards that have no index: all must be there, none twice."""
    count = int(SHARD.fullmatch(paths[0].name)["count"])
    if len(paths) != count:
        raise MissingFileError(
            f"{paths[0].parent} must hold all {count} shards of its weights, got "
            f"{', '.join(path.name for path in paths)}; copy or download the others."
        )
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        shard = read_header(path)
        if twice := sorted(shard.keys() & tensors.keys()):
            raise UserError(
                f"{path} and {tensors[twice[0]].path.name} both hold {twice[0]}, and "
                "no index says which counts; download the shards again, with their "
                "index.json."
            )
        tensors |= shard
    return tensors


def _open_index(index: Path) -> dict[str, StoredTensor]:
    """The tensors that an index lists, each from the shard that it names."""
    weight_map = _read_weight_map(index)
    shards = {
        name: read_header(_beside(index, name))
        for name in sorted(set(weight_map.values()))
    }
    lost = [name for name, file in weight_map.items() if name not in shards[file]]
    unlisted = [
        (name, file)
        for file, tensors in shards.items()
        for name in tensors
        if name not in weight_map
    ]
    if lost:
        raise UserError(
            f"{weight_map[lost[0]]} must hold {lost[0]}, as {index} says, and does not "
            f"({len(lost)} such tensors); download the shards and the index again."
        )
    if unlisted:
        raise UserError(
            f"{index} must list every tensor of its shards, and lacks {unlisted[0][0]} "
            f"of {unlisted[0][1]} ({len(unlisted)} such tensors); download the shards "
            "and the index again."
        )
    return {name: shards[file][name] for name, file in weight_map.items()}


def _read_weight_map(index: Path) -> Mapping[str, str]:
    """Name of every tensor -> name of its shard."""
    weight_map = whole_files.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        got = "none" if weight_map is None else repr(weight_map)[:60]
        raise UserError(
            f"{index} must have a weight_map, an object of tensor names and file "
            f"names, got {got}; download it again."
        )
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise UserError(
                f"{index} must name the file of every tensor, got {file!r} for {name}; "
                "download it again."
            )
    return weight_map


def _beside(index: Path, name: str) -> Path:
    """The path of a shard, which must be a file in the folder of its index."""
    folder = index.parent.resolve()
    shard = folder / name
    allowed = [folder]
    if "snapshots" in folder.parts:  # Hugging Face's cache: its files are links
        above = len(folder.parts) - folder.parts[::-1].index("snapshots") - 1
        allowed.append(Path(*folder.parts[:above], "blobs"))
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(
            f"{index} must name files beside it, got {name!r}; do not use this index, "
            "or correct it."
        )
    if shard.resolve().parent not in allowed:
        raise UserError(
            f"{index} must name files beside it, got {name}, a link to "
            f"{shard.resolve()}; put the file itself there."
        )
    return index.parent / name
