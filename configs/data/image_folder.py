# SPDX-License-Identifier: Apache-2.0
"""Your own pictures: a folder of them, with captions in files beside them.

Command:   rfjax encode --config=configs/data/image_folder.py:FOLDER --out=data/mine

FOLDER/a.jpg has its caption in FOLDER/a.txt. The other layouts are `source.kind` table
(JSON lines, CSV, parquet), webdataset (tars), saved_dataset (Hugging Face) and
tfds_images; docs/guides/encode.md shows each.
"""

from ml_collections import ConfigDict


def get_config(folder: str = "data/pictures") -> ConfigDict:
    """Returns the config.

    Args:
      folder: holds the pictures.
    """
    return ConfigDict(
        {
            "name": "pictures",
            "source": {
                "kind": "image_folder",
                "path": folder,
                "image_size": 64,
                "background": (255, 255, 255),
            },
            "codec": {
                "kind": "patch_pca",
                "patch_size": 4,
                "channels": 16,
                "whitening": 0.5,
            },
            "text_encoders": [{"kind": "minilm", "length": 32}],
            "text_layout": "padded",
            "validation_fraction": 0.02,
            "max_broken": 0.01,
            "batch_size": 64,
            "records_per_shard": 1024,
        }
    )
