# SPDX-License-Identifier: Apache-2.0
"""Which learning rate is best at which depth, under both parameterisations.

    rfjax sweep --config=configs/sweeps/emoji_rates.py --workdir=runs/rates

Hardware: 1 CPU core. Duration: about 20 minutes; the data is that of emoji_study.py.
Expected: `notebooks/study/rates.csv`, drawn in `notebooks/depth_scaling.ipynb`: the best
rate falls with depth under the standard parameterisation, and stays under muP. At depth
2, the base depth, both are the same run.
"""

from ml_collections import ConfigDict

from configs.sweeps import emoji_study


def get_config(arg: str = "") -> ConfigDict:
    """Returns the sweep; it takes no argument."""
    del arg
    config = emoji_study.get_config("4")
    config.grid = {
        "depths": [1, 2, 4],
        "num_samples": [5120],
        "parameterisations": ["standard", "mup"],
        "learning_rates": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2],
        "reference_depth": 2,
        "learning_rate_exponent": 0.0,
        "cooldown_fraction": 0.25,
    }
    return config
