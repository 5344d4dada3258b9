# SPDX-License-Identifier: Apache-2.0
"""The console script `rfjax`: flags in, one function of `rfjax.commands` called.

`rfjax COMMAND --help` lists a command's flags. Fields of a config file are set with
`--config.SECTION.FIELD=VALUE`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags, logging

from rfjax import __version__, stopping, whole_files
from rfjax.errors import MissingFileError, UserError
from rfjax.huge_pages import restart_with_huge_pages

_REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Flag:
    """One command-line flag.

    Attributes:
      help: what it sets, with the unit or the choices.
      type: str, int, float, bool or list (given as often as wanted).
      default: value when absent; `_REQUIRED` if it must be given.
    """

    help: str
    type: type = str
    default: Any = None


@dataclasses.dataclass(frozen=True)
class Command:
    """One word after `rfjax`.

    Attributes:
      run: called with a dict of flag values; returns the exit status.
      help: one line.
      flags: by name.
      config: whether it takes `--config=FILE[:ARG]` and `--config.FIELD=VALUE`.
      computes: whether most of its time goes into the model, which large memory pages
        make faster on a CPU.
    """

    run: Callable[[dict[str, Any]], int]
    help: str
    flags: dict[str, Flag]
    config: bool = False
    computes: bool = False


CONFIG = Flag(
    "config file, as configs/NAME.py or configs/NAME.py:ARG, or a run's config.json",
    default=_REQUIRED,
)
WORKDIR = Flag("run folder", default=_REQUIRED)
STEP = Flag("checkpoint to read; the newest if absent", int)
WEIGHTS = Flag("'ema' or 'raw' weights", default="ema")
ROUNDS = Flag("how often everything is timed, in turns", int, 5)
JSON = Flag("file to write the result to as JSON")


# -- Commands ----------------------------------------------------------------------


def encode(values: dict[str, Any]) -> int:
    """Writes a data set from a source of pictures and captions."""
    from rfjax import commands

    manifest = commands.encode(values["config"], out=values["out"])
    counts = ", ".join(f"{n:,} {split}" for split, n in manifest.splits.items())
    print(f"encoded {manifest.name}: {counts} examples in {values['out']}")
    return 0


def verify(values: dict[str, Any]) -> int:
    """Checks a data set and draws a contact sheet of it, or checks a run."""
    if (values["data"] is None) == (values["workdir"] is None):
        raise UserError("give either --data=DIR or --workdir=DIR.")
    for flag, owner in (("picture", "data"), ("step", "workdir")):
        if values[flag] is not None and values[owner] is None:
            raise UserError(f"--{flag} goes with --{owner}=DIR; leave it out.")
    if values["workdir"] is not None:
        from rfjax import commands

        damage = commands.verify_run(
            values["workdir"], step=values["step"], report=print
        )
        return 1 if any(damage.values()) else 0
    from rfjax.data.verify import verify as verify_data

    picture = values["picture"] or Path(values["data"]) / "contact_sheet.png"
    report = verify_data(values["data"], picture=picture)
    print(report)
    print(f"contact sheet: {picture}")
    return 0 if report.ok else 1


def train(values: dict[str, Any]) -> int:
    """Trains a run folder, or resumes it."""
    from rfjax import commands, config
    from rfjax.parallel import processes

    processes.start()
    commands.train(
        config.from_config_dict(values["config"]),
        workdir=values["workdir"],
        report=print if processes.is_first() else lambda line: None,
    )
    return 0


def evaluate(values: dict[str, Any]) -> int:
    """Prints the validation loss of a checkpoint."""
    from rfjax import commands
    from rfjax.parallel import processes

    processes.start()
    metrics = commands.evaluate(
        values["workdir"], step=values["step"], num_samples=values["num_samples"]
    )
    if not processes.is_first():
        return 0
    print(f"{metrics['protocol']}, step {metrics['step']}")
    print(f"{'t':>5}  {'raw':>8}  {'ema':>8}")
    for level in range(8):
        raw, ema = (metrics[f"{v}/loss_t{level}"] for v in ("val", "val_ema"))
        print(f"{level / 8:5.3f}  {raw:8.4f}  {ema:8.4f}")
    raw, ema = metrics["val/loss"], metrics["val_ema/loss"]
    print(f" mean  {raw:8.4f}  {ema:8.4f}   (t = 1/8 .. 7/8)")
    print(f"curves: {commands.draw_run(values['workdir'], metrics)}")
    if values["json"] is not None:
        whole_files.write_json(values["json"], metrics)
    return 0


def sample(values: dict[str, Any]) -> int:
    """Draws prompts, or a sheet of seen and held-out captions."""
    from rfjax import commands
    from rfjax.data import sheet

    settings = {
        name: values[name]
        for name in ("step", "weights", "seed", "num_steps", "solver", "guidance_scale")
    }
    if values["sheet"] == bool(values["prompt"]):
        raise UserError("give either --sheet or at least one --prompt=TEXT.")
    if values["sheet"]:
        out = commands.sample_sheet(values["workdir"], out=values["out"], **settings)
    else:
        prompts = values["prompt"]
        images = commands.sample(values["workdir"], prompts, **settings)
        out = values["out"] or whole_files.unused("sample.png")
        picture = sheet.draw_sheet(
            [sheet.Section("", images, prompts)],
            title=Path(values["workdir"]).name,
            columns=min(len(prompts), 8),
        )
        sheet.save_picture(picture, out)
    print(f"wrote {out}")
    return 0


def sweep(values: dict[str, Any]) -> int:
    """Trains the cells of a depth study."""
    from rfjax import commands

    failed = commands.sweep(
        values["config"],
        workdir=values["workdir"],
        dry_run=values["dry_run"],
        report=print,
    )
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def layout(values: dict[str, Any]) -> int:
    """Prints where each parameter goes on a mesh, and why."""
    # Only sizes are needed; no accelerator of this machine is to be claimed for them.
    if values["devices"] is not None or values["topology"] is not None:
        os.environ["JAX_PLATFORMS"] = "cpu"
    from rfjax import commands, config

    described = commands.layout(
        config.from_config_dict(values["config"]),
        num_devices=values["devices"],
        topology=values["topology"],
        json=values["json"],
        picture=values["picture"],
    )
    print(described)
    if values["picture"]:
        print(f"picture: {values['picture']}")
    return 0


def plan(values: dict[str, Any]) -> int:
    """Compiles a config for TPUs that are not there, and says what to expect."""
    # Nothing runs: neither a TPU nor a GPU of this machine is to be claimed, and a
    # program for absent devices cannot be read back from JAX's cache.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    from rfjax import commands, config

    if values["search"]:
        from rfjax.plan import search

        outcomes = commands.search_plans(
            config.from_config_dict(values["config"]),
            topology=values["topology"],
            limit=values["limit"],
            json=values["json"],
            report=functools.partial(print, flush=True),
        )
        print(search.describe(outcomes))
        return 0
    planned = commands.plan(
        config.from_config_dict(values["config"]),
        topology=values["topology"],
        num_images=values["num_images"],
        json=values["json"],
        summary=values["summary"],
        picture=values["picture"],
    )
    print(planned)
    if values["picture"]:
        print(f"picture: {values['picture']}")
    return 0


def bench_step(values: dict[str, Any]) -> int:
    """Times the train step of a config on this machine."""
    from rfjax import commands, config

    measured = commands.bench_step(
        config.from_config_dict(values["config"]),
        rounds=values["rounds"],
        peer=values["peer"],
        json=values["json"],
        report=print,
    )
    print(measured)
    return 0


def bench_checkpoint(values: dict[str, Any]) -> int:
    """Times the saves of a config's train state on this machine."""
    from rfjax import commands, config

    measured = commands.bench_checkpoint(
        config.from_config_dict(values["config"]),
        folder=values["folder"],
        rounds=values["rounds"],
        json=values["json"],
        report=print,
    )
    print(measured)
    return 0


