# SPDX-License-Identifier: Apache-2.0
"""The variational autoencoders of diffusers: pictures to a posterior, latents back.

An `AutoencoderKL` gives each latent a normal distribution. Stable Diffusion 3 has 16
channels and takes (z - 0.0609) * 1.5305 of them, earlier models 4 channels and a scale
of 0.18215 or 0.13025 without a shift. Both numbers are those of its config.json:

    mean         = (mean of z - shift_factor) * scaling_factor
    log_variance = ln(variance of z) + 2 ln(scaling_factor)

as diffusers' training scripts compute them; ln(variance of z) is clamped to [-30, 20]
there and here. PyTorch and diffusers are imported when the codec is made, never before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from rfjax import whole_files
from rfjax.encoders import torch_network, torch_weights
from rfjax.encoders.images import pixels
from rfjax.encoders.torch_network import Network
from rfjax.encoders.torch_weights import TorchWeights
from rfjax.errors import UserError
from rfjax.value_types import (
    NaturalInt,
    OneOf,
    PositiveInt,
    Seed,
    check_fields,
)

POSTERIORS = ("variance", "sample", "mean")

_WHAT, _PREVIEW = "codec autoencoder_kl", "codec.preview"  # for errors
_SCALING_FACTOR = 0.18215  # where a config.json has none


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(TorchWeights):
    """Fields of an image codec of kind `autoencoder_kl`.

    Attributes:
      path: folder of the autoencoder or of a pipeline, or name of a model on the hub.
      subfolder: of that, "vae" in a pipeline; empty: the folder itself.
      device: see `TorchWeights`.
      dtype: see `TorchWeights`.
      posterior: "variance" keeps mean and log variance, so that training draws new
        latents at each step; "sample" stores one draw; "mean" stores the mean.
      seed: of that one draw, which depends on the seed and the picture alone.
      batch_size: pictures that go through the network at a time.
      tile_size: side in pixels of the tiles that larger pictures are cut into, which
        bounds the memory; 0: pictures stay whole. Tiles overlap and are blended, so
        latents differ a little from those of the whole picture.
      preview: folder of an `AutoencoderTiny`, or its name on the hub, that decodes
        contact sheets at a fraction of the cost; empty: the autoencoder does.
    """

    posterior: Annotated[str, OneOf(POSTERIORS)] = "variance"
    seed: Seed = 0
    batch_size: PositiveInt = 8
    tile_size: NaturalInt = 0
    preview: str = ""

    def __post_init__(self):
        check_fields(self, section="codec")

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The (h, w, C) of the latents of pictures of that many pixels.

        Raises:
          MissingFileError: the autoencoder is not there.
          UserError: it cannot encode pictures of that size, or is of another kind.
        """
        network = _read_config(_find(self))
        factor = _factor(network)
        _check_tiles(self, factor)
        if height % factor or width % factor:
            raise UserError(
                f"height and width of pictures must be divisible by {factor} for the "
                f"autoencoder of {self.path}, got {height} x {width}; choose for "
                f"example {-(-height // factor) * factor} x "
                f"{-(-width // factor) * factor}."
            )
        return height // factor, width // factor, network["latent_channels"]

    def make(self, training_images: Sequence[np.ndarray] = ()) -> AutoencoderKL:
        """Loads the weights; `training_images` are not needed.

        Raises:
          MissingFileError: the autoencoder is not there.
          MissingPackageError: PyTorch or diffusers is not installed.
          UserError: it is of another kind, or weights are missing or damaged.
        """
        return AutoencoderKL(self)

    @staticmethod
    def load(path: str | os.PathLike, folders: Sequence[str] = ()) -> AutoencoderKL:
        """Reads what `AutoencoderKL.save` wrote, and loads the weights that it names.

        Args:
          path: of the file.
          folders: see `rfjax.encoders.images.base.ImageCodecConfig`.

        Raises:
          FileNotFoundError: no such file, or the autoencoder is not where it was.
          MissingPackageError: PyTorch or diffusers is not installed.
          UserError: not such a file, or the autoencoder has other weights.
        """
        try:
            with Path(path).open("rb") as file, np.load(file) as arrays:
                values = {name: arrays[name].item() for name in arrays}
            fields = json.loads(values["fields"])
            config, weights = AutoencoderKLConfig(**fields), values["weights"]
        except (
            KeyError,
            TypeError,
            ValueError,
            EOFError,
            zipfile.BadZipFile,
        ) as error:
            raise UserError(
                f"{path} does not name an autoencoder ({error}); make the data set "
                "again with `rfjax encode`."
            ) from error
        here = torch_weights.device_elsewhere(config.device)
        return torch_weights.make_with(
            weights,
            lambda path: dataclasses.replace(config, path=path, device=here).make(),
            (*folders, config.path),
            what=_WHAT,
        )


