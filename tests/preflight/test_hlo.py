"""The reader of compiled programs, on programs written by hand and on one of XLA's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrnet_jax.preflight import hlo

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%fused (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %inner = bf16[4,8]{1,0} multiply(%p, %p), metadata={op_name="jit(step)/head/mul"}, \
backend_config={"estimated_cycles":"7"}
}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]{1,0}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %fusion.1 = bf16[4,8]{1,0:T(8,128)(2,1)} fusion(%x), kind=kLoop, calls=%fused, \
metadata={op_name="jit(step)/transpose(jvp(HRNetModel))/backbone/stage3/module0/mul"}, \
backend_config={"window_config":{},"estimated_cycles":"100"}
  %permute = (bf16[1,8]{1,0}, bf16[1,8]{1,0}, u32[], u32[]) collective-permute-start(%fusion.1), \
source_target_pairs={{0,1}}, backend_config={"estimated_cycles":"10"}
  %done = bf16[1,8]{1,0} collective-permute-done(%permute)
  ROOT %next = (s32[], bf16[4,8]{1,0}) tuple(%i, %fusion.1)
}

%condition (state.1: (s32[], bf16[4,8])) -> pred[] {
  %state.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %bound = s32[] constant(3)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main (x.1: bf16[4,8], y: f32[48]) -> f32[48] {
  %x.1 = bf16[4,8]{1,0} parameter(0)
  %y = f32[48]{0} parameter(1)
  %all-reduce.1 = (f32[48]{0}, f32[2,3]{1,0}) all-reduce(%y, %z), replica_groups={}, \
to_apply=%add, metadata={op_name="jit(step)/optimizer"}, backend_config={"estimated_cycles":"50"}
  %gather = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%x.2), dimensions={0}
  %while.1 = (s32[], bf16[4,8]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[48]{0} fusion(%y), kind=kLoop, calls=%fused, \
metadata={op_name="jit(step)/jvp(HRNetModel)/rematted_computation/head/hidden/bn/add"}, \
backend_config={"estimated_cycles":"1000"}
}
"""
KNOWN = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')


def test_what_runs_how_often():
    program = hlo.instructions(PROGRAM)
    times = {i.name: i.count for i in program if not i.fused}
    assert (times["fusion.1"], times["out"]) == (3, 1)
    assert {i.name: i.count for i in hlo.instructions(KNOWN)}["fusion.1"] == 5
    # Once for the loop's three rounds and the end.
    assert sum(i.count for i in program if i.name == "inner") == 4
    assert all(i.fused for i in program if i.name in ("inner", "sum"))
    assert not any(i.name == "less" for i in program)


def test_cycles_count_loops_and_no_parts_of_fusions():
    assert hlo.cycles(hlo.instructions(PROGRAM)) == 3 * (100 + 10) + 50 + 1000
    assert hlo.cycles(hlo.instructions(KNOWN)) == 5 * (100 + 10) + 50 + 1000


def test_sizes():
    by_name = {i.name: i for i in hlo.instructions(PROGRAM)}
    assert by_name["fusion.1"].arrays == (("bf16", (4, 8)),)
    assert by_name["fusion.1"].bytes == 64
    assert by_name["all-reduce.1"].bytes == 4 * 48 + 4 * 6
    assert by_name["sum"].bytes == 4


def test_collectives():
    assert hlo.collectives(hlo.instructions(PROGRAM)) == {
        "all-gather": {"count": 1, "bytes": 64, "cycles": 0},
        "all-reduce": {"count": 1, "bytes": 216, "cycles": 50},
        "collective-permute": {"count": 3, "bytes": 48, "cycles": 30},
    }


def test_contributors():
    found = list(hlo.contributors(hlo.instructions(PROGRAM)))
    assert dataclasses.astuple(found[0]) == ("head/hidden/bn", "again", 1000, 192, 192, 1)
    assert (found[1].module, found[1].pass_) == ("backbone/stage3/module0", "backward")
    assert (found[1].cycles, found[1].bytes, found[1].read, found[1].kernels) == (300, 192, 192, 3)
    assert {(part.module, part.pass_) for part in found[2:]} == {("rest", "forward")}


LOOP = """\
HloModule jit_loop

%update (stack: f32[10,8], row: f32[8], at: s32[]) -> f32[10,8] {
  %stack = f32[10,8]{1,0} parameter(0)
  %row = f32[8]{0} parameter(1)
  %at = s32[] parameter(2)
  %double = f32[1,8]{1,0} broadcast(%row)
  ROOT %new = f32[10,8]{1,0} dynamic-update-slice(%stack, %double, %at)
}

%look (stack.1: f32[10,8], at.1: s32[]) -> f32[1,8] {
  %stack.1 = f32[10,8]{1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  ROOT %found = f32[1,8]{1,0} dynamic-slice(%stack.1, %at.1), dynamic_slice_sizes={1,8}
}

ENTRY %main (p: f32[10,8], q: f32[8], i: s32[]) -> f32[10,8] {
  %p = f32[10,8]{1,0} parameter(0)
  %q = f32[8]{0} parameter(1)
  %i = s32[] parameter(2)
  %put = f32[10,8]{1,0} fusion(%p, %q, %i), kind=kLoop, calls=%update
  %get = f32[1,8]{1,0} fusion(%put, %i), kind=kLoop, calls=%look
  %conv = (f32[4,8]{1,0}, u8[1000]{0}) custom-call(%get, %p), custom_call_target="library"
  ROOT %whole = f32[10,8]{1,0} add(%put, %p)
}
"""


def test_bytes_written_and_read():
    found = {i.name: (i.written, i.read) for i in hlo.instructions(LOOP) if i.is_kernel}
    assert found == {
        "put": (32, 32 + 4),  # in place: a row of the ten
        "get": (32, 32 + 4),
        "conv": (4 * 32, 32 + 320),  # without its workspace
        "whole": (320, 640),
    }


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("jit(s)/jvp(M)/backbone/stage2/module0/branch1/conv", "backbone/stage2/module0"),
        ("jit(s)/transpose(jvp(M))/head/classifier/dot_general", "head/classifier/dot_general"),
        ("jit(s)/backbone/stage3/module0_to_module3/while", "backbone/stage3/module0_to_module3"),
        ("jit(step)/reduce_sum", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_modules(name, module):
    assert hlo.module_of(name) == module


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.instructions("module @jit_step {}")


def test_a_program_of_xla():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def f(x):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x), x).sum()

    x = jax.device_put(np.ones((16, 4), np.float32), split)
    program = hlo.instructions(jax.jit(f).lower(x).compile().as_text())
    assert hlo.collectives(program)["all-reduce"]["bytes"] == 4
    assert any(i.count == 7 for i in program)