def bench_data(values: dict[str, Any]) -> int:
    """Times reading a data set."""
    from rfjax import commands

    print(
        commands.bench_data(
            values["data"], rounds=values["rounds"], json=values["json"]
        )
    )
    return 0


def coordinates(values: dict[str, Any]) -> int:
    """Checks whether one learning rate moves models of every depth alike."""
    from rfjax import commands, config

    if not re.fullmatch(r"\d+(,\d+)*", values["depths"]):
        raise UserError(
            f"--depths must be numbers as in 1,2,4, got {values['depths']!r}."
        )
    slopes = commands.coordinates(
        config.from_config_dict(values["config"]),
        depths=[int(depth) for depth in values["depths"].split(",")],
        num_steps=values["steps"],
        parameterisation=values["parameterisation"],
        out=values["out"],
    )
    print(f"{'slope over width':<18}" + "".join(f"{name:>10}" for name in slopes))
    for activation in next(iter(slopes.values())):
        row = (f"{by_name[activation]:>10.2f}" for by_name in slopes.values())
        print(f"{activation:<18}" + "".join(row))
    print(f"figure: {Path(values['out']) / 'coordinates.png'}")
    return 0


def fit(values: dict[str, Any]) -> int:
    """Fits power laws to a sweep, or to a table of somebody else's runs."""
    from rfjax.scaling.laws import CannotFit
    from rfjax.scaling.report import folder as report

    columns = dict(
        pair.split("=", 1) for pair in (values["columns"] or "").split(",") if pair
    )
    try:
        fitted = report.run_fit(
            runs=values["runs"],
            table=values["table"],
            columns=columns or None,
            out=values["out"],
            law=values["law"],
            size_measure=values["size"],
            loss=values["loss"],
            num_bootstraps=values["bootstraps"],
            holdout_largest=values["holdout"],
            mid_run=values["mid_run"],
            where=values["where"],
            budgets=[_number(text, flag="budget") for text in values["budget"] or ()],
            forecasts=[_model(text) for text in values["forecast"] or ()],
            json_file=values["json"],
        )
    except CannotFit as error:
        raise UserError(str(error)) from error
    print(fitted.summary())
    print(f"report: {fitted.out / 'index.html'}")
    return 0


