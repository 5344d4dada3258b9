# SPDX-License-Identifier: Apache-2.0
"""One or two emoji on a coloured canvas, with captions that say what is where.

Command:   rfjax encode --config=configs/data/emoji_scenes.py --out=data/emoji_scenes
Hardware:  2 CPU cores
Duration:  1 to 2 minutes
Result:    8,192 training and 512 validation examples, latents [8, 8, 16], 150 MB

"a fox left of a cactus on a blue background". One combination in ten is held out, so
validation asks for arrangements that training never showed. For more data raise
`source.num_train`: `--config.source.num_train=65536`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    return ConfigDict(
        {
            "name": "emoji_scenes",
            "source": {
                "kind": "emoji_scenes",
                "image_size": 32,
                "min_object_size": 13,
                "max_object_size": 15,
                "single_fraction": 0.2,
                "held_out_fraction": 0.1,
                "num_train": 8192,
                "num_validation": 512,
                "seed": 0,
            },
            "codec": {
                "kind": "patch_pca",
                "patch_size": 4,
                "channels": 16,
                "whitening": 0.5,
            },
            "text_encoders": [{"kind": "minilm", "length": 20}],
            "text_layout": "padded",
            "batch_size": 256,
            "records_per_shard": 2048,
        }
    )
