# SPDX-License-Identifier: Apache-2.0
"""PyTorch models with their weights, from a folder or a hub, ready to use.

A folder has the form that `save_pretrained` of transformers and diffusers gives it:
config.json beside safetensors, for each part of a pipeline in a subfolder. A path that
is no folder is the name of a model on the Hugging Face hub, such as
"stabilityai/stable-diffusion-3-medium-diffusers", and becomes the folder in the local
cache, which is downloaded where it is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import xxhash

from rfjax import whole_files
from rfjax.errors import MissingFileError, MissingPackageError, UserError
from rfjax.packages import import_package
from rfjax.value_types import OneOf, StoredPath

DEVICES = ("auto", "cpu", "cuda", "jax")
DTYPES = ("float32", "bfloat16")

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# What is asked of a hub: pickles can run code, and other files are other formats.
_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
_LEFT_OUT = ("*fp16*", "*bf16*", "*flax*", "*onnx*")  # the same weights once more


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchWeights:
    """Fields of an encoder whose weights the user names.

    Attributes:
      path: folder that `save_pretrained` wrote, or name of a model on the hub.
      subfolder: of that, as "text_encoder" of a pipeline; empty: the folder itself.
      device: "cpu", "cuda", "auto" (CUDA where there is a GPU), or "jax": the devices
        of JAX, such as a TPU, through torchax.
      dtype: of weights and activations, "float32" or "bfloat16".
    """

    path: StoredPath
    subfolder: str = ""
    device: Annotated[str, OneOf(DEVICES)] = "auto"
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"


def import_library(name: str, *, needed_by: str) -> types.ModuleType:
    """Imports transformers or diffusers, with PyTorch, and silences their advice.

    Args:
      name: of the package.
      needed_by: what needs it, for the error.

    Raises:
      MissingPackageError: it or PyTorch is not installed.
    """
    import_package("torch", use=needed_by)  # both hide their models without it
    library = import_package(name, use=needed_by)
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def find_folder(weights: TorchWeights, *, parts: Sequence[str], what: str) -> Path:
    """The folder of the weights, on this machine.

    Args:
      weights: names a folder, or a model on the hub.
      parts: subfolders that are needed; "" is the folder itself.
      what: whose weights they are, for errors.

    Raises:
      MissingFileError: there is no such folder, a part is missing, or the hub cannot be
        reached or refuses the model.
    """
    folder = Path(weights.path).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or not _HUB_NAME.fullmatch(weights.path):
            raise MissingFileError(
                f"path of {what} must be a folder or the name of a model on the hub, "
                f"got {weights.path!r}, which is neither; name the folder where it "
                "is now (path of the config, or --encoders=DIR for a data set)."
            )
        folder = _download(weights.path, parts, what=what)
    for part in parts:
        if not (folder / part).is_dir():
            there = sorted(p.name for p in folder.iterdir() if p.is_dir())
            raise MissingFileError(
                f"{what} must be in the subfolder {part} of {weights.path}, which has "
                f"{', '.join(there) or 'no subfolders'}; correct subfolder or path."
            )
    return folder


def _download(name: str, parts: Sequence[str], *, what: str) -> Path:
    """The folder of a model of the hub in the local cache."""
    hub = importlib.import_module("huggingface_hub")
    allowed = [f"{part}/{p}" if part else p for part in parts for p in _PATTERNS]
    ignored = [*_LEFT_OUT, *(["*/*"] if not any(parts) else [])]
    try:
        return Path(
            hub.snapshot_download(name, allow_patterns=allowed, ignore_patterns=ignored)
        )
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise MissingFileError(
            f"path of {what} must be a folder, or the name of a model that can be "
            f"downloaded, got {name!r}: there is no such folder, and "
            f"{_first_line(error)}; download it where the hub can be reached, by "
            f"`hf download {name}` (after `hf auth login` if it asks for a licence), "
            "and name its folder (path of the config, or --encoders=DIR)."
        ) from error


def read_config(
    folder: Path, *, field: str, allowed: Sequence[str], what: str
) -> dict[str, Any]:
    """Reads config.json of a model, and checks which model it is.

    Args:
      folder: of the model itself.
      field: that names the architecture: "model_type" in transformers, "_class_name"
        in diffusers.
      allowed: its values.
      what: whose weights they are, for errors.

    Raises:
      MissingFileError: there is no config.json.
      UserError: it is another model's.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(
            f"weights of {what} must be in a folder with config.json, got {folder}, "
            "which has none; correct path and subfolder."
        )
    config = whole_files.read_json(path)
    if config.get(field) not in allowed:
        raise UserError(
            f"{field} of {path} must be {' or '.join(allowed)} for {what}, got "
            f"{config.get(field)!r}; correct kind, path or subfolder."
        )
    return config


