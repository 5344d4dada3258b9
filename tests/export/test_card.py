# SPDX-License-Identifier: Apache-2.0
import dataclasses
import html
import json

import pytest
import yaml

from rfjax.export import card
from rfjax.models import make_model


def read_card(workdir, *, layout="diffusers", weights="ema", step=4):
    text = card.model_card(
        card.read_run(workdir),
        layout=layout,
        weights=weights,
        dtype="float32",
        step=step,
    )
    return html.unescape(text)


def test_what_the_card_says(make_config, make_run):
    config = make_config(qk_norm=True)
    text = read_card(make_run(config))
    for row in (
        "| depth | 2 |",
        f"| parameters | {make_model(config).num_params:,} |",
        "| weights | ema, float32, diffusers layout |",
        "| step | 4 |",
        "| samples seen | 1024 |",
        "| data set | emoji |",
        "| validation loss | 0.6250 at step 2 (protocol val_v1) |",
        "| objective | rf/lognorm(0.00,1.00) |",
        "| codec | none |",
        "| text encoder synthetic | synthetic, 12 tokens, context 32, pooled 32, padd",
        "| solver in sampling | euler |",
        "| base model | none |",
        "| model.qk_norm | true |",
    ):
        assert row in text
    assert "SD3Transformer2DModel.from_pretrained" in text


def test_raw_weights_quote_their_own_loss(make_config, make_run):
    text = read_card(make_run(make_config()), layout="sd3", weights="raw")
    assert "0.7500 at step 2" in text
    assert "load_file" in text


def test_a_run_without_metrics(make_config, make_run):
    workdir = make_run(make_config())
    (workdir / "metrics.jsonl").unlink()
    (workdir / "run.json").unlink()
    assert "| validation loss | not measured |" in read_card(workdir)


def test_later_metrics_are_not_quoted(make_config, make_run):
    text = read_card(make_run(make_config()), step=1)
    assert "| validation loss | not measured |" in text


