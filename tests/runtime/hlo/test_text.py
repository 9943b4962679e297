import pytest

from blue.runtime.hlo import text


def loops(source):
    """How often each loop runs, None where the text does not tell."""
    module, found = text.parse(source), []
    for instructions in module.computations.values():
        siblings = {i.name: i for i in instructions}
        loops = (i for i in instructions if i.opcode == "while")
        found += [text.trip_count(module, i, siblings) for i in loops]
    return found


def test_how_often_loops_run(cpu_text, tpu):
    assert loops(cpu_text) == [6]  # the text says it
    assert loops(tpu("scan")) == [6, 6]  # forward and backward; counted from the code
    assert loops(tpu("windowed")) == [2]
    assert loops(tpu("kinds")) == []
    assert loops(UNTIL_DONE) == [None]


UNTIL_DONE = """HloModule until_done

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %t = (s32[], f32[4]{0}) parameter(0)
}

%done (t2: (s32[], f32[4])) -> pred[] {
  %t2 = (s32[], f32[4]{0}) parameter(0)
  %f2 = f32[4]{0} get-tuple-element(%t2), index=1
  ROOT %all = pred[] custom-call(%f2), custom_call_target="all_done"
}

ENTRY %main (c: (s32[], f32[4])) -> (s32[], f32[4]) {
  %c = (s32[], f32[4]{0}) parameter(0)
  ROOT %w = (s32[], f32[4]{0}) while(%c), condition=%done, body=%body
}
"""


@pytest.mark.parametrize(
    "shape, elements, padded",
    [
        ("bf16[1,2]{1,0:T(8,128)(2,1)S(1)}", 4, 8 * 128 * 2),
        ("f32[3,5,130]{2,0,1:T(4,128)}", 7800, 4 * 5 * 256 * 4),
        ("pred[7]{0}", 7, 7),
        ("s4[3]", 2, 2),
        ("f32[]{:T(128)}", 4, 512),
        ("(f8e5m2[2]{0}, /*index=1*/(u64[2], token[]))", 18, 18),
    ],
)
def test_bytes_of_shapes(shape, elements, padded):
    assert text.shape_bytes(shape) == elements
    assert sum(map(text.padded_bytes, text.arrays(shape))) == padded


def test_text_that_is_none_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        text.parse("module @jit_f attributes {}")
    with pytest.raises(ValueError, match="'x9'"):
        text.bits_of("x9")
