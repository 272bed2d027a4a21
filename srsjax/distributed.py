"""Several processes that train, evaluate or score as one: how they find each other, and what process 0 does for all.

Every process runs the same command. They find each other by variables that their launcher sets:

  SLURM (srun)    one process per task, as JAX reads `SLURM_*`; on a GPU node each uses the GPU of its local rank
  TPU pod, GKE    one process per host, as JAX reads the metadata or `TPU_WORKER_*`, `MEGASCALE_*`
  Kubernetes      an indexed Job, `JOB_COMPLETION_INDEX`, by the `kubernetes` package
  Open MPI        `OMPI_COMM_WORLD_SIZE`
  anything else   `SRSJAX_COORDINATOR=host:port` (of process 0), `SRSJAX_NUM_PROCESSES`, `SRSJAX_PROCESS_ID`

`SRSJAX_NUM_PROCESSES=1` runs one process alone, whatever the launcher says; JAX's own `JAX_LOCAL_DEVICE_IDS=0,1,...`
names the GPUs of a process. The run folder and the prepared store must be on a shared file system;
process 0 writes and prints for all.
"""

from __future__ import annotations

import collections
import importlib.util
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed as _jax_distributed  # its key-value store has no public name; Orbax uses it as well

from srsjax import waits
from srsjax.cpu import may_have_accelerator
from srsjax.errors import InputError

COORDINATOR, PROCESSES, PROCESS = "SRSJAX_COORDINATOR", "SRSJAX_NUM_PROCESSES", "SRSJAX_PROCESS_ID"

HEARTBEAT_SECONDS = 30
"""A process without a heartbeat for this long counts as dead, and ends the others."""
SHUTDOWN_SECONDS = 45
"""How long a finished process waits for the others to finish."""
SEEN_SECONDS = 60
"""How long a file system may take to show one host what another wrote: NFS caches directory listings so long."""
_FOREVER_MS = 7 * 24 * 3600 * 1000  # preparing may take long; the death of a process meanwhile is reported at once

_calls = itertools.count()


class PeerError(Exception):
    """Another process ended, or process 0 failed at work it does for all."""


