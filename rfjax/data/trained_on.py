# SPDX-License-Identifier: Apache-2.0
"""Where the data of a trained run is now: where it was, moved, or named by the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfjax.checksums import digest
from rfjax.data.base import Dataset
from rfjax.data.manifest import Manifest
from rfjax.errors import MissingFileError, UserError


def find(
    data: Dataset, record: Mapping[str, Any], *, given: str | None = None
) -> tuple[Dataset, Manifest]:
    """The data set that a run was trained on, and its manifest.

    It is where the config says, else where it was in training, and there it must be the
    same data. A folder that is given may hold other data.

    Args:
      data: section of the run's config.
      record: fields of run.json.
      given: folder that the user names; of several data sets, one that holds them all
        by the names of their own folders.

    Raises:
      MissingFileError: it is not there any more.
      UserError: only other data is there, or the run reads no data from disk.
    """
    folders = data.folders()
    if given is not None:
        if not folders:
            raise UserError(
                f"--data must be left out, got {given}: the run was trained on data "
                "that is not read from a folder."
            )
        # Several are in one folder then, under the names that they had.
        inside = [str(Path(given) / Path(folder).name) for folder in folders]
        data = data.moved_to([str(given)] if len(folders) == 1 else inside)
        return data, data.manifest()
    places = [data]
    if record.get("data_path") is not None and folders:
        known = record["data_path"]
        places.append(data.moved_to([known] if isinstance(known, str) else known))
    missing: list[MissingFileError] = []
    others: list[str] = []
    for place in places:
        try:
            manifest = place.manifest()
        except MissingFileError as error:
            missing.append(error)
            continue
        data_hash = digest(manifest.to_json())
        if data_hash == record.get("data_hash", data_hash):
            return place, manifest
        others.append(data_hash)
    if others:
        raise UserError(
            f"the run was trained on data set {record['data_hash']}, and {others[0]} "
            "is now in its place; name the folder to read with --data=DIR."
        )
    raise MissingFileError(f"{missing[0]} If it was moved, name it with --data=DIR.")