ATTACKS = [
    "a | b |\n|---|---|\n# Heading",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![](https://example.com/pixel.png)",
    "www.example.com",
    "`code` **bold** _it_ __b__ ~~no~~ $x$",
    "---\nlicense: mit\n---",
    "&lt;b&gt;",
    "\u202eright to left\x1b[31m",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_injected(attack):
    text = card.escape(attack)
    assert "\n" not in text
    assert not set(text.replace("&#", "")) & set("<>|`*_[]!$~:@\u202e\x1b")
    assert "www." not in text
    # Readers see what was written, apart from line ends and control characters.
    visible = " ".join(c for c in html.unescape(text).split())
    printable = "".join(c if c.isprintable() else " " for c in attack)
    assert visible == " ".join(printable.split())


def test_long_values_are_cut():
    assert len(card.escape("x" * 10_000)) == card.LONGEST_VALUE


def test_hostile_data_set_name(make_config, make_run):
    workdir = make_run(make_config())
    (workdir / "run.json").write_text(json.dumps({"data": "<b>\n| x | y |"}))
    choices = {"layout": "sd3", "weights": "ema", "dtype": "float32", "step": 4}
    text = card.model_card(card.read_run(workdir), **choices)
    assert "<b>" not in text
    assert "| data set | &#60;b&#62; &#124; x &#124; y &#124; |" in text


def test_every_size_of_the_data_is_listed(make_config, make_run):
    run = card.read_run(make_run(make_config()))
    choices = {"layout": "sd3", "weights": "ema", "dtype": "float32", "step": 4}
    assert "latent sizes to draw" not in card.model_card(run, **choices)
    buckets = ((6, 10), run.manifest.latent.shape[:2], (10, 6))
    latent = dataclasses.replace(run.manifest.latent, buckets=buckets)
    manifest = dataclasses.replace(run.manifest, latent=latent)
    text = card.model_card(dataclasses.replace(run, manifest=manifest), **choices)
    sizes = ", ".join("{} x {}".format(*bucket) for bucket in buckets)
    assert f"| latent sizes to draw | {sizes} (height x width), the aspect" in text


def test_licences_of_the_examples(make_config, make_run):
    run = card.read_run(make_run(make_config()))
    choices = {"layout": "sd3", "weights": "ema", "dtype": "float32", "step": 4}
    licences = {f"L{i}": 1 for i in range(30)} | {"CC-BY <b>": 7, "CC0": 1200}
    for notice in ("", "By many."):
        manifest = dataclasses.replace(run.manifest, licence=notice, licences=licences)
        with_licences = dataclasses.replace(run, manifest=manifest)
        _, _, text = card.model_card(with_licences, **choices).partition("of the data")
        listed = text.partition("## Conf")[0].strip().removeprefix(notice).strip()
        assert listed.startswith(
            "Examples by licence: 1,200 CC0, 7 CC-BY &#60;b&#62;, 1"
        )
        assert ", 12 other licences. The file credits.csv of data set" in listed
    without = dataclasses.replace(run.manifest, licence="", licences={})
    text = card.model_card(dataclasses.replace(run, manifest=without), **choices)
    assert "Not recorded." in text
    assert "credits.csv" not in text


def front_matter(text):
    _, block, _ = text.split("---\n", 2)
    return yaml.safe_load(block)


def test_the_hub_reads_the_front_matter(make_config, make_run):
    workdir = make_run(make_config())
    fields = front_matter(read_card(workdir))
    assert fields == {
        "license": "other",
        "license_name": "not-chosen",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["rfjax", "rectified-flow", "mmdit"],
        "datasets": ["synthetic"],
    }
    huggingface_hub = pytest.importorskip("huggingface_hub")
    data = huggingface_hub.ModelCard(read_card(workdir, layout="sd3")).data
    assert (data.license, data.library_name) == ("other", "safetensors")
    run = card.read_run(workdir)
    choices = {"layout": "sd3", "weights": "ema", "dtype": "float32", "step": 4}
    chosen = front_matter(card.model_card(run, **choices, licence="cc-by-sa-4.0"))
    assert chosen["license"] == "cc-by-sa-4.0"
    assert "license_name" not in chosen


CACHED = "/home/ada/.cache/hub/models--stabilityai--sd3-medium/snapshots/a1/transformer"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (CACHED, "stabilityai/sd3-medium"),
        ("/home/ada/export/emoji", "emoji"),
        ("export/emoji/transformer", "emoji"),
        ("sd3.safetensors", "sd3.safetensors"),
        ("/home/ada/a: b", None),  # no name for the Hub
    ],
)
def test_the_base_model_is_named(make_config, make_run, source, name):
    workdir = make_run(make_config())
    record = json.loads((workdir / "run.json").read_text())
    (workdir / "run.json").write_text(json.dumps(record | {"imported_from": source}))
    text = read_card(workdir)
    assert front_matter(text).get("base_model") == name
    assert f"| base model | {name or 'a: b'} |" in text
    assert "ada" not in text


def test_nothing_says_where_files_lie(make_config, make_run):
    workdir = make_run(make_config(), data={"num_classes": 4})
    fields = json.loads((workdir / "config.json").read_text())
    fields["model"]["position_file"] = "/home/ada/runs/x/positions.npy"
    fields["notes"] = {
        "a": "~ada/x/secret.txt",
        "b": "../../ada/kept",
        "c": ["C:\\Users\\ada\\kept", {"d": "file:///home/ada/kept"}],
        "e": "made by /home/ada/bin/tool from runs/emoji and https://x.org/ada1",
    }
    (workdir / "config.json").write_text(json.dumps(fields))
    text = read_card(workdir)
    assert "| model.position_file | positions.npy |" in text
    assert "| notes.e | made by tool from runs/emoji and https://x.org/ada1 |" in text
    assert "ada" not in text.replace("ada1", "")
    assert text.count("kept") == 3
