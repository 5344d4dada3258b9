# SPDX-License-Identifier: Apache-2.0
"""The data set of MLPerf's FLUX.1 benchmark, converted without any encoder.

Command:   rfjax encode --config=configs/data/mlperf_flux.py --out=data/flux
Input:     data/mlperf_flux, as MLCommons' downloader leaves it: cc12m_preprocessed,
           coco_preprocessed and empty_encodings
Result:    latents [32, 32, 16] with log-variance, T5 states [256, 4096], pooled CLIP
           [768]; 2.16 MB an example, 2.5 TB for the whole

Train with `model.context_dim = 4096` and `model.pooled_dim = 768`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    return ConfigDict(
        {
            "name": "flux",
            "source": {"kind": "mlperf_flux", "path": "data/mlperf_flux"},
            "records_per_shard": 512,
        }
    )