DECODING = """\
import torch
from diffusers import AutoencoderKL
codec = np.load("FOLDER/codec.npz")
# A name on the hub; or that of a folder, which is then to be written here in full.
path, subfolder = str(codec["path"]), str(codec["subfolder"])
vae = AutoencoderKL.from_pretrained(path, subfolder=subfolder)
z = latents / codec["scaling_factor"] + codec["shift_factor"]
with torch.no_grad():
    pixels = vae.decode(torch.tensor(z, dtype=torch.float32).permute(0, 3, 1, 2)).sample
pixels = pixels.permute(0, 2, 3, 1).numpy()
images = np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)"""


class AutoencoderKL:
    """The codec with its weights, in PyTorch.

    Attributes:
      decoding: see `ImageCodec`.
      has_variance: whether `encode_posterior` is what a data set keeps.
      scaling_factor: what shifted latents of the network are multiplied with.
      shift_factor: what is taken off them before.
      weights: digest of the network.
    """

    decoding = DECODING

    def __init__(self, config: AutoencoderKLConfig):
        self._config = config
        folder = _find(config)
        fields = _read_config(folder)
        self._channels, self._factor = fields["latent_channels"], _factor(fields)
        _check_tiles(config, self._factor)
        self.has_variance = config.posterior == "variance"
        self.scaling_factor = float(fields["scaling_factor"])
        self.shift_factor = float(fields["shift_factor"])
        diffusers = torch_weights.import_library("diffusers", needed_by=_WHAT)
        network = torch_weights.load_model(
            diffusers.AutoencoderKL, folder, weights=config, what=_WHAT
        )
        if config.tile_size:
            network.enable_tiling()
            network.tile_sample_min_size = config.tile_size
            network.tile_latent_min_size = config.tile_size // self._factor
        self.weights = torch_weights.digest(
            network, {"scale": self.scaling_factor, "shift": self.shift_factor}
        )
        self._moments = self._function(network, _moments)
        self._decode = self._function(network, _decode)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Latents: the mean of the posterior, or one draw if `posterior` says so.

        Args:
          images: [B, H, W, 3] uint8, or float in [-1, 1].

        Returns:
          [B, H / factor, W / factor, C] float32.

        Raises:
          UserError: not pictures of that kind, or not enough memory.
        """
        mean, log_variance = self.encode_posterior(images)
        if self._config.posterior != "sample":
            return mean
        noise = np.stack([self._noise(image, mean.shape[1:]) for image in images])
        return mean + np.exp(0.5 * log_variance) * noise

    def encode_posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log variance of the latents.

        Args:
          images: as `encode` takes them.

        Returns:
          Two arrays [B, H / factor, W / factor, C] float32.

        Raises:
          UserError: as `encode`.
        """
        values = pixels.from_bytes(images)
        if any(side % self._factor for side in values.shape[1:3]):
            raise UserError(
                f"height and width of images must be divisible by {self._factor} for "
                f"this autoencoder, got {values.shape[1]} x {values.shape[2]}; choose "
                "another size."
            )
        with _memory(values.shape):
            mean, log_variance = self._moments(values)
        mean = (mean - self.shift_factor) * self.scaling_factor
        return mean, log_variance + 2.0 * math.log(self.scaling_factor)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decodes [B, h, w, C] latents to [B, h * factor, w * factor, 3] uint8.

        Raises:
          UserError: not latents of this codec, or not enough memory.
        """
        z = self._check(latents) / self.scaling_factor + self.shift_factor
        return self._pictures(self._decode, z)

    def decode_preview(self, latents: np.ndarray) -> np.ndarray:
        """As `decode`, but by the tiny decoder where there is one.

        Raises:
          MissingFileError: the tiny decoder is not there.
          UserError: as `decode`, or the tiny decoder is for other latents.
        """
        if not self._config.preview:
            return self.decode(latents)
        decode, scale, shift = self._tiny
        return self._pictures(decode, self._check(latents) / scale + shift)

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz file that names the weights, and holds none."""
        save_reference(
            path,
            self._config,
            scaling_factor=self.scaling_factor,
            shift_factor=self.shift_factor,
            weights=self.weights,
        )

    @functools.cached_property
    def _tiny(self) -> tuple[Network, float, float]:
        """The tiny decoder, and its own scale and shift: mostly 1 and 0."""
        diffusers = torch_weights.import_library("diffusers", needed_by=_PREVIEW)
        weights = dataclasses.replace(self._config, path=self._config.preview)
        folder = torch_weights.find_folder(weights, parts=[""], what=_PREVIEW)
        fields = torch_weights.read_config(
            folder, field="_class_name", allowed=["AutoencoderTiny"], what=_PREVIEW
        )
        if (channels := fields.get("latent_channels", 4)) != self._channels:
            raise UserError(
                f"{_PREVIEW} must decode latents of {self._channels} channels, got "
                f"{self._config.preview} with {channels}; choose the tiny decoder of "
                "this autoencoder."
            )
        network = torch_weights.load_model(
            diffusers.AutoencoderTiny, folder, weights=weights, what=_PREVIEW
        )
        scale, shift = fields.get("scaling_factor", 1.0), fields.get("shift_factor")
        return self._function(network, _decode), scale, shift or 0.0

    def _function(self, network: Any, compute: Callable[..., Any]) -> Network:
        """What `compute` does with a network, as a function of [B, H, W, C]."""
        return torch_network.as_function(
            _channels_last(network, compute),
            device=self._config.device,
            what=_WHAT,
            batch_size=self._config.batch_size,
        )

    def _check(self, latents: np.ndarray) -> np.ndarray:
        latents = np.asarray(latents, np.float32)
        if latents.ndim != 4 or latents.shape[-1] != self._channels:
            raise UserError(
                f"latents must be [B, h, w, {self._channels}] for this codec, got "
                f"{latents.shape}; use the codec of the data set they belong to."
            )
        return latents

    def _pictures(self, decode: Network, z: np.ndarray) -> np.ndarray:
        with _memory(z.shape):
            (values,) = decode(z)
        return pixels.to_bytes(values)

    def _noise(self, image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal noise that belongs to a picture, in whatever batch it is."""
        key = hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
        rng = np.random.default_rng([self._config.seed, *key])
        return rng.standard_normal(shape, np.float32)


def save_reference(
    path: str | os.PathLike,
    config: AutoencoderKLConfig,
    *,
    scaling_factor: float,
    shift_factor: float,
    weights: str = "",
) -> None:
    """Writes the codec.npz of an autoencoder, which need not be there.

    Args:
      path: of the file; an existing one is replaced in one step.
      config: says where the autoencoder is.
      scaling_factor: of the autoencoder, for users of exports.
      shift_factor: likewise.
      weights: their digest; empty: not known, so that any are accepted.
    """
    with whole_files.replacing(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            fields=json.dumps(dataclasses.asdict(config)),
            path=config.path,
            subfolder=config.subfolder,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            weights=weights,
        )


def _find(config: AutoencoderKLConfig) -> Path:
    """The folder of the autoencoder itself."""
    parts = [config.subfolder]
    return torch_weights.find_folder(config, parts=parts, what=_WHAT) / parts[0]


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json of an autoencoder, its scale and shift filled in."""
    network = torch_weights.read_config(
        folder, field="_class_name", allowed=["AutoencoderKL"], what=_WHAT
    )
    for name, only in (("in_channels", 3), ("latents_mean", None)):
        if network.get(name, only) != only:
            raise UserError(
                f"{name} of {folder / 'config.json'} must be {only}, got "
                f"{network[name]!r}; choose an autoencoder of RGB pictures with one "
                "scale and shift."
            )
    defaults = {
        "latent_channels": 4,
        "block_out_channels": [64],
        "scaling_factor": _SCALING_FACTOR,
        "shift_factor": 0.0,
    }
    given = {name: value for name, value in network.items() if value is not None}
    return defaults | given


def _factor(network: Mapping[str, Any]) -> int:
    """Pixels of a side of one latent: every level but the last halves the picture."""
    return 2 ** (len(network["block_out_channels"]) - 1)


def _check_tiles(config: AutoencoderKLConfig, factor: int) -> None:
    """Raises UserError unless tiles, which overlap by a quarter, are whole latents."""
    if config.tile_size % (4 * factor):
        raise UserError(
            f"codec.tile_size must be divisible by {4 * factor} for this autoencoder, "
            f"got {config.tile_size}; choose for example {64 * factor}."
        )


def _moments(network: Any, images: Any) -> tuple[Any, Any]:
    """Mean and log variance of the posterior, as the network has them."""
    posterior = network.encode(images).latent_dist
    return posterior.mean, posterior.logvar


def _decode(network: Any, z: Any) -> tuple[Any]:
    """Pixels in [-1, 1], roughly."""
    return (network.decode(z).sample,)


def _channels_last(network: Any, compute: Callable[..., tuple[Any, ...]]) -> Any:
    """A module of float32 [B, H, W, C]; `compute` is given the network and NCHW."""
    import torch

    class ChannelsLast(torch.nn.Module):
        """Calls the network."""

        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, values: Any) -> tuple[Any, ...]:
            """[B, H, W, C] to tensors of that layout."""
            values = values.permute(0, 3, 1, 2).to(self.network.dtype)
            outputs = compute(self.network, values)
            return tuple(output.permute(0, 2, 3, 1) for output in outputs)

    return ChannelsLast()


@contextlib.contextmanager
def _memory(shape: tuple[int, ...]) -> Iterator[None]:
    """Within the block, too little memory of a GPU is a `UserError`."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"codec.batch_size must fit into the memory of the GPU, and a batch of "
            f"{list(shape)} does not; choose a smaller one, or set codec.tile_size."
        ) from error
