# SPDX-License-Identifier: Apache-2.0
"""160 animals and plants at 32 pixels, each captioned with its name.

Command:   rfjax encode --config=configs/data/emoji.py --out=data/emoji
Hardware:  2 CPU cores
Duration:  15 seconds
Result:    143 training and 17 validation examples, latents [8, 8, 16], 2 MB

One picture for each caption: a model memorises the training pictures, and validation
names show what it does with words it never saw. Add groups for more: "food",
"activities", "travel", "objects", "smileys" (about 1,000 emoji in all).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    return ConfigDict(
        {
            "name": "emoji",
            "source": {
                "kind": "emoji",
                "groups": ("animals",),
                "image_size": 32,
                "background": "white",
                "validation_fraction": 0.1,
            },
            "codec": {
                "kind": "patch_pca",
                "patch_size": 4,
                "channels": 16,
                "whitening": 0.5,
            },
            "text_encoders": [{"kind": "minilm", "length": 12}],
            "text_layout": "padded",
            "batch_size": 64,
            "records_per_shard": 1024,
        }
    )
