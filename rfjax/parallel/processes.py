# SPDX-License-Identifier: Apache-2.0
"""Several processes, one program: joined by the environment; the first one writes.

Every host runs the same command. `start` joins them, before JAX is used:

- `JAX_COORDINATOR_ADDRESS` (host:port of the first process), `JAX_NUM_PROCESSES` and
  `JAX_PROCESS_ID` together decide, on any cluster and on one machine;
- otherwise TPU VMs, TPU jobs on GKE (also of several slices) and SLURM steps are
  recognised, and JAX finds the other processes by itself;
- otherwise this process is alone.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rfjax import __version__
from rfjax.errors import UserError
from rfjax.parallel import agreement, links
from rfjax.parallel.links import Links
from rfjax.parallel.relay import relay_to

ADDRESS, COUNT, INDEX = VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)

# That the end of another process may become known after its consequences.
NEWS_SECONDS = 3.0

_links: Links | None = None


def start(*, say: Callable[[str], None], end: Callable[[str, int], None]) -> None:
    """Joins the other processes of the job, if there are any; later calls do nothing.

    Args:
      say: prints a line on standard error.
      end: (line, exit status) -> ends this process at once, from another thread; called
        when another process has ended, or cannot be reached any more.

    Raises:
      UserError: the variables are incomplete or out of range, or the cluster cannot
        be joined.
    """
    global _links
    if _links is not None or jax.distributed.is_initialized():
        return
    given = read_variables(os.environ)
    if given is None and not in_cluster(os.environ):
        return
    try:
        job = given or detect()
        if job["num_processes"] > 1:
            _links = _join(**job, say=say, end=end)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the processes of this job must find each other, and cannot: {error}; "
            f"set {', '.join(VARIABLES)} in each of them, and start them all."
        ) from error


def detect() -> dict[str, Any]:
    """What the cluster says of this job, as arguments of `jax.distributed.initialize`.

    Raises:
      RuntimeError: it says too little.
    """
    from jax._src import clusters  # no public name; `initialize` calls it too late

    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, links.LIMIT_SECONDS
    )
    if None in found[:3]:
        raise RuntimeError("no cluster answers")
    names = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
    return dict(zip(names, found, strict=True))


def _join(
    coordinator_address: str,
    num_processes: int,
    process_id: int,
    local_device_ids: Sequence[int] | None = None,
    *,
    say: Callable[[str], None],
    end: Callable[[str, int], None],
) -> Links:
    """Connects to the other processes, and then lets JAX do so."""
    joined = Links(
        address=coordinator_address,
        index=process_id,
        count=num_processes,
        say=say,
        end=end,
    )
    host, _, _ = coordinator_address.rpartition(":")
    with socket.socket() as reserved:
        # JAX's service shares the port with this socket, which only keeps it free.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("", 0))
        hello = {
            "port": reserved.getsockname()[1],
            "processes": num_processes,
            "rfjax": __version__,
            "jax": jax.__version__,
        }
        try:
            values = joined.join(hello)
        except BaseException:
            joined.close()
            raise
        agreement.check_same([{**value, "port": 0} for value in values])
        port = values[0]["port"]
        service = f"{host}:{port}"
        if process_id != 0:
            service = f"127.0.0.1:{joined.run(relay_to(host.strip('[]'), port))}"
        # It would intercept SIGTERM, which `rfjax.stopping` handles in every process.
        jax.config.update("jax_enable_preemption_service", False)
        bind_host = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "[::]:0")
        jax.distributed.initialize(
            service,
            num_processes,
            process_id,
            local_device_ids,
            coordinator_bind_address=f"{bind_host.rpartition(':')[0]}:{port}",
        )
    return joined


def read_variables(environ: Mapping[str, str]) -> dict[str, str | int] | None:
    """Arguments of `jax.distributed.initialize`, or None if nothing is set.

    Raises:
      UserError: only some of the variables are set, or one is out of range.
    """
    missing = [name for name in VARIABLES if not environ.get(name)]
    if len(missing) == len(VARIABLES):
        return None
    if missing:
        given = [name for name in VARIABLES if name not in missing]
        raise UserError(
            f"{', '.join(VARIABLES)} must be set together, got "
            f"{', '.join(f'{name}={environ[name]}' for name in given)} without "
            f"{' and '.join(missing)}; set all of them, or none on one machine."
        )
    address, count, index = (environ[name] for name in VARIABLES)
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdigit():
        raise UserError(
            f"{ADDRESS} must be HOST:PORT of the first process, got {address!r}; "
            "write it as in 10.0.0.1:1234."
        )
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise UserError(
            f"{INDEX} must count from 0 to {COUNT} - 1, got {index} of {count}; give "
            "each process its own number."
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
    }


def in_cluster(environ: Mapping[str, str], *, devices: Path = Path("/dev")) -> bool:
    """Whether JAX can be expected to find other processes by itself.

    Args:
      environ: environment variables.
      devices: the folder of device files.
    """
    if "SLURM_STEP_NODELIST" in environ:  # set by srun, not in the script of sbatch
        return int(environ.get("SLURM_NTASKS", 1)) > 1
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    if "TPU_SKIP_MDS_QUERY" in environ:  # the user says there is no cluster
        return False
    if "TPU_WORKER_HOSTNAMES" in environ:  # GKE
        num_hosts = len(environ["TPU_WORKER_HOSTNAMES"].split(","))
        return num_hosts > 1 or int(environ.get("MEGASCALE_NUM_SLICES", 1)) > 1
    # A TPU VM names only its chips; JAX asks the metadata server for its neighbours.
    return any((devices / name).exists() for name in ("accel0", "vfio/0"))


def is_first() -> bool:
    """Whether this process writes and prints on behalf of all."""
    return jax.process_index() == 0


def on_first(function: Callable[[], None]) -> None:
    """Calls a function in the first process; the others wait until it is done.

    Raises:
      UserError: in the others too, if the function raised in the first.
    """
    error = None
    if is_first():
        try:
            function()
        except Exception as caught:  # raised below, once the others know
            error = caught
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.bool_(error is not None))
        if failed and not is_first():
            raise UserError(
                "process 0 must be able to continue, but failed; its output says why."
            )
    if error is not None:
        raise error


def from_first(number: int) -> int:
    """The number that the first process has; all call it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def any_of_them(flag: bool) -> bool:
    """Whether the flag is true in any process; all call it and get the same answer."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.bool_(flag)).any())


def first_is_gone() -> bool:
    """Whether process 0 is lost, so that another must say how the job ended."""
    return _links is not None and _links.first_is_gone


def is_joined() -> bool:
    """Whether this process is one of several that `start` has joined."""
    return _links is not None


def share(value: Any) -> list[Any]:
    """The values of all processes, in order; all call it and get the same.

    Needs no device and no compilation.

    Args:
      value: anything that JSON can hold.
    """
    return [value] if _links is None else _links.share(value)


def follow() -> None:
    """Ends this process if another turns out to have ended, which explains an error."""
    if _links is not None:
        _links.follow(seconds=NEWS_SECONDS)


def leave(exit_status: int, *, seconds: float | None) -> None:
    """Disconnects from the other processes, before this one ends.

    Args:
      exit_status: that this process ends with; the others follow with the same.
      seconds: how long to wait for the others to end too; None: as long as they work.
    """
    if _links is None:
        return
    if seconds != 0 and _links.leave(seconds=seconds):
        thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        thread.start()
        thread.join(10)
    else:
        _links.announce_end(exit_status)


class Ballot:
    """`any_of_them` at every step of a loop, without waiting for the others.

    The question is dispatched to the devices like a step, so it is answered when the
    work before it is done, at the cost of reducing one value.
    """

    def __init__(self):
        if jax.process_count() == 1:
            return
        mesh = Mesh(np.asarray(jax.devices()), ("device",))
        split = NamedSharding(mesh, PartitionSpec("device"))
        num_own = jax.local_device_count()
        self._flags = {
            flag: jax.make_array_from_process_local_data(split, np.full(num_own, flag))
            for flag in (False, True)
        }
        self._any = jax.jit(
            lambda flags: flags.any(),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )

    def ask(self, flag: bool) -> jax.Array | None:
        """Dispatches the question, with the answer of this process."""
        return None if jax.process_count() == 1 else self._any(self._flags[flag])

    def answer(self, question: jax.Array | None, *, now: bool) -> bool:
        """Waits for the answer of all; a single process answers by `now`."""
        return now if question is None else bool(question)