def _number(text: str, *, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"--{flag} must be a number such as 1e20, got {text!r}."
        ) from None


def _model(text: str) -> dict[str, float]:
    """A model to forecast, from depth=12,samples=1e6."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    known = ("depth", "size", "samples", "flops")
    if not all(name in known and equals for name, equals, _ in pairs):
        raise UserError(
            f"--forecast must name a model by {', '.join(known)}, as in "
            f"depth=12,samples=1e6, got {text!r}."
        )
    return {name: _number(value, flag="forecast") for name, _, value in pairs}


def export(values: dict[str, Any]) -> int:
    """Writes a checkpoint as PyTorch weights."""
    from rfjax.export.save import export_run

    report = export_run(
        values["workdir"],
        out=values["out"],
        format=values["format"],
        weights=values["weights"],
        dtype=values["dtype"],
        step=values["step"],
        pipeline=values["pipeline"],
    )
    print(
        f"wrote step {report.step}, {report.num_params:,} parameters, "
        f"{report.num_bytes / 1e6:,.1f} MB in {report.out}"
    )
    for warning in report.warnings:
        print(f"warning: {warning}")
    return 0


def import_weights(values: dict[str, Any]) -> int:
    """Makes a run folder of PyTorch weights."""
    from rfjax import commands

    workdir = values["workdir"]
    config = commands.import_run(
        values["from"],
        fields=values["config"],
        workdir=workdir,
        format=values["format"],
    )
    print(f"imported a model of depth {config.model.depth} into {workdir}")
    print(f"go on: rfjax train --config={workdir}/config.json --workdir={workdir}")
    return 0


COMMANDS = {
    "encode": Command(
        encode,
        "pictures and captions to shards",
        {"out": Flag("folder to write; must be new or empty", default=_REQUIRED)},
        config=True,
    ),
    "verify": Command(
        verify,
        "check a data set and draw a contact sheet, or check a run's checkpoints",
        {
            "data": Flag("data folder; give this or --workdir"),
            "workdir": Flag("run folder"),
            "step": Flag("checkpoint to check; all of them if absent", int),
            "picture": Flag("contact sheet to write; DATA/contact_sheet.png if absent"),
        },
    ),
    "train": Command(
        train,
        "train a run folder, or resume it",
        {"workdir": WORKDIR},
        config=True,
        computes=True,
    ),
    "evaluate": Command(
        evaluate,
        "validation loss val_v1 of a checkpoint",
        {
            "workdir": WORKDIR,
            "step": STEP,
            "num_samples": Flag("held-out examples; the run's number if absent", int),
            "json": JSON,
        },
        computes=True,
    ),
    "sample": Command(
        sample,
        "pictures of prompts, or a sheet of seen and held-out captions",
        {
            "workdir": WORKDIR,
            "prompt": Flag("caption to draw; may be given several times", list),
            "sheet": Flag("draw captions of the data set instead", bool, False),
            "out": Flag("picture to write; sample.png, or sample-2.png, if absent"),
            "step": STEP,
            "weights": WEIGHTS,
            "seed": Flag("of the noise", int, 0),
            "num_steps": Flag("solver steps; the run's number if absent", int),
            "solver": Flag("euler, heun or adams_bashforth; the run's if absent"),
            "guidance_scale": Flag("1 is unguided; the run's if absent", float),
        },
        computes=True,
    ),
    "layout": Command(
        layout,
        "who holds which parameter on a mesh, and why",
        {
            "devices": Flag(
                "devices of the mesh; those of this machine if absent", int
            ),
            "topology": Flag("chips instead, as v5p:4x4x4 or 2*v5e:16x16"),
            "json": JSON,
            "picture": Flag("file to draw bytes by parameter into, as layout.png"),
        },
        config=True,
    ),
    "plan": Command(
        plan,
        "memory and speed on TPUs, from the compiler alone",
        {
            "topology": Flag(
                "chips, as v5p:4x4x4, v5litepod-256 or 2*v5e:16x16", default=_REQUIRED
            ),
            "num_images": Flag("training budget; the config's if absent", int),
            "json": JSON,
            "summary": Flag("file to write the headline figures to, as JSON"),
            "picture": Flag("file to draw time and memory into, as plan.png"),
            "search": Flag(
                "try meshes, batches and remat policies, minutes each", bool, False
            ),
            "limit": Flag("compilations of a search at most; 0: no limit", int, 0),
        },
        config=True,
    ),
    "bench step": Command(
        bench_step,
        "time of a train step here, beside PyTorch's",
        {
            "rounds": ROUNDS,
            "peer": Flag("diffusers: the same step in PyTorch, in turns (CPU)"),
            "json": JSON,
        },
        config=True,
        computes=True,
    ),
    "bench checkpoint": Command(
        bench_checkpoint,
        "time that saves hold training up, beside bare writes",
        {
            "folder": Flag("on the disk to measure; that of temporary files if absent"),
            "rounds": ROUNDS,
            "json": JSON,
        },
        config=True,
        computes=True,
    ),
    "bench data": Command(
        bench_data,
        "rate of reading, beside bare ArrayRecord reads",
        {
            "data": Flag("data folder; random records like SD3's if absent"),
            "rounds": ROUNDS,
            "json": JSON,
        },
    ),
    "sweep": Command(
        sweep,
        "train the cells of a depth study, or resume it",
        {
            "workdir": Flag("sweep folder: one run folder a cell", default=_REQUIRED),
            "dry_run": Flag("print the table of cells and stop", bool, False),
        },
        config=True,
        computes=True,
    ),
    "coordinates": Command(
        coordinates,
        "how far training steps move activations, depth by depth",
        {
            "depths": Flag("at least two, separated by commas", default="1,2,4"),
            "steps": Flag("training steps on one batch", int, 4),
            "parameterisation": Flag("standard, mup or both", default="both"),
            "out": Flag("folder to write JSON and figure into", default=_REQUIRED),
        },
        config=True,
        computes=True,
    ),
    "fit": Command(
        fit,
        "power laws with intervals from runs or a table",
        {
            "runs": Flag("sweep folder; give this or --table"),
            "table": Flag("CSV file of somebody else's runs"),
            "columns": Flag("its columns, as params=N,samples=D,loss=L"),
            "out": Flag("report folder to write", default=_REQUIRED),
            "law": Flag("chinchilla, size, samples or compute", default="chinchilla"),
            "size": Flag("params, params_without_adaln or flops", default="params"),
            "loss": Flag("column of the loss; val_ema/loss of runs if absent"),
            "bootstraps": Flag("resamples behind the intervals", int, 1000),
            "holdout": Flag("test the law on the largest depth", bool, True),
            "mid_run": Flag(
                "also fit points before the learning rate has cooled down", bool, False
            ),
            "where": Flag("rows to fit, as 'depth >= 2'; all usable ones if absent"),
            "budget": Flag("training FLOPs to find the best model for", list),
            "forecast": Flag("model to predict, as depth=12,samples=1e6", list),
            "json": JSON,
        },
    ),
    "export": Command(
        export,
        "PyTorch weights of a checkpoint",
        {
            "workdir": WORKDIR,
            "out": Flag("folder to write; must be new or empty", default=_REQUIRED),
            "format": Flag("diffusers or sd3", default="diffusers"),
            "weights": WEIGHTS,
            "dtype": Flag("float32, bfloat16 or float16", default="float32"),
            "step": STEP,
            "pipeline": Flag("folder whose vae, text_encoder* and tokenizer* to add"),
        },
    ),
    "import": Command(
        import_weights,
        "a run folder of PyTorch weights, to go on with",
        {
            "from": Flag("safetensors file, or folder with one", default=_REQUIRED),
            "format": Flag("diffusers or sd3", default="diffusers"),
            "workdir": Flag("run folder to make", default=_REQUIRED),
        },
        config=True,
    ),
}


# -- Flags and configs -------------------------------------------------------------


def usage() -> str:
    """What `rfjax` alone prints."""
    width = max(map(len, COMMANDS))
    lines = [f"rfjax {__version__}: rectified-flow transformers in JAX", ""]
    lines += [f"  rfjax {n:<{width}}  {c.help}" for n, c in COMMANDS.items()]
    lines += ["", "rfjax COMMAND --help lists the flags of a command."]
    return "\n".join(lines)


def command_usage(name: str) -> str:
    """What `rfjax NAME --help` prints."""
    command = COMMANDS[name]
    rows = []
    if command.config:
        rows.append(("--config=FILE[:ARG]", CONFIG.help + " (required)"))
        rows.append(("--config.FIELD=VALUE", "sets one field, e.g. --config.seed=1"))
    for flag_name, flag in command.flags.items():
        note = {_REQUIRED: " (required)", None: "", False: ""}.get(
            flag.default, f" (default {flag.default})"
        )
        form = "--" + flag_name.replace("_", "-")
        form += "" if flag.type is bool else "=VALUE"
        rows.append((form, flag.help + note))
    width = max(len(form) for form, _ in rows)
    return "\n".join(
        [f"rfjax {name}: {command.help}", ""]
        + [f"  {form:<{width}}  {text}" for form, text in rows]
    )


def parse_flags(name: str, args: Sequence[str]) -> dict[str, Any]:
    """Values of a command's flags, and its config as a plain dict with overrides.

    Raises:
      UserError: unknown, missing or ill-formed flags.
    """
    command = COMMANDS[name]
    overrides = [arg for arg in args if arg.startswith("--config.")]
    if overrides and not command.config:
        raise UserError(f"rfjax {name} takes no {overrides[0]}; see rfjax {name} -h.")
    values = flags.FlagValues()
    described = command.flags | ({"config": CONFIG} if command.config else {})
    define = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
        list: flags.DEFINE_multi_string,
    }
    for flag_name, flag in described.items():
        default = None if flag.default is _REQUIRED else flag.default
        define[flag.type](flag_name, default, flag.help, flag_values=values)
    try:
        own = [_underscored(arg) for arg in args if arg not in overrides]
        rest = values(["rfjax", *own])[1:]
    except flags.Error as error:
        raise UserError(f"{error}; see rfjax {name} --help.") from error
    if rest:
        raise UserError(
            f"rfjax {name} takes flags only, got {rest[0]!r}; write --NAME=VALUE."
        )
    result = {flag_name: values[flag_name].value for flag_name in described}
    for flag_name, flag in described.items():
        if flag.default is _REQUIRED and result[flag_name] is None:
            raise UserError(f"rfjax {name} needs --{flag_name}: {flag.help}.")
    if command.config:
        result["config"] = apply_overrides(
            load_config_file(result["config"]), overrides
        )
    return result


def _underscored(arg: str) -> str:
    """--dry-run to --dry_run: flags are written with hyphens, and read either way."""
    name, equals, value = arg.partition("=")
    if not name.startswith("--"):
        return arg
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def load_config_file(path_and_arg: str) -> dict[str, Any]:
    """Runs get_config(ARG) of FILE[:ARG], or reads FILE.json, and returns the fields.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if it defines no get_config, refuses ARG, or is no JSON.
    """
    path, _, arg = path_and_arg.partition(":")
    if not Path(path).is_file():
        raise MissingFileError(
            f"--config={path} does not exist; name a file such as configs/emoji.py."
        )
    if path.endswith(".json"):
        try:
            return json.loads(Path(path).read_text("utf-8"))
        except ValueError as error:
            raise UserError(
                f"--config={path} must be JSON: {error}; take a run's config.json."
            ) from error
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(
            f"--config={path} must define get_config(arg), and does not; see configs/."
        )
    try:
        return module.get_config(arg).to_dict()
    except ValueError as error:  # the file's own check of its argument
        raise UserError(f"--config={path_and_arg} is refused: {error}") from error


def apply_overrides(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Sets fields from --config.SECTION.FIELD=VALUE; types are checked later."""
    for override in overrides:
        name, equals, text = override.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{override} must have the form --config.FIELD=VALUE.")
        *sections, field = name.split(".")
        target = config
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"{override}: {section} is a field, not a section.")
        target[field] = parse_value(text)
    return config


