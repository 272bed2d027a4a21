"""Which launcher started the processes, what is refused, and that no GPU of a node stays idle unnoticed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from srsjax.distributed import check_devices, launch
from srsjax.errors import InputError

OURS = {"SRSJAX_COORDINATOR": "host:1234", "SRSJAX_NUM_PROCESSES": "4", "SRSJAX_PROCESS_ID": "1"}
# What srun gives a task of two nodes with four tasks each.
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_GPUS_ON_NODE": "4",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SRSJAX_NUM_PROCESSES": "1"},
        SLURM | {"SRSJAX_NUM_PROCESSES": "1"},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_one_process_joins_nobody(environment):
    assert launch(environment) is None


def test_our_variables_decide_before_any_launcher():
    for environment in (OURS, SLURM | OURS):
        assert launch(environment) == {
            "coordinator_address": "host:1234",
            "num_processes": 4,
            "process_id": 1,
            "cluster_detection_method": "deactivate",
        }


def test_launchers_that_jax_knows_are_left_to_it():
    assert launch(SLURM) == {} and launch({"OMPI_COMM_WORLD_SIZE": "2"}) == {}
    # Each task sees its own GPU only: it is number 0 there, whatever the task's local number.
    assert launch(SLURM | {"CUDA_VISIBLE_DEVICES": "3"}) == {"local_device_ids": [0]}
    assert launch(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == {}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SRSJAX_COORDINATOR": "host:1"}, "SRSJAX_COORDINATOR set, but not SRSJAX_NUM_PROCESSES, SRSJAX_PROCESS_ID"),
        ({"SRSJAX_NUM_PROCESSES": "2"}, "set, but not SRSJAX_COORDINATOR, SRSJAX_PROCESS_ID"),
        (OURS | {"SRSJAX_PROCESS_ID": "4"}, "found 4, expected less than SRSJAX_NUM_PROCESSES 4"),
        (OURS | {"SRSJAX_PROCESS_ID": "-1"}, "found '-1', expected a whole number of at least 0"),
        (OURS | {"SRSJAX_NUM_PROCESSES": "two"}, "found 'two', expected a whole number of at least 1"),
        (OURS | {"SRSJAX_COORDINATOR": "host"}, "found 'host', expected host:port"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, "one process outside of srun"),
        ({"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "0"}, r"pip install 'jax\[k8s\]'"),
    ],
)
def test_half_set_variables_are_refused(environment, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        launch(environment)


def test_every_gpu_of_a_node_is_used():
    check_devices([1] * 8, "gpu", SLURM)
    check_devices([4] * 2, "gpu", SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"})
    check_devices([4] * 2, "cpu", {})
    check_devices([4] * 2, "tpu", {})


@pytest.mark.parametrize(
    ("counts", "environment", "message"),
    [
        ([1, 1], SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, r"4 GPUs, but its 1 task\(s\) use 1; .*per-node=4"),
        ([1] * 6, SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,2"}, r"4 GPUs, but its 2 task\(s\) use 2"),
        ([4, 3], {}, "process 0 has 4, process 1 has 3"),
    ],
)
def test_an_idle_gpu_is_refused(counts, environment, message):
    with pytest.raises(InputError, match=message):
        check_devices(counts, "gpu", environment)


def test_a_single_process_starts_no_device_and_no_service():
    """What every command calls first costs a process alone nothing."""
    program = """
import jax
from jax._src import xla_bridge
from srsjax import distributed
distributed.initialize({})
assert distributed.on_first(lambda: 3) == 3 and distributed.is_first() and distributed.process_count() == 1
assert not jax.distributed.is_initialized() and not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
