# SPDX-License-Identifier: Apache-2.0
"""Groups of devices in both notations, and the mesh axes they follow."""

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