def parse_value(text: str) -> Any:
    """A Python literal if it is one (3, 1e-4, True, None, [1, 2]), else the text."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError):
        return text


def run(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    name, *rest = args
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        print(f"rfjax: no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    if {"-h", "--help"} & set(rest):
        print(command_usage(name))
        return 0
    if argv is None and COMMANDS[name].computes:
        restart_with_huge_pages()
    if argv is None:
        # Whoever reads a log through a pipe wants each line when it is printed.
        sys.stdout.reconfigure(line_buffering=True)
    logging.set_verbosity(logging.WARNING)
    # Compiled programs are kept between commands; JAX reads this when it starts.
    cache = Path.home() / ".cache" / "rfjax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    with stopping.handling() as stop:
        status = _call(name, rest, stop)
        if argv is None:
            stopping.ignore_signals()  # nothing is left that they could interrupt
            if status in stopping.EXIT_STATUSES:
                _end_process(status)
            stop.keep_ignoring = True
    return status


def _end_process(status: int) -> NoReturn:
    """Ends without taking apart what a signal may have left half done in a library."""
    whole_files.remove_unfinished()
    if "jax" in sys.modules:
        from rfjax.parallel import processes

        processes.leave()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the terminal may be gone
            stream.flush()
    os._exit(status)


def _call(name: str, args: Sequence[str], stop: stopping.StopSignals) -> int:
    """The exit status of a command; signals that come once it is known are too late."""
    try:
        try:
            status = COMMANDS[name].run(parse_flags(name, args))
            stop.closed = True
            return status
        except Exception:
            stop.closed = True
            stop.raise_again()
            raise
    except UserError as error:
        # Input that cannot be used: what and why, without a traceback.
        print(f"rfjax {name}: {error}", file=sys.stderr)
        return 1
    except stopping.Stopped as stopped:
        stop.closed = True
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"rfjax {name}: {stopped}", file=sys.stderr)
        return stopped.exit_status


if __name__ == "__main__":
    sys.exit(run())
