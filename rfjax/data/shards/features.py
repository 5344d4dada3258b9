# SPDX-License-Identifier: Apache-2.0
"""What `features.json` says the records hold, compared with the manifest.

TFDS imports whatever class that file names, so it is never given to TFDS: it is read
here as plain JSON, and only names the classes that rfjax writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rfjax.data.manifest import MANIFEST_FILE, Manifest
from rfjax.data.shards.layout import make_features, tfds_folder
from rfjax.errors import MissingFileError, UserError

FEATURES_FILE = "features.json"

_MODULE = "tensorflow_datasets.core.features"
_FEATURES = f"{_MODULE}.features_dict.FeaturesDict"
_TENSOR = f"{_MODULE}.tensor_feature.Tensor"
_TEXT = f"{_MODULE}.text_feature.Text"

_REMEDY = "make the data set again with `rfjax encode`."


def check_features(root: str | os.PathLike, manifest: Manifest) -> None:
    """Checks that records have the shapes and dtypes of the manifest.

    Raises:
      MissingFileError: there is no features.json.
      UserError: it is not one of rfjax, or its features differ.
    """
    for shape in manifest.latent.shapes:
        _check_bucket(root, manifest, shape)


def _check_bucket(
    root: str | os.PathLike, manifest: Manifest, shape: tuple[int, int, int]
) -> None:
    """As `check_features`, of the records whose latents have one shape."""
    path = tfds_folder(root, manifest, shape) / FEATURES_FILE
    if not path.is_file():
        raise MissingFileError(f"data file {path} is missing; {_REMEDY}")
    try:
        fields = json.loads(path.read_text("utf-8"))
        stored = fields["featuresDict"]["features"]
        _check_class(path, "the top level", fields, {_FEATURES})
        for name, feature in stored.items():
            _check_class(path, f"feature {name}", feature, {_TENSOR, _TEXT})
        found = {name: _kind(feature) for name, feature in stored.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} does not describe records of rfjax ({error!r}); {_REMEDY}"
        ) from error
    for name, feature in make_features(manifest, shape).items():
        dtype = np.dtype(feature.np_dtype)
        is_text = isinstance(feature, tfds.features.Text)
        if found.get(name) != ("text" if is_text else (feature.shape, str(dtype))):
            raise UserError(
                f"feature {name} of {root} must be {feature.shape} {dtype} as "
                f"{MANIFEST_FILE} says, but the records have {found.get(name)}; "
                f"{_REMEDY}"
            )


def _check_class(
    path: os.PathLike, where: str, feature: Mapping[str, Any], known: set[str]
) -> None:
    name = feature.get("pythonClassName")
    if name not in known:
        raise UserError(
            f"pythonClassName of {where} in {path} must be one of "
            f"{', '.join(sorted(known))}, got {name!r}; {_REMEDY}"
        )


def _kind(feature: Mapping[str, Any]) -> tuple | str:
    """A tensor's (shape, dtype), or "text"; None stands for a dim of any size."""
    if feature["pythonClassName"] == _TEXT:
        return "text"
    tensor = feature["tensor"]
    dims = (int(dim) for dim in tensor["shape"].get("dimensions", ()))
    shape = tuple(None if dim == -1 else dim for dim in dims)
    if tensor["encoding"] != "bytes":
        raise ValueError(f"tensors are encoded as {tensor['encoding']!r}")
    return shape, tensor["dtype"]
