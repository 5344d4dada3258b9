# SPDX-License-Identifier: Apache-2.0
"""What a run folder says about its weights, and the model card made of it.

Nothing that a config or a data set says reaches the card as Markdown, HTML or a link.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from flax import traverse_util

from rfjax import input_paths, run_folder, schema, whole_files
from rfjax.data import DATASETS, Dataset, trained_on
from rfjax.data.manifest import LatentSpec, Manifest
from rfjax.errors import MissingFileError, UserError
from rfjax.export.local_names import without_folders
from rfjax.flow import formulations
from rfjax.flow.path import RECTIFIED_FLOW
from rfjax.models import (
    BACKBONES,
    DEFAULT_KIND,
    BackboneConfig,
    Model,
    make_model,
)

LONGEST_VALUE = 300  # characters of one value in the card
MOST_LICENCES = 20  # of the data that are listed
UNKNOWN_LICENCE = "other"  # as the Hugging Face Hub calls one that is not in its list
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")  # [owner/]name

# What Markdown, HTML, tables, formulas or automatic links are made of; underscores
# inside words are not.
ACTIVE = re.compile(
    r"[\\`*{}\[\]#!|<>&~:@$^]|(?<=www)\.|(?<![a-z0-9])_|_(?![a-z0-9])", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder as export sees it.

    Attributes:
      name: name of the folder.
      config: content of config.json.
      record: content of run.json, {} if there is none.
      metrics: the lines of metrics.jsonl.
      model: the model of its model section.
      data: the data set of its data section.
      manifest: what that data set is; None if it is not there.
    """

    name: str
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    model: Model
    data: Dataset
    manifest: Manifest | None

    @property
    def shift(self) -> float:
        """Resolution shift of the sampler of the run."""
        return self.config["sample"]["shift"]

    @property
    def dynamic_shift(self) -> Mapping[str, Any] | None:
        """Fields of the `DynamicShift` that takes the place of `shift`, if one does."""
        return self.config["sample"].get("dynamic_shift")

    @property
    def scheduler(self) -> str:
        """The scheduler of diffusers that solves as the run does, else by Euler.

        diffusers has no Adams-Bashforth of flows, and no Heun with a dynamic shift.
        """
        is_heun = self.config["sample"]["solver"] == "heun"
        kind = "Heun" if is_heun and self.dynamic_shift is None else "Euler"
        return f"FlowMatch{kind}DiscreteScheduler"

    @property
    def imported_configs(self) -> Mapping[str, Mapping[str, Any]]:
        """The config files beside the weights that it was imported from, by folder."""
        return self.record.get("imported_configs", {})

    @property
    def base_model(self) -> str | None:
        """What the run was imported from: a name on the Hub, or of a folder or file."""
        source = self.record.get("imported_from")
        if not isinstance(source, str):
            return None
        path = PurePath(source)
        for part in path.parts:
            if cached := re.fullmatch(r"models--(.+?)--(.+)", part):  # of the Hub
                return f"{cached[1]}/{cached[2]}"
        is_part = path.name == "transformer" and path.parent.name
        return path.parent.name if is_part else path.name

    @property
    def predicts_velocity(self) -> bool:
        """Whether the network predicts what flow-matching schedulers integrate."""
        formulation = formulations.parse(self.config["objective"])
        return (
            formulation.path == RECTIFIED_FLOW and formulation.prediction == "velocity"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user of the weights in PyTorch must know."""
        warnings = []
        if self.config["data"]["context_mask"]:
            warnings.append(
                "The model was trained with a mask over padded text tokens, and "
                "SD3Transformer2DModel has none: give it contexts without pads."
            )
        if not self.predicts_velocity:
            warnings.append(
                "The network does not predict the velocity of the rectified flow, so "
                "no flow-matching scheduler can sample with it; none is written."
            )
        return tuple(warnings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inputs:
    """The sections of a run's config that name files which are read again."""

    model: BackboneConfig = schema.one_of(BACKBONES, default=DEFAULT_KIND)
    data: Dataset = schema.one_of(DATASETS)


def read_run(workdir: Path, *, data: str | None = None) -> Run:
    """Reads a run folder.

    Args:
      workdir: run folder.
      data: folder of its data set, if it was moved.

    Raises:
      MissingFileError: if it holds no config.json.
      UserError: if config.json, run.json or metrics.jsonl is not that of a run.
    """
    path = workdir / run_folder.CONFIG_FILE
    if not path.is_file():
        raise MissingFileError(
            f"workdir {workdir} holds no config.json, so it is not a run folder; give "
            "the --workdir that was trained in."
        )
    config = input_paths.from_folder(_Inputs, whole_files.read_json(path), workdir)
    record = run_folder.read_run(workdir)
    metrics = tuple(run_folder.read_metrics(workdir))
    try:
        model = make_model(
            schema.build_kind(
                BACKBONES, config["model"], name="model", default=DEFAULT_KIND
            )
        )
        section = schema.build_kind(DATASETS, config["data"], name="data")
        found, manifest = _find_data(section, record, given=data)
        run = Run(
            name=workdir.resolve().name,
            config=config,
            record=record,
            metrics=metrics,
            model=model,
            data=found,
            manifest=manifest,
        )
        _ = run.shift, run.scheduler, run.warnings  # checks fields that are used later
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} must be the config of a run of this version: {error!r}; restore "
            "it from a copy, or export with the version of rfjax that wrote it."
        ) from error
    return run


