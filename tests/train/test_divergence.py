# SPDX-License-Identifier: Apache-2.0
"""Runs that diverge: noticed, blamed on what it is, and nothing ruined is kept."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax import checkpoint, commands, data, main, run_folder
from rfjax.config import config_to_dict, from_config_dict
from rfjax.config_files import apply_overrides, load_config_file
from rfjax.data import SyntheticConfig
from rfjax.flow.formulations import REGISTRY
from rfjax.flow.prediction import PREDICTIONS
from rfjax.parallel.mesh import MeshConfig, make_mesh
from rfjax.train.divergence import LARGEST_TRIVIAL_LOSS, TrainingDiverged, Watch
from rfjax.train.state import TrainState

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config.model.depth=1",
    "--config.data.latent_shape=[4, 4, 4]",
    "--config.model.latent_channels=4",
    "--config.train.num_steps=24",
    "--config.train.global_batch_size=8",
    "--config.train.log_every_steps=4",
    "--config.optimizer.warmup_steps=2",
    "--config.optimizer.cooldown_steps=4",
    "--config.checkpoint.every_steps=8",
    "--config.validation.every_steps=8",
    "--config.validation.num_samples=8",
    "--config.validation.batch_size=8",
]


def make_watch(*, earlier_losses=(), bad_examples=lambda step: None):
    return Watch(
        max_loss_ratio=100,
        earlier_losses=earlier_losses,
        mesh=make_mesh(MeshConfig(), devices=jax.devices()[:1]),
        bad_examples=bad_examples,
        saved_step=lambda ruined: 7,
    )


def feed(watch, losses):
    for step, loss in enumerate(losses, start=1):
        watch.check_step(step, loss=loss, grad_norm=1.0)


@pytest.mark.parametrize(
    "losses",
    [
        [2.0, 85, 184, 40, 2],  # a rate that is too high at first, and recovers
        [0.001, *[0.01] * 200, 3.9, 0.01],  # memorised, one example a step
        [900.0, 950, 870, 1200],  # latents of another scale
        [2.0] * 50 + [399.0],
    ],
)
def test_healthy_losses_never_end_a_run(losses):
    feed(make_watch(), losses)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([2.0, 401.0], r"train/loss must stay below 400, got 401 at step 2; lower opt"),
        ([900.0, 950, 1e5], r"stay below 9e\+04, got 1e\+05 at step 3"),
        ([2.0 * 1.1**k for k in range(100)], r"stay below 400, got .* at step 57"),
        ([2.0, math.nan], r"train/loss must stay finite, got nan at step 2"),
        ([math.inf], r"train/loss must stay finite, got inf at step 1"),
    ],
)
def test_a_blow_up_ends_a_run(losses, message):
    watch = make_watch()
    with pytest.raises(TrainingDiverged, match=message) as caught:
        feed(watch, losses)
    assert "raise train.max_loss_ratio" in str(caught.value) or "finite" in message
    assert "checkpoint 7 is kept" in str(caught.value)
    assert caught.value.ruined_step == watch.proven_step + 1


def test_a_run_that_resumes_remembers_its_losses():
    with pytest.raises(TrainingDiverged, match="below 400"):
        feed(make_watch(earlier_losses=[1.0, 2.0]), [5000.0])
    feed(make_watch(), [5000.0])  # control: the first loss of a run has no measure


def test_gradients_evaluations_and_states_are_finite():
    watch = make_watch()
    message = r"train/grad_norm must stay finite, got inf at step 3; lower"
    with pytest.raises(TrainingDiverged, match=message) as caught:
        watch.check_step(3, loss=1.0, grad_norm=math.inf)
    assert caught.value.ruined_step is None, "the loss before was good"
    feed(watch, [2.0])
    watch.check_evaluation(1, {"val/loss": 2.0, "captions/gap": -500.0})
    for name, value, rule in (
        ("val_ema/loss_t3", math.nan, "must be finite"),
        ("val/loss", 401.0, "must be below 400"),
    ):
        with pytest.raises(TrainingDiverged, match=rf"{name} {rule}, got {value:g} at"):
            watch.check_evaluation(1, {name: value})
    for part in ("params", "ema_params", "opt_state"):
        tree = {"w": jnp.ones(3), "count": jnp.int32(1)}
        state = TrainState(jnp.int32(1), tree, tree, tree)
        watch.check_state(1, state)
        ruined = tree | {"w": jnp.array([1.0, jnp.inf, 0])}
        state = TrainState(**vars(state) | {part: ruined})
        with pytest.raises(TrainingDiverged, match=f"^{part} must stay finite"):
            watch.check_state(1, state)


def test_predicting_zero_costs_no_more_than_the_limit_assumes():
    """For latents of variance 1 it costs the squared weights of the target."""
    b = jnp.linspace(0, 1, 1001)
    costs = {
        name: float((jnp.square(of_latents) + jnp.square(of_noise)).max())
        for name, prediction in PREDICTIONS.items()
        for of_latents, of_noise in [prediction.weights(1 - b, b)]
    }
    assert max(costs.values()) == pytest.approx(LARGEST_TRIVIAL_LOSS)
    assert costs["velocity"] == pytest.approx(2)
    assert {each.prediction for each in REGISTRY.values()} <= set(costs)


def run(workdir, *args):
    return main.run(["train", f"--config={ROOT}/configs/debug.py",
                     f"--workdir={workdir}", *SMALL, *args])  # fmt: skip


def test_a_rate_that_is_far_too_high_ends_with_its_own_status(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run(workdir, "--config.optimizer.learning_rate=1e6") == 3
    assert run_folder.read_run(workdir)["status"] == "diverged"
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"rfjax train: train/loss must stay below 400, got \S+ at st", last)
    assert checkpoint.finished_steps(workdir) == []


def test_a_last_step_that_ruins_the_model_is_not_saved(tmp_path, capsys):
    """No loss follows it: its evaluation tells."""
    args = ["train.num_steps=1", "optimizer.warmup_steps=0",
            "optimizer.cooldown_steps=0", "optimizer.learning_rate=1e30"]  # fmt: skip
    assert run(tmp_path / "run", *(f"--config.{arg}" for arg in args)) == 3
    assert "val/loss must be finite, got inf at step 1" in capsys.readouterr().err
    assert checkpoint.finished_steps(tmp_path / "run") == []


def test_the_last_good_checkpoint_stays_though_only_one_is_kept(tmp_path, capsys):
    """From step 8 on the rate is a million times too high, with a save at each step."""
    workdir = tmp_path / "run"
    assert run(workdir, "--config.train.num_steps=8") == 0
    longer = [*SMALL, "--config.optimizer.cooldown_steps=0"]
    fields = apply_overrides(load_config_file(f"{ROOT}/configs/debug.py"), longer)
    config = config_to_dict(from_config_dict(fields))
    config["optimizer"]["learning_rate"] *= 1e6
    (workdir / "config.json").write_text(json.dumps(config))
    often = ["--config.checkpoint.every_steps=1", "--config.checkpoint.keep=1",
             "--config.validation.every_steps=24"]  # fmt: skip
    rate = f"--config.optimizer.learning_rate={config['optimizer']['learning_rate']}"
    assert run(workdir, "--config.optimizer.cooldown_steps=0", *often, rate) == 3
    assert "(checkpoint 8 is kept)" in capsys.readouterr().err
    assert checkpoint.finished_steps(workdir) == [8]
    assert run_folder.read_run(workdir)["saved_step"] == 8
    # Control: what the loss does not show to be ruined is not taken away.
    often[-1] = "--config.train.max_loss_ratio=1e37"
    run(workdir, "--config.optimizer.cooldown_steps=0", *often, rate)
    assert checkpoint.finished_steps(workdir) != [8]


class Spoilt(SyntheticConfig):
    """Synthetic examples, one of which in each split holds what it must not."""

    spoilt = {"train": np.nan, "validation": 0.0}

    def records(self, split):
        records = [dict(record) for record in super().records(split)]
        latents = records[5]["latents"].astype(np.float32)
        latents[0, 0, 0] += self.spoilt[split]
        records[5]["latents"] = latents.astype(records[5]["latents"].dtype)
        return records


@pytest.mark.parametrize(
    ("split", "value", "message"),
    [
        ("train", np.nan, r"train/loss must .* nan at step \d+, because of its data: "
         r"latents of record 5 hold values not finite; `rfjax verify`"),
        ("train", 1e30, r"train/loss must stay finite, got inf at step \d+, because of "
         r"its data: latents of record 5 hold 1e\+30"),
        ("validation", 1e30, r"val/loss must be finite, got inf at step 8, because of "
         r"its data: validation latents of record 5 hold 1e\+30"),
    ],
)  # fmt: skip
def test_bad_data_is_blamed_and_not_the_rate(
    split, value, message, tmp_path, monkeypatch
):
    monkeypatch.setitem(data.DATASETS, "synthetic", Spoilt)
    monkeypatch.setattr(
        Spoilt, "spoilt", {"train": 0.0, "validation": 0.0, split: value}
    )
    fields = load_config_file(f"{ROOT}/configs/debug.py")
    args = ["--config.data.num_train=160", "--config.checkpoint.every_steps=1"]
    config = from_config_dict(apply_overrides(fields, [*SMALL, *args]))
    with pytest.raises(TrainingDiverged, match=message) as caught:
        commands.train(config, workdir=tmp_path / "run")
    assert "learning_rate" not in str(caught.value)
    step = int(re.search(r"at step (\d+)", str(caught.value))[1])
    # The step before was good, and so is its state.
    assert checkpoint.finished_steps(tmp_path / "run")[-1:] == [step - 1][: step - 1]
    assert run_folder.read_run(tmp_path / "run")["status"] == "diverged"
