# SPDX-License-Identifier: Apache-2.0
"""The reading benchmark, on a few small records: all sides deliver the same."""

import gc
import itertools

import ml_dtypes
import numpy as np
import pytest

from rfjax.bench import data, data_own, data_peers
from rfjax.bench.data_layouts import LAYOUTS, Encoder, Layout, endless_order
from rfjax.commands.bench.data import bench_data
from rfjax.data import conditioning, shards

SMALL = Layout(
    latent_shape=(4, 4, 2),
    encoders=(
        Encoder("clip_l", 3, 6, 5, beside=True),
        Encoder("clip_g", 3, 10, 7, beside=True),
        Encoder("t5", 4, 32, 0),
    ),
)
COUNT = 150  # several tars and row groups


def test_layouts_have_the_published_shapes():
    """By SD3 (section 4), and the MLPerf FLUX.1 reference's 2.16 MB."""
    sd3, flux = LAYOUTS["sd3"], LAYOUTS["mlperf_flux"]
    assert sd3.context_shape == (154, 4096)
    assert sd3.shapes["latents"] == sd3.shapes["log_variance"] == (32, 32, 16)
    assert sum(e.pooled_dim for e in sd3.encoders) == 2048
    assert flux.context_shape == (256, 4096)
    assert flux.example_bytes == pytest.approx(2.16e6, rel=0.01)


def test_every_pass_holds_each_number_once():
    order = list(itertools.islice(endless_order(5), 10))
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))


@pytest.fixture(scope="module")
def own_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "random"
    data_own.write_shards(root, SMALL, COUNT)
    return root


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("peer", ["files", "webdataset", "parquet"])
def test_peers_deliver_what_training_reads(peer, tmp_path, own_root):
    """Joined captions bit for bit, and samples of the same posteriors."""
    torch = pytest.importorskip("torch")
    if peer == "webdataset":
        pytest.importorskip("webdataset")
    write, read, _ = data.PEERS[peer]
    write(tmp_path, SMALL, COUNT)
    batches = read(tmp_path, SMALL, batch_size=8, workers=0)
    manifest, records = (
        shards.read_manifest(own_root),
        shards.open_split(own_root, "train"),
    )
    by_pooled = {}
    for index in range(COUNT):
        row = conditioning.join_captions([records[index]], manifest)
        by_pooled[row["pooled"].tobytes()] = index, row["context"][0]
    seen, errors = set(), []
    for batch in itertools.islice(batches, 300):  # WebDataset draws tars with a repeat
        assert batch["latents"].dtype == torch.float32
        context = batch["context"].view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        pooled = batch["pooled"].view(torch.int16).numpy()
        for row in range(8):
            index, own = by_pooled[pooled[row].tobytes()]
            np.testing.assert_array_equal(context[row], own)
            record = records[index]
            mean, log_variance = (
                record[name].astype(np.float32) for name in ("latents", "log_variance")
            )
            noise = (batch["latents"][row].numpy() - mean) / np.exp(log_variance / 2)
            errors.append(noise)
            seen.add(index)
    assert len(seen) > 0.8 * COUNT, "it is shuffled over all of them"
    assert np.std(errors) == pytest.approx(1, abs=0.05)
    assert np.mean(errors) == pytest.approx(0, abs=0.05)
    del batches, batch
    gc.collect()  # WebDataset leaves the tar open that it stopped in


def test_the_pipeline_reads_the_same_content(own_root):
    stream = data_own.read_pipeline(own_root, batch_size=8)
    batch = next(stream)
    stream.close()
    assert batch.conditioning.context.shape == (8, *SMALL.context_shape)
    assert batch.latents.dtype == np.float32
    bare = data_own.read_bare(own_root, batch_size=8, workers=2)
    assert all(size > 8 * SMALL.example_bytes for size in itertools.islice(bare, 3))
    bare.close()


@pytest.mark.slow
def test_sides_are_measured_in_turns(tmp_path):
    """The whole of it, with one peer in worker processes."""
    pytest.importorskip("torch")
    lines = []
    report = data.measure_layout(
        SMALL,
        tmp_path,
        peers=["files"],
        num_examples=20,
        batch_size=4,
        num_batches=3,
        rounds=2,
        report=lines.append,
    )
    assert list(report.sides) == ["raw", "rfjax", "files"]
    for side in report.sides.values():
        assert len(side.rates) == len(side.cpu_seconds) == 2
        assert min(side.rates) > 0
        assert min(side.cpu_seconds) >= 0
    own = report.sides["rfjax"].rates
    assert report.ratios["raw"][1] == own[1] / report.sides["raw"].rates[1]
    assert report.sides["files"].workers in data_peers.WORKERS
    assert report.to_json()["ratios"].keys() == {"raw", "files"}
    assert str(report).count("times as fast") == 2
    assert lines[:2] == ["writing 20 examples for each side", "opening raw"]
    assert len(lines) == 1 + 3 + 2


def test_wrong_settings(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--peers read random records, got --data=x"):
        bench_data("x", peers=["files"])
    with pytest.raises(ValueError, match="layout must be one of sd3, mlperf_flux"):
        bench_data(layout="sd4")
    with pytest.raises(ValueError, match="peers must be one of files, .* got 'tar'"):
        bench_data(peers=["tar"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        bench_data(tmp_path / "none")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="--peers=parquet needs torch and pyarrow"):
        bench_data(peers=["parquet"])