def _find_data(
    data: Dataset, record: Mapping[str, Any], *, given: str | None
) -> tuple[Dataset, Manifest | None]:
    """The data set that a run was trained on, and its manifest if it is still there."""
    try:
        return trained_on.find(data, record, given=given)
    except UserError:  # weights leave without it as well
        if given is not None:
            raise
        return data, None


def model_card(
    run: Run,
    *,
    layout: str,
    weights: str,
    dtype: str,
    step: int,
    code: str | None = None,
    licence: str = UNKNOWN_LICENCE,
) -> str:
    """README.md for exported weights.

    Args:
      run: where the weights come from.
      layout: "diffusers" or "sd3".
      weights: "ema" or "raw".
      dtype: of the exported weights.
      step: of the exported checkpoint.
      code: Python code that loads the export, by default that of the layout.
      licence: of the weights, an identifier of the Hugging Face Hub.
    """
    rows = _facts(
        run, weights=weights, stored_as=f"{dtype}, {layout} layout", step=step
    )
    torch = run.model.torch
    flat = traverse_util.flatten_dict(run.config, sep=".")
    warnings = [f"> **Warning:** {warning}\n" for warning in run.warnings]
    return "\n".join(
        [
            *_front_matter(run, layout=layout, licence=licence),
            "",
            f"# {escape(run.name)}: {torch.title} of depth {run.model.config.depth}",
            "",
            torch.architecture,
            "",
            *warnings,
            *_table("", rows),
            "",
            "## Use",
            "",
            "```python",
            code or torch.loading[layout],
            "```",
            "",
            "The network takes normalised latents [B, C, H, W], timesteps 1000 t in "
            "[0, 1000] with t = 1 for noise, text states and a pooled text vector as "
            "the data set stores them, and returns noise - latents for a run of the "
            "rectified flow.",
            "",
            "## Licence of the data",
            "",
            _licence_of_data(run),
            "",
            "## Configuration",
            "",
            *_table("field", flat),
            "",
        ]
    )


def _front_matter(run: Run, *, layout: str, licence: str) -> list[str]:
    """The lines that the Hugging Face Hub reads: YAML between two rules.

    Source: https://huggingface.co/docs/hub/model-cards, whose names these are.
    """
    lines = ["---", f"license: {licence}"]
    if licence == UNKNOWN_LICENCE:
        lines.append("license_name: not-chosen")
    library = "diffusers" if layout == "diffusers" else "safetensors"
    lines += [f"library_name: {library}", "pipeline_tag: text-to-image", "tags:"]
    lines += [f"- {tag}" for tag in ("rfjax", "rectified-flow", run.model.torch.tag)]
    if run.base_model is not None and HUB_NAME.fullmatch(run.base_model):
        lines.append(f"base_model: {run.base_model}")
    if run.manifest is not None:
        lines += ["datasets:", f"- {run.manifest.name}"]
    return [*lines, "---"]


