# SPDX-License-Identifier: Apache-2.0
"""Reading compiled programs, and their accounting, on one worked out by hand."""

import pytest

from rfjax.plan import hlo
from rfjax.plan.accounting import account, convolution_flops

PROGRAM = """\
HloModule step, is_scheduled=true

%fused_product (p.0: bf16[64,128], p.1: bf16[128,256]) -> bf16[64,256] {
  %p.0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[64,256]{1,0:T(8,128)(2,1)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%fused_update (p.0: f32[7,8,128], p.1: f32[8,128], p.2: s32[]) -> f32[7,8,128] {
  %p.0 = f32[7,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %p.2 = s32[] parameter(2)
  %row = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%p.1)
  ROOT %dus = f32[7,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p.0, %row, %p.2, %p.2)
}

%fused_read (p.0: f32[7,8,128], p.1: s32[]) -> f32[8,128] {
  %p.0 = f32[7,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[] parameter(1)
  %slice = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={1,8,128}
  %row = f32[8,128]{1,0:T(8,128)} bitcast(%slice)
  ROOT %twice = f32[8,128]{1,0:T(8,128)} add(%row, %row)
}

%body (state: (s32[], f32[7,8,128], bf16[64,128], bf16[128,256])) -> (s32[], f32[7,8,128], bf16[64,128], bf16[128,256]) {
  %state = (s32[], f32[7,8,128]{2,1,0:T(8,128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, /*index=3*/bf16[128,256]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = f32[7,8,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %a = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %b = bf16[128,256]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=3
  %product = bf16[64,256]{1,0:T(8,128)(2,1)} fusion(%a, %b), kind=kOutput, calls=%fused_product, metadata={op_name="block/dot"}, backend_config={"estimated_cycles":"500"}
  %read = f32[8,128]{1,0:T(8,128)} fusion(%stack, %i), kind=kLoop, calls=%fused_read, backend_config={"estimated_cycles":"9"}
  %written = f32[7,8,128]{2,1,0:T(8,128)} fusion(%stack, %read, %i), kind=kLoop, calls=%fused_update
  %gathered = bf16[256,256]{1,0:T(8,128)(2,1)} all-gather(%product), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true
  ROOT %next = (s32[], f32[7,8,128]{2,1,0:T(8,128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[128,256]{1,0:T(8,128)(2,1)}) tuple(%i, %written, %a, %b)
}

%test (state: (s32[], f32[7,8,128], bf16[64,128], bf16[128,256])) -> pred[] {
  %state = (s32[], f32[7,8,128]{2,1,0:T(8,128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[128,256]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(7)
  ROOT %more = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: (s32[], f32[7,8,128], bf16[64,128], bf16[128,256])) -> (s32[], f32[7,8,128], bf16[64,128], bf16[128,256]) {
  %x = (s32[], f32[7,8,128]{2,1,0:T(8,128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[128,256]{1,0:T(8,128)(2,1)}) parameter(0)
  %fast = bf16[38,128]{1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %copied = bf16[38,128]{1,0:T(8,128)(2,1)} copy(%fast), backend_config={"estimated_cycles":"70"}
  %kernel = bf16[64,128]{1,0:T(8,128)(2,1)} custom-call(%copied), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"1000"}}}
  ROOT %loop = (s32[], f32[7,8,128]{2,1,0:T(8,128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[128,256]{1,0:T(8,128)(2,1)}) while(%x), condition=%test, body=%bodyKNOWN
}
"""  # noqa: E501


def rows(text):
    program = hlo.parse(text)
    return {r.name: r for r in account(program, mesh_shape={"data": 2, "fsdp": 4})}


@pytest.fixture
def table():
    return rows(PROGRAM.replace("KNOWN", ""))


def test_trip_count_comes_from_the_exit_test_or_from_the_compiler(table):
    assert table["product"].count == 7
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    assert rows(PROGRAM.replace("KNOWN", known))["product"].count == 5


def test_a_loop_without_a_readable_trip_count_is_refused():
    text = PROGRAM.replace("KNOWN", "").replace("constant(7)", "parameter(1)")
    with pytest.raises(ValueError, match=r"loop loop must have one constant in its"):
        rows(text)


def test_products_count_flops_cycles_and_their_source(table):
    product = table["product"]
    assert product.op_class == "matmul"
    assert product.flops == 7 * 2 * 64 * 128 * 256
    assert product.cycles == 7 * 500
    assert product.source == "block/dot"


def test_slices_and_updates_count_only_what_they_touch(table):
    # One row in and one out, plus the few bytes of the index.
    both_rows = pytest.approx(7 * 2 * 8 * 128 * 4, rel=2e-3)
    assert table["read"].op_class == "elementwise"
    assert table["read"].hbm_bytes == both_rows
    assert table["written"].op_class == "copy"
    assert table["written"].hbm_bytes == both_rows  # not the stack of seven


def test_vmem_is_free_and_whole_tiles_count(table):
    # 38 rows of bfloat16 lie in 40; the side in VMEM costs nothing.
    assert table["copied"].hbm_bytes == 40 * 128 * 2
    assert "fast" not in table


def test_kernels_count_the_flops_that_they_declare(table):
    assert table["kernel"].op_class == "kernel"
    assert table["kernel"].flops == 1000
    assert table["kernel"].cycles == 0


def test_collectives_are_read_with_axis_and_bytes(table):
    collective = table["gathered"].collective
    assert (collective.kind, collective.axes) == ("all-gather", "fsdp")
    assert collective.group_size == 4
    assert collective.moved_bytes == 7 * 3 / 4 * 256 * 256 * 2
    assert not collective.is_async


def test_batched_products_written_as_convolutions():
    """A batch of 5 products [3, 4] x [4, 2]: the batch is a spatial dim."""
    value = convolution_flops(
        hlo.Shape("bf16", (5, 3, 4)),
        hlo.Shape("bf16", (5, 4, 2)),
        hlo.Shape("bf16", (5, 3, 2)),
        "window={size=5 stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0io->0bf",
    )
    assert value == 2 * 5 * 3 * 4 * 2


def test_plain_convolutions_do_not_count_padding():
    """A window of 3 over 4 positions, padded by 1: 2 + 3 + 3 + 2 products."""
    value = convolution_flops(
        hlo.Shape("f32", (1, 4, 1)),
        hlo.Shape("f32", (3, 1, 1)),
        hlo.Shape("f32", (1, 4, 1)),
        "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
    )
    assert value == 2 * 10


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="must have an ENTRY computation"):
        hlo.parse("HloModule empty\n")


def test_attributes_of_kernels_may_span_several_lines():
    """What follows such a kernel still belongs to the same computation."""
    text = """\
HloModule spread

ENTRY %main (x: bf16[64,128]) -> bf16[64,128] {
  %x = bf16[64,128]{1,0} parameter(0)
  %kernel = bf16[64,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"blocks": "896"
}}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000"}}}
  ROOT %copy = bf16[64,128]{1,0} copy(%kernel)
}
"""  # noqa: E501
    kernel, copy = account(hlo.parse(text), mesh_shape={"data": 1})
    assert (kernel.op_class, kernel.flops) == ("kernel", 1000)
    assert copy.op_class == "copy"
