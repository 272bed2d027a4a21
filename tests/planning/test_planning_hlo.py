"""The reader of compiled programs, against programs whose collectives are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from srsjax.planning import hlo
from srsjax.planning.hlo import Collective


@pytest.fixture(scope="module")
def mesh():
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=axis_types, devices=jax.devices()[:8])


def compiled(mesh, body) -> str:
    """The text of `body` on every device's [16, 4] float32, 256 bytes, its results kept apart."""
    mapped = jax.shard_map(lambda x: body(x)[None], mesh=mesh, in_specs=P(), out_specs=P(("a", "b")), check_vma=False)
    return jax.jit(mapped).lower(jnp.ones((16, 4))).compile().as_text()


RING = [(i, (i + 1) % 4) for i in range(4)]


@pytest.mark.parametrize(
    ("body", "expected", "sent"),
    [
        (lambda x: jax.lax.psum(x, "b"), Collective("all-reduce", 1, 256, 4), 2 * 3 / 4 * 256),
        (lambda x: jax.lax.psum(x, "a"), Collective("all-reduce", 1, 256, 2), 256),
        (lambda x: jax.lax.psum(x, ("a", "b")), Collective("all-reduce", 1, 256, 8), 2 * 7 / 8 * 256),
        (lambda x: jax.lax.all_gather(x, "a"), Collective("all-gather", 1, 512, 2), 256),
        (lambda x: jax.lax.psum_scatter(x, "b", tiled=True), Collective("reduce-scatter", 1, 256, 4), 3 / 4 * 256),
        (lambda x: jax.lax.all_to_all(x, "b", 0, 0, tiled=True), Collective("all-to-all", 1, 256, 4), 3 / 4 * 256),
        (lambda x: jax.lax.ppermute(x, "b", RING), Collective("collective-permute", 1, 256, 8), 256),
    ],
)
def test_kind_bytes_and_group_of_a_collective(mesh, body, expected, sent):
    (found,) = hlo.collectives(compiled(mesh, body), 8)
    assert found == expected
    assert found.sent == sent


def test_a_collective_in_a_loop_runs_as_often_as_the_loop(mesh):
    def loop(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(jnp.sin(c), "b"), None), x, None, length=5)[0]

    (found,) = hlo.collectives(compiled(mesh, loop), 8)
    assert found == Collective("all-reduce", 5, 256, 4)


def test_partitioning_puts_the_collective_there(mesh):
    """Nobody writes it: a sum over a sharded axis, in bfloat16."""
    rows = jax.sharding.NamedSharding(mesh, P("b"))
    whole = jax.sharding.NamedSharding(mesh, P())
    program = jax.jit(lambda x: x.sum(0), in_shardings=rows, out_shardings=whole)
    found = hlo.collectives(program.lower(jnp.ones((8, 32))).compile().as_text(), 8)
    assert found == [Collective("all-reduce", 1, 128, 4)]


def test_a_program_of_one_device_has_none():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))).compile().as_text()
    assert hlo.collectives(text, 1) == [] and hlo.traffic_factor(text) == 1


def test_bytes_in_a_loop_count_as_often_as_it_runs():
    def product(length):
        def run(x, w):
            return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=length)[0]

        x = jnp.ones((256, 256))
        return hlo.traffic_factor(jax.jit(run).lower(x, x).compile().as_text())

    # A product and its tanh read three arrays and write two, all in the loop; outside one array or so is copied.
    eight, eighty = product(8), product(80)
    assert product(2) < eight < eighty
    assert 0.6 < (eighty - eight) / 72 < 1


def test_arrays_on_the_chip_are_no_traffic_of_its_memory():
    program = """ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(128)} parameter(0)
  %n = f32[8]{0:T(128)S(1)} negate(%p)
  ROOT %m = f32[8]{0:T(128)} negate(%n)
}
"""
    assert hlo.traffic_factor(program) == 0.5


# Lines as other compilers and other versions write them; none of these runs here.
FORMS = """HloModule m, num_partitions=16

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %b = f32[] parameter(1)
}

%all-reduce-scatter.1 (p: f32[64,8]) -> f32[16,8] {
  %p = f32[64,8]{1,0:T(8,128)} parameter(0)
  %r = f32[64,8]{1,0:T(8,128)S(1)} all-reduce(%p), replica_groups=[4,4]<=[16], to_apply=%sum
  ROOT %d = f32[16,8]{1,0:T(8,128)} dynamic-slice(%r, %z), dynamic_slice_sizes={16,8}
}

ENTRY %main (p: f32[64,8], q: bf16[32]) -> f32[16,8] {
  %p = f32[64,8]{1,0:T(8,128)} parameter(0)
  %q = bf16[32]{0:T(256)} parameter(1)
  %s = (bf16[32]{0:T(256)}, bf16[64]{0:T(256)}) all-gather-start(%q), replica_groups={{0,1},{2,3}}, dimensions={0}
  %g = bf16[64]{0:T(256)} all-gather-done(%s)
  %t = (f32[8]{0:T(128)}, /*index=1*/f32[4,2]{1,0:T(8,128)S(1)}) all-reduce(%x, %y), replica_groups={}, to_apply=%sum
  ROOT %f = f32[16,8]{1,0:T(8,128)} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_forms_of_other_compilers():
    assert hlo.collectives(FORMS, 16) == [
        Collective("all-gather", 1, 128, 2),
        Collective("all-reduce", 1, 64, 16),
        Collective("reduce-scatter", 1, 2048, 4),
    ]


def test_what_it_does_not_know_it_says():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.collectives("not a program", 8)
    with pytest.raises(ValueError, match="unknown form"):
        hlo.collectives(FORMS.replace("[4,4]<=[16]", "?"), 16)
