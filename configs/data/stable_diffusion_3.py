# SPDX-License-Identifier: Apache-2.0
"""Your own pictures, encoded as for Stable Diffusion 3: 16 channels, three encoders.

Command:   rfjax encode --config=configs/data/stable_diffusion_3.py:PICTURES,MODEL
           --out=data/mine

PICTURES is a folder with the caption of a.jpg in a.txt. MODEL is a folder that
`save_pretrained` wrote, with text_encoder, text_encoder_2, text_encoder_3, their
tokenizers and vae; or the name of one on the Hugging Face hub.
"""

from ml_collections import ConfigDict

MODEL = "stabilityai/stable-diffusion-3-medium-diffusers"


def get_config(folders: str = f"data/pictures,{MODEL}") -> ConfigDict:
    """Returns the config.

    Args:
      folders: "PICTURES,MODEL"; without MODEL it is that of the hub.
    """
    pictures, _, model = folders.partition(",")
    weights = {"path": model or MODEL, "device": "auto", "dtype": "bfloat16"}
    encoder = {**weights, "too_long": "cut"}
    return ConfigDict(
        {
            "name": "pictures",
            "source": {"kind": "image_folder", "path": pictures, "image_size": 256},
            "codec": {"kind": "autoencoder_kl", **weights, "subfolder": "vae"},
            "text_encoders": [
                {
                    **encoder,
                    "kind": "clip",
                    "name": "clip_l",
                    "subfolder": "text_encoder",
                    "tokenizer": "tokenizer",
                },
                {
                    **encoder,
                    "kind": "clip",
                    "name": "clip_g",
                    "subfolder": "text_encoder_2",
                    "tokenizer": "tokenizer_2",
                },
                {
                    **encoder,
                    "kind": "t5",
                    "name": "t5",
                    "subfolder": "text_encoder_3",
                    "tokenizer": "tokenizer_3",
                    "length": 77,
                },
            ],
            "batch_size": 64,
            "records_per_shard": 1024,
        }
    )