def _data_facts(run: Run) -> dict[str, Any]:
    """What latents and text states the network takes, as the data set has them."""
    if run.manifest is None:
        return {"latents and text": "not recorded: the data set was not there"}
    manifest = run.manifest
    latent, scale, shift = manifest.latent, 1, 0
    if latent.codec_scale is not None:
        scale, shift = latent.codec_scale, latent.codec_shift or 0
    facts = {
        "codec": latent.codec,
        "latent shape": "height {}, width {}, {} channels".format(*latent.shape),
        **_bucket_facts(latent),
        "latent scale": f"{scale:g}, already applied: latents have variance 1",
        "latent shift": f"{shift:g}, already applied: latents have mean 0",
    }
    for encoder in manifest.text.encoders:
        facts[f"text encoder {encoder.name}"] = (
            f"{encoder.kind}, {encoder.length} tokens, context {encoder.context_dim}, "
            f"pooled {encoder.pooled_dim}, {manifest.text.layout}"
        )
    return facts


def _bucket_facts(latent: LatentSpec) -> dict[str, str]:
    """The sizes to draw, if there is more than one."""
    if not latent.buckets:
        return {}
    sizes = ", ".join(f"{height} x {width}" for height, width in latent.buckets)
    return {"latent sizes to draw": f"{sizes} (height x width), the aspect buckets"}


def _licence_of_data(run: Run) -> str:
    """The whole notice, which goes wherever the data goes, and who else is named."""
    manifest = run.manifest
    if manifest is None or not (manifest.licence or manifest.licences):
        return "Not recorded."
    paragraphs = [escape(manifest.licence, longest=None)] if manifest.licence else []
    if manifest.licences:
        common = sorted(manifest.licences.items(), key=lambda row: (-row[1], row[0]))
        counts = [f"{count:,} {escape(name)}" for name, count in common[:MOST_LICENCES]]
        if others := len(common) - len(counts):
            counts.append(f"{others:,} other licences")
        paragraphs.append(
            f"Examples by licence: {', '.join(counts)}. The file credits.csv of data "
            f"set {escape(manifest.name)} says whom to name for each of them."
        )
    return "\n\n".join(paragraphs)


def _facts(run: Run, *, weights: str, stored_as: str, step: int) -> dict[str, Any]:
    """The main facts about the weights: name -> value."""
    loss = "val_ema/loss" if weights == "ema" else "val/loss"
    validation = _newest(run.metrics, loss, step=step)
    samples = _newest(run.metrics, "samples", step=step)
    return {
        "depth": run.model.config.depth,
        "parameters": f"{run.model.num_params:,}",
        "weights": f"{weights}, {stored_as}",
        "step": step,
        "samples seen": samples["samples"] if samples else "not recorded",
        "data set": run.record.get("data", "not recorded"),
        **_data_facts(run),
        "validation loss": _validation_text(run, validation, loss),
        "objective": run.config["objective"],
        "shift in training": run.config["shift"],
        "solver in sampling": run.config["sample"]["solver"],
        "grid in sampling": run.config["sample"].get("grid") or "by the objective",
        "shift in sampling": run.dynamic_shift or run.shift,
        "guidance scale in sampling": run.config["sample"]["guidance_scale"],
        "base model": run.base_model or "none",
        "written by": f"rfjax {run.record.get('code_version', '')}",
    }


def _newest(
    metrics: Sequence[Mapping[str, Any]], name: str, *, step: int
) -> Mapping[str, Any] | None:
    """The last line at or before a step that has a metric."""
    lines = [line for line in metrics if name in line and line["step"] <= step]
    return lines[-1] if lines else None


def _validation_text(run: Run, line: Mapping[str, Any] | None, name: str) -> str:
    """The validation loss with its step, protocol and number of examples."""
    if line is None:
        return "not measured"
    protocol = run.record.get("validation_protocol", "unknown")
    count = line.get(f"{name.rpartition('/')[0]}/num_samples")
    examples = "" if count is None else f", {count:,} examples"
    return f"{line[name]:.4f} at step {line['step']} (protocol {protocol}{examples})"


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    """The lines of a Markdown table of names and values."""
    body = [f"| {escape(name)} | {escape(value)} |" for name, value in rows.items()]
    return [f"| {title} | |", "|---|---|", *body]


def escape(value: Any, *, longest: int | None = LONGEST_VALUE) -> str:
    """One line of text that Markdown shows literally: no markup, HTML, cell or link.

    Args:
      value: text, or what is written as JSON; says nothing of where files lie.
      longest: characters after which it is cut; None: never.
    """
    value = without_folders(value)
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if longest is not None and len(text) > longest:
        text = text[: longest - 3] + "..."
    return ACTIVE.sub(lambda match: f"&#{ord(match[0])};", text)
