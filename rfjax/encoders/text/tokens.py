# SPDX-License-Identifier: Apache-2.0
"""Captions to tokens: padded, of at most so many, and what is lost of them.

Everything here works with any fast tokenizer of transformers.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rfjax import whole_files
from rfjax.encoders.torch_weights import reading
from rfjax.errors import MissingFileError, MissingPackageError, UserError

TOO_LONG = ("refuse", "cut")

_PIECES = "spiece.model"
_MOST_SHOWN = 60  # letters

# What tells tokenizers apart that share a vocabulary: cases, accents, spaces, scripts.
_PROBE = "A red  fox's DEN, caf\u00e9 \u2014 n\u00b0 42!\n\u732b \U0001f98a"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of B captions.

    Attributes:
      ids: [B, T] int64, pads included.
      mask: [B, T] int64, 1 where a token is not a pad.
      num_tokens: [B] int32, before captions were cut.
      unknown_words: as in `rfjax.encoders.text.base.EncodedText`.
    """

    ids: np.ndarray
    mask: np.ndarray
    num_tokens: np.ndarray
    unknown_words: list[list[str]]

    @property
    def context_length(self) -> np.ndarray:
        """[B] int32, tokens that are not pads."""
        return self.mask.sum(axis=1).astype(np.int32)


def load_tokenizer(
    tokenizer_class: type, folder: Path, *, files: Sequence[Sequence[str]], what: str
) -> Any:
    """Loads a fast tokenizer of transformers from a folder.

    Args:
      tokenizer_class: "CLIPTokenizer" loads from one of its own alone.
      folder: holds the vocabulary.
      files: sets of files, one of which must be there; else transformers would make a
        tokenizer that knows nothing.
      what: the text encoder that it belongs to, for errors.

    Raises:
      MissingFileError: there is no vocabulary.
      MissingPackageError: it is in a format that needs another package.
      UserError: the tokenizer is another one, or damaged.
    """
    if not any(all((folder / name).is_file() for name in names) for names in files):
        raise MissingFileError(
            f"tokenizer of {what} must be a folder with "
            f"{' or '.join(' and '.join(names) for names in files)}, got {folder}; "
            "set the field tokenizer to the subfolder that has them."
        )
    if not (folder / "tokenizer.json").is_file() and folder.joinpath(_PIECES).is_file():
        _need_sentencepiece(folder, what=what)
    path = folder / "tokenizer_config.json"
    found = (
        whole_files.read_json(path).get("tokenizer_class") if path.exists() else None
    )
    if found and found.removesuffix("Fast") != tokenizer_class.__name__:
        raise UserError(
            f"tokenizer of {what} must be a {tokenizer_class.__name__}, got a {found} "
            f"in {folder}; correct tokenizer, path or kind."
        )
    with reading(f"tokenizer of {what} in {folder}"):
        return tokenizer_class.from_pretrained(folder)


def _need_sentencepiece(folder: Path, *, what: str) -> None:
    """Raises unless the package is there that alone can read T5's older files."""
    if importlib.util.find_spec("sentencepiece") is None:
        raise MissingPackageError(
            f"tokenizer of {what} in {folder} is {_PIECES} without tokenizer.json, and "
            "needs sentencepiece, which is not installed; install it with "
            "`pip install sentencepiece`."
        )


def tokenize(
    tokenizer: Any, captions: Sequence[str], *, length: int, too_long: str, what: str
) -> Tokens:
    """Tokens of B captions, at least one.

    Args:
      tokenizer: as transformers makes it.
      captions: any text.
      length: T; captions are padded to it.
      too_long: what a caption of more than T tokens gets: "refuse", or "cut" to its
        first T, of which the last is the one that closes a caption.
      what: the text encoder, for errors.

    Raises:
      UserError: no caption, or one is too long and refused.
    """
    captions = list(captions)
    if not captions:
        raise UserError("captions must hold at least one caption, got none.")
    options = {"padding": "max_length", "max_length": length}
    found = tokenizer(captions, return_offsets_mapping=True, **options)
    num_tokens = np.array([sum(mask) for mask in found["attention_mask"]], np.int32)
    if num_tokens.max() > length:
        if too_long == "refuse":
            raise UserError(_refusal(captions, num_tokens, length=length, what=what))
        found = tokenizer(
            captions, return_offsets_mapping=True, truncation=True, **options
        )
    special = frozenset(tokenizer.all_special_ids)
    return Tokens(
        ids=np.array(found["input_ids"], np.int64),
        mask=np.array(found["attention_mask"], np.int64),
        num_tokens=num_tokens,
        unknown_words=[
            _unknown_words(caption, ids, offsets, special)
            for caption, ids, offsets in zip(
                captions, found["input_ids"], found["offset_mapping"], strict=True
            )
        ],
    )


def excerpt(caption: str) -> str:
    """The beginning of a caption, for messages."""
    return caption if len(caption) <= _MOST_SHOWN else f"{caption[:_MOST_SHOWN]}..."


def facts(tokenizer: Any) -> Mapping[str, Any]:
    """What decides which tokens a tokenizer makes, whatever files it came from."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = model.get("merges") or ()
    return {
        "vocabulary": model["vocab"],
        "merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "pad": tokenizer.pad_token_id,
        "probe": tokenizer(_PROBE)["input_ids"],
    }


def _refusal(
    captions: Sequence[str], num_tokens: np.ndarray, *, length: int, what: str
) -> str:
    longest = int(np.argmax(num_tokens))
    num_others = int((num_tokens > length).sum()) - 1
    others = f" (as are {num_others} others)" if num_others else ""
    return (
        f"caption {excerpt(captions[longest])!r} has {num_tokens[longest]} tokens, the "
        f"text encoder {what} takes at most {length}, so it is too long{others}; "
        "shorten it, or encode the data set with a larger length or too_long = cut in "
        "text_encoders."
    )


def _unknown_words(
    caption: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    special: frozenset[int],
) -> list[str]:
    """Words that became a token with a meaning of its own, such as [UNK].

    The whole caption, if nothing is left of it but what opens and closes it.
    """
    words = [(i, caption[slice(*o)]) for i, o in zip(ids, offsets, strict=True)]
    words = [(token, word) for token, word in words if word]
    if not words and caption:
        return [caption]
    return [word for token, word in words if token in special]
