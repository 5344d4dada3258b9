# SPDX-License-Identifier: Apache-2.0
"""Other processes, as the environment describes them."""

import jax
import pytest

from rfjax.parallel import processes

ALL = {
    processes.ADDRESS: "10.0.0.1:1234",
    processes.COUNT: "4",
    processes.INDEX: "3",
}


def fail(*args):
    raise AssertionError(args)


def test_a_machine_alone_stays_alone(monkeypatch):
    for name in processes.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    processes.start(say=fail, end=fail)
    assert not processes.is_joined()
    assert processes.share(7) == [7]


def test_variables_decide():
    assert processes.read_variables({}) is None
    assert processes.read_variables(ALL) == {
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 4,
        "process_id": 3,
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({processes.INDEX: ""}, r"must be set together.* without JAX_PROCESS_ID; set"),
        ({processes.ADDRESS: ""}, r"without JAX_COORDINATOR_ADDRESS; set all"),
        ({processes.ADDRESS: "host"}, r"must be HOST:PORT .*, got 'host'"),
        ({processes.INDEX: "4"}, r"count from 0 to JAX_NUM_PROCESSES - 1, got 4 of 4"),
        ({processes.COUNT: "two"}, r"got 3 of two"),
    ],
)
def test_variables_that_contradict_each_other(changed, message):
    with pytest.raises(ValueError, match=message):
        processes.read_variables(ALL | changed)


SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2"}, False),  # the script of sbatch, outside srun
        (GKE, True),
        (GKE | {"JAX_PLATFORMS": "tpu,cpu"}, True),
        (GKE | {"JAX_PLATFORMS": "cpu"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_clusters_are_recognised(environ, expected, tmp_path):
    assert processes.in_cluster(environ, devices=tmp_path) == expected


def test_jax_says_who_is_in_the_cluster(monkeypatch):
    for name in processes.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(ValueError, match="no cluster answers; set JAX_COORDINATOR_ADD"):
        processes.start(say=fail, end=fail)
    step = {"SLURM_JOB_ID": "5", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    found = processes.detect()
    assert found["coordinator_address"].startswith("n1:")
    assert (found["num_processes"], found["process_id"]) == (2, 1)


@pytest.mark.parametrize("name", ["accel0", "vfio/0"])
def test_a_tpu_vm_is_known_by_its_chips(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert processes.in_cluster({}, devices=tmp_path)
    assert not processes.in_cluster({"JAX_PLATFORMS": "cpu"}, devices=tmp_path)
    assert not processes.in_cluster({"TPU_SKIP_MDS_QUERY": "1"}, devices=tmp_path)


def test_the_others_stop_when_the_first_cannot_continue(monkeypatch):
    def fail():
        raise ValueError("the folder is in use")

    with pytest.raises(ValueError, match="the folder is in use"):
        processes.on_first(fail)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    answers = [True, False]
    monkeypatch.setattr(
        processes.multihost_utils, "broadcast_one_to_all", lambda _: answers.pop(0)
    )
    with pytest.raises(ValueError, match="process 0 must be able to continue"):
        processes.on_first(fail)
    processes.on_first(fail)  # control: not called here, and it succeeds there
