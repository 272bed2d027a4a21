"""Floors and scaling by hand; memory of sharded shapes; the order of the meshes."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.config import Mesh
from srsjax.hardware import Chip
from srsjax.model.bert import BertConfig
from srsjax.planning import devices, memory, search
from srsjax.planning.floor import Floor, floor, weak_scaling

CHIP = Chip("a chip", flops=100.0, memory=1.0, bandwidth=10.0, network=5.0)


def test_the_longest_resource_is_the_floor():
    found = floor(CHIP, flops=200.0, accessed=50.0, sent=5.0)
    assert found == Floor(2.0, 5.0, 1.0)
    assert found.step == 5.0 and found.bound == "memory"


def test_weak_scaling_by_hand():
    one, two, many = weak_scaling(CHIP, Floor(2.0, 3.0, 9.0), gradient_bytes=10.0, sizes=(1, 2, 4))
    assert one == (1, 0.0, 1.0)
    assert two == (2, 2.0, 3 / 5)
    assert many == (4, 3.0, 3 / 6)


def test_a_device_holds_its_part_of_a_sharded_array():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:8])
    part = jax.ShapeDtypeStruct((8, 16), np.float32, sharding=NamedSharding(mesh, P("a", "b")))
    whole = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, P()))
    assert memory.on_device({"x": part, "y": whole}) == 4 * 4 * 4 + 4


def test_a_compiler_that_says_too_little_is_not_believed():
    compiled = jax.jit(lambda x: x + 1).lower(np.ones(256, np.float32)).compile()
    counted, why = memory.temporary(compiled, 1e6, "what is needed")
    assert counted == 1e6 and "less than what is needed" in why
    believed, why = memory.temporary(compiled, 100.0, "what is needed")
    assert believed >= 1024 and why == ""  # the result


BERT = BertConfig(100, hidden_size=32, num_heads=4, intermediate_size=64)


def test_meshes_from_the_fastest_on():
    assert search.meshes(64, BERT, 8)[:3] == [Mesh(8, 1, 1), Mesh(1, 8, 1), Mesh(4, 1, 2)]
    assert [mesh.tensor for mesh in search.meshes(4, BERT, 8)] == [2, 2, 4, 4]  # four rows do not feed eight devices
    assert search.meshes(3, BERT, 8) == []


class Core:
    """A device as JAX shows one of a TPU v4 slice: a core with the place of its chip."""

    device_kind = "TPU v4"

    def __init__(self, place: int):
        self.coords = (place, 0, 0)


@pytest.mark.parametrize(("cores", "share"), [(1, 1.0), (2, 0.5)])
def test_a_core_is_a_part_of_its_chip(cores, share):
    found = devices.device_chip([Core(place) for place in range(4) for _ in range(cores)])
    assert found.flops == share * 275e12 and found.memory == share * 32 * 2**30
