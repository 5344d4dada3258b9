# SPDX-License-Identifier: Apache-2.0
"""Text encoders of transformers with the weights that the user names, unmasked.

Stable Diffusion 3 and its pipeline in diffusers give their encoders no padding mask, so
the states of pads are part of what a model learns from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from rfjax.encoders import torch_weights
from rfjax.encoders.text.base import EncodedText
from rfjax.encoders.text.tokens import TOO_LONG, facts, load_tokenizer, tokenize
from rfjax.encoders.torch_network import as_function
from rfjax.encoders.torch_weights import TorchWeights
from rfjax.errors import UserError
from rfjax.value_types import OneOf, PositiveInt, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedTextConfig(TorchWeights):
    """Fields of a text encoder whose weights the user names.

    Attributes:
      name: of the encoder in the data set; its kind, if empty.
      too_long: what a caption of more than `length` tokens gets: "refuse" or "cut".
      tokenizer: subfolder of `path` with the tokenizer; if absent, `subfolder` with
        "tokenizer" for "text_encoder", as pipelines have it.
      batch_size: captions that go through the network at a time.
    """

    name: str = ""
    too_long: Annotated[str, OneOf(TOO_LONG)] = "refuse"
    tokenizer: str | None = None
    batch_size: PositiveInt = 128

    def __post_init__(self):
        check_fields(self, section="text_encoders")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What one kind of model needs, and what is taken from it.

    Attributes:
      kind: key of `rfjax.encoders.text.TEXT_ENCODERS`.
      model: class of transformers.
      config: class of its config.
      model_types: what config.json may call it.
      tokenizer: class of transformers.
      vocabulary: sets of files of which the tokenizer has one.
      facts: fields of the config that decide what the model computes, beside weights.
      joined: where its states go beside those of others.
      states: model -> a module that maps ids [B, T] to (context, pooled).
      dims: config -> (context_dim, pooled_dim).
      problem: (config, tokenizer, length) -> why they do not go together; "": they do.
    """

    kind: str
    model: str
    config: str
    model_types: Sequence[str]
    tokenizer: str
    vocabulary: Sequence[Sequence[str]]
    facts: Sequence[str]
    joined: str
    states: Callable[[Any], Any]
    dims: Callable[[Any], tuple[int, int]]
    problem: Callable[[Any, Any, int], str]


class PretrainedTextEncoder:
    """An encoder with its weights, ready to use.

    Args:
      config: which weights; it has a field `length`.
      architecture: what they must be.

    Raises:
      MissingPackageError: PyTorch, transformers or torchax is not installed.
      MissingFileError: there is no such folder.
      UserError: it holds another model, or a damaged one.
    """

    mask = False

    def __init__(self, config: Any, architecture: Architecture):
        self._config = config
        self._what = what = config.name or architecture.kind
        self.joined = architecture.joined
        library = torch_weights.import_library("transformers", needed_by=what)
        folder, self._tokenizer, model_config = self._open(architecture, library)
        model = torch_weights.load_model(
            getattr(library, architecture.model), folder, weights=config, what=what
        )
        known = {name: getattr(model_config, name) for name in architecture.facts}
        self.weights = torch_weights.digest(model, known | facts(self._tokenizer))
        self.context_dim, self.pooled_dim = architecture.dims(model_config)
        self._network = as_function(
            architecture.states(model),
            device=config.device,
            what=what,
            batch_size=config.batch_size,
        )

    def encode(self, captions: Sequence[str]) -> EncodedText:
        """Encodes B captions; see `rfjax.encoders.text.TextEncoder`."""
        tokens = tokenize(
            self._tokenizer,
            captions,
            length=self._config.length,
            too_long=self._config.too_long,
            what=self._what,
        )
        context, pooled = self._network(tokens.ids)
        return EncodedText(
            context=context,
            context_length=tokens.context_length,
            pooled=pooled,
            unknown_words=tokens.unknown_words,
            num_tokens=tokens.num_tokens,
        )

    def _open(self, architecture: Architecture, library: Any) -> tuple[Path, Any, Any]:
        """Folder of the model, tokenizer and config, which go together."""
        config, what = self._config, self._what
        vocabulary = config.tokenizer
        if vocabulary is None:
            vocabulary = config.subfolder.replace("text_encoder", "tokenizer")
        parts = (config.subfolder, vocabulary)
        root = torch_weights.find_folder(config, parts=parts, what=what)
        folder = root / config.subfolder
        torch_weights.read_config(
            folder, field="model_type", allowed=architecture.model_types, what=what
        )
        with torch_weights.reading(f"config.json of {what} in {folder}"):
            model_config = getattr(library, architecture.config).from_pretrained(folder)
        tokenizer = load_tokenizer(
            getattr(library, architecture.tokenizer),
            root / vocabulary,
            files=architecture.vocabulary,
            what=what,
        )
        if len(tokenizer) > model_config.vocab_size:
            raise UserError(
                f"tokenizer of {what} must know at most the {model_config.vocab_size} "
                f"tokens of the model in {folder}, got {len(tokenizer)} in "
                f"{root / vocabulary}; give the tokenizer that the model came with."
            )
        if problem := architecture.problem(model_config, tokenizer, config.length):
            raise UserError(f"{problem} (text encoder {what}, {folder}).")
        return folder, tokenizer, model_config