def load_model(
    model_class: type, folder: Path, *, weights: TorchWeights, what: str
) -> Any:
    """Loads a model on the CPU, in evaluation mode.

    Args:
      model_class: of transformers or diffusers.
      folder: of the model itself.
      weights: say the dtype.
      what: whose weights they are, for errors.

    Raises:
      MissingFileError: there are no safetensors.
      UserError: weights are missing, damaged or of other shapes.
    """
    import torch

    if not list(folder.glob("*.safetensors")):
        there = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise MissingFileError(
            f"weights of {what} in {folder} must be safetensors, got {there}; take "
            "those, or convert a pickle that you trust by safetensors.torch.save_file."
        )
    with reading(f"weights of {what} in {folder}"):
        model, found = model_class.from_pretrained(
            folder,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    if other := sorted(found["mismatched_keys"]):
        name, stored, needed = other[0]
        raise UserError(
            f"{name} of {what} in {folder} must be {list(needed)} as config.json says, "
            f"got {list(stored)}; download both again."
        )
    missing = sorted(found["missing_keys"])
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"weights of {what} in {folder} must hold all of a {model_class.__name__}, "
            f"got none for {missing[0]}{others}; choose the folder of such a model, or "
            "download it again."
        )
    return model.eval().to(getattr(torch, weights.dtype))


def choose_device(device: str, *, what: str) -> str:
    """The device of PyTorch to use: "cpu" or "cuda".

    Raises:
      UserError: CUDA is asked for, and there is none.
    """
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UserError(
            f"device of {what} must be there, got 'cuda', and PyTorch "
            f"{torch.__version__} finds no GPU; set device to auto or cpu."
        )
    return "cuda" if there and device in ("auto", "cuda") else "cpu"


def make_with(
    digest: str,
    make: Callable[[str], Any],
    paths: Sequence[str],
    *,
    what: str,
) -> Any:
    """Makes an encoder from the first folder that holds certain weights.

    Args:
      digest: of those weights; empty: any will do.
      make: path -> encoder, whose attribute `weights` is their digest.
      paths: where they may be, in order; see `TorchWeights.path`.
      what: whose weights they are, for errors.

    Raises:
      MissingFileError: they are in none of them.
      UserError: only others are, or what is there cannot be loaded.
    """
    refusals: list[UserError] = []
    for path in paths:
        try:
            encoder = make(path)
            if not digest or encoder.weights == digest:
                return encoder
            raise UserError(
                f"weights of {what} in {path} must be those that encoded the data set, "
                f"of digest {digest[:12]}, got {encoder.weights[:12]}; name the folder "
                "where those are with --encoders=DIR."
            )
        except MissingPackageError:
            raise
        except UserError as error:
            refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    missing = all(isinstance(error, MissingFileError) for error in refusals)
    kind = MissingFileError if missing else UserError
    raise kind(" / ".join(map(str, refusals))) from refusals[0]


def device_elsewhere(device: str) -> str:
    """The device for an encoder that another machine ran on `device`."""
    return device if device == "cpu" else "auto"


def digest(model: Any, facts: Mapping[str, Any]) -> str:
    """What tells a model from others: 128 bits of XXH3, in hexadecimal.

    It depends on the values and dtypes of the parameters and on their names in the
    loaded model, however files name, order and split them.

    Args:
      model: a PyTorch module.
      facts: what else decides what it computes, as JSON has it.
    """
    import torch

    parts = []
    for name, parameter in model.named_parameters():
        values = parameter.detach().cpu().contiguous()
        hashed = xxhash.xxh3_128(f"{name} {values.dtype} {list(values.shape)}".encode())
        hashed.update(values.reshape(-1).view(torch.uint8).numpy())
        parts.append(hashed.hexdigest())
    known = ",".join(f"{name}={facts[name]!r}" for name in sorted(facts))
    return xxhash.xxh3_128("\n".join([*sorted(parts), known]).encode()).hexdigest()


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Within the block, what a library cannot read is a `UserError` of one line.

    Args:
      what: is read.

    Raises:
      UserError: from whatever the library raised.
    """
    try:
        yield
    except Exception as error:  # of every class there is, as files are broken
        raise UserError(
            f"{what} must be whole and of this model, but cannot be read "
            f"({_first_line(error)}); copy or download it again."
        ) from error


def _first_line(error: Exception) -> str:
    """What an error says first, without the full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]
