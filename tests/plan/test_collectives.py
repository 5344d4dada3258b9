# SPDX-License-Identifier: Apache-2.0
"""Groups of devices in every notation, and the mesh axes that they follow."""

import pytest

from rfjax.plan import hlo
from rfjax.plan.accounting import account
from rfjax.plan.collectives import name_axes, parse_groups

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, dim", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, dim", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, dim", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, dim", [(0, 2), (1, 3)]),
        ("channel_id=1", [(0, 1, 2, 3)]),
    ],
)
def test_groups_are_read_in_every_notation(text, groups):
    assert parse_groups(text, num_devices=4) == groups


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ([(0, 1, 2, 3), (4, 5, 6, 7)], "fsdp"),
        ([(0, 4), (1, 5), (2, 6), (3, 7)], "data"),
        ([(0, 1, 2, 3, 4, 5, 6, 7)], "data+fsdp"),
        ([(0, 1), (2, 3), (4, 5), (6, 7)], "?"),
    ],
)
def test_groups_are_named_by_mesh_axis(groups, axes):
    assert name_axes(groups, mesh_shape=MESH) == axes


PADDED = """\
HloModule gather

%fused_pad (p.0: bf16[38,2432]) -> bf16[2432,2432] {
  %p.0 = bf16[38,2432]{1,0} parameter(0)
  %zero = bf16[] constant(0)
  ROOT %pad = bf16[2432,2432]{1,0} pad(%p.0, %zero), padding=0_2394x0_0
}

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

ENTRY %main (x: bf16[38,2432], y: bf16[2432,2432]) -> bf16[2432,2432] {
  %x = bf16[38,2432]{1,0} parameter(0)
  %y = bf16[2432,2432]{1,0} parameter(1)
  %zeros = bf16[2432,2432]{1,0} fusion(%x), kind=kLoop, calls=%fused_pad
  %disguised = bf16[2432,2432]{1,0} all-reduce(%zeros), replica_groups=[2,4]<=[8], to_apply=%add
  %plain = bf16[2432,2432]{1,0} all-reduce(%y), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %sum = bf16[2432,2432]{1,0} add(%disguised, %plain)
}
"""  # noqa: E501


def test_an_all_gather_lowered_to_an_all_reduce_is_flagged():
    rows = {r.name: r for r in account(hlo.parse(PADDED), mesh_shape=MESH)}
    disguised, plain = (rows[n].collective for n in ("disguised", "plain"))
    assert disguised.kind == plain.kind == "all-reduce"
    assert disguised.from_padding
    assert not plain.from_padding  # control
    assert plain.moved_bytes == 2 * 3 / 4 * 2432 * 2432 * 2


TWO_SLICES = """\
HloModule sums

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[256,128]) -> f32[256,128] {
  %x = f32[256,128]{1,0} parameter(0)
  %near = f32[256,128]{1,0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %token = token[] after-all()
  %send = (f32[256,128]{1,0}, u32[], token[]) send(%near, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[256,128]{1,0}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %received = (f32[256,128]{1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %far = f32[256,128]{1,0} get-tuple-element(%received), index=0
}
"""  # noqa: E501


def test_what_joins_slices_is_a_send_through_the_host():
    """The program is that of one slice of 8 chips: its groups name 8 devices of 16."""
    rows = account(hlo.parse(TWO_SLICES), mesh_shape={"slice": 2, **MESH})
    near, far = (row.collective for row in rows)
    assert (near.axes, near.group_size) == ("fsdp", 4)
    assert (far.kind, far.axes, far.group_size) == ("all-reduce", "slice", 2)
    assert far.moved_bytes == 2 * 1 / 2 * 256 * 128 * 4
    assert not far.is_async
