"""What programs are built for."""

from blue.runtime.shapes import Precision, Sampling, Shapes


def test_a_batch_of_prompts_alone():
    whole = Shapes(batch=8, prompt=64, group=4, completion=32)
    assert whole.prompts() == Shapes(8, 64) == Shapes(8, 64, 1, 0)
    assert whole.prompts().prompts() == whole.prompts()


def test_equal_settings_name_one_program():
    """Builders are cached by them, so they must hash by value."""
    make = lambda: (
        Shapes(8, 64, 4, 32),
        Sampling(0.7, 0, 1.0, (1, 2), 0),
        Precision("float32", "bfloat16"),
    )
    assert hash(make()) == hash(make()) and make() == make()
    assert Precision("float32", "bfloat16").remat == ""  # keeps all
    assert Precision("float32", "bfloat16", "layers") != make()[2]
