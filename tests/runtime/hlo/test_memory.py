from blue.runtime.hlo.memory import biggest_buffers, memory_bytes

MIB = 2**20


def test_the_largest_arrays_by_name(tpu):
    found = biggest_buffers(tpu("scan"), count=3)
    assert [b.shape for b in found] == [
        "f32[6,512,512]",
        "f32[6,64,512]",
        "bf16[8,512]",
    ]
    assert [b.name for b in found][1:] == ["ws", "x"]
    assert found[0].bytes == 6 * MIB


LOOPS = """HloModule loops

%fused (p: f32[8,128], q: s32[]) -> f32[128] {
  %p = f32[8,128]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %one = f32[1,128]{1,0} dynamic-slice(%p, %q, %q), dynamic_slice_sizes={1,128}
  ROOT %row = f32[128]{0} bitcast(%one)
}

%body (t: (s32[], f32[8,128], f32[128])) -> (s32[], f32[8,128], f32[128]) {
  %t = (s32[], f32[8,128]{1,0}, f32[128]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8,128]{1,0} get-tuple-element(%t), index=1
  %row.1 = f32[128]{0} fusion(%x, %i), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[8,128]{1,0}, f32[128]{0}) tuple(%i, %x, %row.1)
}

%done (t2: (s32[], f32[8,128], f32[128])) -> pred[] {
  %t2 = (s32[], f32[8,128]{1,0}, f32[128]{0}) parameter(0)
  ROOT %yes = pred[] constant(false)
}

ENTRY %main (a: f32[8,128], c: (s32[], f32[8,128], f32[128])) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %c = (s32[], f32[8,128]{1,0}, f32[128]{0}) parameter(1)
  %fixed = (s32[], f32[8,128]{1,0}, f32[128]{0}) while(%c), condition=%done, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %open = (s32[], f32[8,128]{1,0}, f32[128]{0}) while(%c), condition=%done, body=%body
  %near = f32[8,128]{1,0:S(1)} negate(%a)
  ROOT %sum = f32[8,128]{1,0} add(%a, %near)
}
"""  # noqa: E501


def test_what_moves_in_main_memory():
    """Of a matrix that a loop slices, the slice; nothing of the on-chip memory."""
    row, matrix = 128 * 4, 8 * 128 * 4
    turn = row + 4 + row  # the slice and its index are read, the row is written
    straight = matrix + 2 * matrix  # read by negate; read and written by add
    assert memory_bytes(LOOPS, a_turn=True) == turn
    assert memory_bytes(LOOPS) == 5 * turn + turn + straight