def initialize(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the processes of this run, if there are several. Call it before anything that initialises JAX's devices.

    Does nothing if the environment describes one process only, or if it was called before.

    Raises:
      InputError: variables that are incomplete or contradict each other.
    """
    if jax.distributed.is_initialized():
        return
    arguments = launch(environment)
    if arguments is None:
        return
    if jax.config.jax_cpu_collectives_implementation is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"the processes of this run did not find each other ({reason}); check that all are started and reach "
            f"process 0, or set {COORDINATOR}, {PROCESSES} and {PROCESS}"
        ) from None


def launch(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` for this environment, empty if JAX detects them; None for one process.

    Raises InputError if variables are incomplete or contradict each other.
    """
    if (explicit := _explicit(environment)) is not None:
        return explicit or None
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        return _slurm(environment)
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return {}
    if "JOB_COMPLETION_INDEX" in environment and "KUBERNETES_SERVICE_HOST" in environment:
        if importlib.util.find_spec("kubernetes") is None:
            raise InputError(
                f"found a pod of an indexed Kubernetes Job, but not the kubernetes package; pip install 'jax[k8s]', or "
                f"set {COORDINATOR}, {PROCESSES} and {PROCESS} ({PROCESSES}=1 for a pod alone)"
            )
        return {}
    return {} if _tpu_hosts(environment) else None


def _explicit(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments from our own variables: None if they are not set, empty for one process."""
    names = (COORDINATOR, PROCESSES, PROCESS)
    given = {name: environment[name] for name in names if environment.get(name)}
    if not given:
        return None
    numbers = {}
    for name, least in ((PROCESSES, 1), (PROCESS, 0)):
        if name in given:
            if not given[name].isdecimal() or int(given[name]) < least:
                raise InputError(f"{name}: found {given[name]!r}, expected a whole number of at least {least}")
            numbers[name] = int(given[name])
    if numbers.get(PROCESSES) == 1 and numbers.get(PROCESS, 0) == 0:
        return {}
    if missing := [name for name in names if name not in given]:
        raise InputError(f"{', '.join(given)} set, but not {', '.join(missing)}; set all three, or none")
    if not re.fullmatch(r"\S+:\d+", given[COORDINATOR]):
        raise InputError(f"{COORDINATOR}: found {given[COORDINATOR]!r}, expected host:port of process 0")
    if numbers[PROCESS] >= numbers[PROCESSES]:
        raise InputError(f"{PROCESS}: found {numbers[PROCESS]}, expected less than {PROCESSES} {numbers[PROCESSES]}")
    return {
        "coordinator_address": given[COORDINATOR],
        "num_processes": numbers[PROCESSES],
        "process_id": numbers[PROCESS],
        "cluster_detection_method": "deactivate",
    }


def _slurm(environment: Mapping[str, str]) -> dict[str, Any]:
    tasks, step = environment["SLURM_NTASKS"], environment.get("SLURM_STEP_NUM_TASKS")
    if "SLURM_STEP_NODELIST" not in environment or (step and step != tasks):
        raise InputError(
            f"SLURM_NTASKS is {tasks}, but this is one process outside of srun; start it with srun, or set "
            f"{PROCESSES}=1 to run it alone"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    # With --gpus-per-task each task sees one GPU, as number 0; JAX would ask for the one of its local rank.
    own = len(visible) == 1 and visible[0] and "JAX_LOCAL_DEVICE_IDS" not in environment
    return {"local_device_ids": [0]} if own else {}


def _tpu_hosts(environment: Mapping[str, str]) -> bool:
    """Whether this may be one TPU host of several. On a Compute Engine TPU VM only its metadata tell: JAX asks."""
    if not importlib.util.find_spec("libtpu") or not may_have_accelerator():
        return False
    from jax._src import cloud_tpu_init

    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return False
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    if hosts is not None:
        return "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return "TPU_PROCESS_ADDRESSES_PATH" in environment or "TPU_SKIP_MDS_QUERY" not in environment


# ---------------------------------------------------------------------------------------------- who does what


def process_count() -> int:
    """Number of processes of this run. Unlike JAX's function it initialises no device."""
    return _jax_distributed.global_state.num_processes if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """Index of this process. Unlike JAX's function it initialises no device."""
    return _jax_distributed.global_state.process_id if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    return process_index() == 0


def on_first(work: Callable[[], Any]) -> Any:
    """Process 0 does the work; every process returns its result, which is plain JSON, once all have reached this call.

    All processes call it in the same order. It waits as long as necessary, unlike collectives on devices: Gloo
    times out after 30 seconds. Raises on all of them the InputError that the work raised; PeerError on
    the others for any other exception.
    """
    if process_count() == 1:
        return work()
    client: Any = _jax_distributed.global_state.client
    key = f"srsjax/on_first/{next(_calls)}"
    if is_first():
        try:
            result = work()
        except InputError as error:
            client.key_value_set(key, json.dumps({"wrong_input": str(error)}))
            raise
        except BaseException as error:
            client.key_value_set(key, json.dumps({"failed": f"{type(error).__name__}: {error}"}))
            raise
        client.key_value_set(key, json.dumps({"result": result}))
        with waits.elsewhere():
            client.wait_at_barrier(f"{key}/done", _FOREVER_MS)
        return result
    with waits.elsewhere():
        told = json.loads(client.blocking_key_value_get(key, _FOREVER_MS))
    if "wrong_input" in told:
        raise InputError(told["wrong_input"])
    if "failed" in told:
        raise PeerError(f"process 0 failed: {told['failed']}")
    with waits.elsewhere():
        client.wait_at_barrier(f"{key}/done", _FOREVER_MS)
    return told["result"]


def gather(value: Any) -> list[Any]:
    """The values, plain JSON, of all processes, in their order, once all have reached this call.

    All processes call it in the same order. It waits as long as necessary; where a process ends before, JAX ends the
    others.
    """
    if process_count() == 1:
        return [value]
    client: Any = _jax_distributed.global_state.client
    key = f"srsjax/gather/{next(_calls)}"
    client.key_value_set(f"{key}/{process_index()}", json.dumps(value))
    with waits.elsewhere():
        return [json.loads(client.blocking_key_value_get(f"{key}/{n}", _FOREVER_MS)) for n in range(process_count())]


def tell(topic: str, value: Any) -> None:
    """Leaves a value, plain JSON, for the other processes to find with `told`; at most one a process and topic."""
    if process_count() > 1:
        client: Any = _jax_distributed.global_state.client
        client.key_value_set(f"srsjax/tell/{topic}/{process_index()}", json.dumps(value))


def told(topic: str) -> list[Any]:
    """What processes have left on a topic so far, this one included; waits for nobody."""
    if process_count() == 1:
        return []
    client: Any = _jax_distributed.global_state.client
    return [json.loads(value) for _, value in client.key_value_dir_get(f"srsjax/tell/{topic}/")]


def wait_until_seen(path: Path, seconds: float = SEEN_SECONDS) -> None:
    """Waits until this process sees a file that process 0 wrote. Raises InputError if it does not appear in time."""
    end = time.monotonic() + (seconds if process_count() > 1 else 0)
    while not path.exists():
        if time.monotonic() > end:
            raise InputError(
                f"{path}: process 0 wrote it, but process {process_index()} does not see it; "
                f"put run_dir, data.store and the output on a file system that all processes share"
            )
        time.sleep(0.2)


# ---------------------------------------------------------------------------------------------- devices


def devices_in_use(environment: Mapping[str, str] = os.environ) -> str:
    """The devices of all processes in one line (`2 processes x 4 cpu`).

    Raises InputError if a device of a node is unused: see `check_devices`.
    """
    counts = collections.Counter(device.process_index for device in jax.devices())
    kind = jax.devices()[0].platform
    check_devices([counts[process] for process in range(process_count())], kind, environment)
    processes = process_count()
    return f"{processes} process{'es' if processes > 1 else ''} x {jax.local_device_count()} {kind}"


def check_devices(counts: list[int], platform: str, environment: Mapping[str, str]) -> None:
    """Raises InputError if processes have unequal numbers of devices, or GPUs that SLURM gave to this node are idle.

    The usual mistake is one task per node: JAX then uses one GPU of each, without a word about the rest.

    Args:
      counts: devices of each process.
      platform: of the devices: cpu, gpu or tpu.
    """
    if len(set(counts)) > 1:
        found = ", ".join(f"process {process} has {count}" for process, count in enumerate(counts))
        raise InputError(f"devices: {found}; expected the same number for all, check JAX_LOCAL_DEVICE_IDS")
    given = environment.get("SLURM_GPUS_ON_NODE", "")
    if platform != "gpu" or len(counts) == 1 or not given.isdecimal():
        return
    tasks = _tasks_on_node(environment)
    if tasks and tasks * counts[0] < int(given):
        every = ",".join(map(str, range(int(given))))
        raise InputError(
            f"devices: SLURM gave this node {given} GPUs, but its {tasks} task(s) use {tasks * counts[0]}; start one "
            f"task for each GPU (srun --ntasks-per-node={given}), or one task a node with JAX_LOCAL_DEVICE_IDS={every}"
        )


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """Tasks of this step on this node, from `SLURM_STEP_TASKS_PER_NODE` (`4(x2),3`); 0 if SLURM does not set it."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_NTASKS_PER_NODE", "")
    counts: list[int] = []
    for part in filter(None, text.split(",")):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else (counts[0] if counts else 0)
