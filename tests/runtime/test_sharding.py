import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from blue.models import decoder, gemma3, qwen3
from blue.models.params import abstract_params
from blue.runtime import programs, sharding


def test_mesh_fills_in_what_is_left():
    assert dict(sharding.make_mesh(2, -1, 2).shape) == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }
    assert sharding.batch_shards(sharding.make_mesh(2, 2, 2)) == 4


@pytest.mark.parametrize("sizes", [(3, -1, 1), (1, 4, 1), (-1, -1, 1), (0, -1, 1)])
def test_a_mesh_that_does_not_match_is_told_with_its_numbers(sizes):
    with pytest.raises(ValueError, match="8 devices|at most one"):
        sharding.make_mesh(*sizes)


def test_large_parameters_of_the_real_model_are_split_everywhere():
    mesh = sharding.make_mesh(1, 8, 1)
    shapes = abstract_params(gemma3.gemma3_1b(), mesh, "float32")
    a_chip = sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) for x in jax.tree.leaves(shapes)
    )
    assert a_chip < 1.01 * 999_885_952 / 8  # only the norms are whole on each chip


def test_an_axis_that_does_not_divide_is_dropped():
    mesh = sharding.make_mesh(1, 4, 2)  # Gemma3-1B has one key/value head
    shapes = abstract_params(gemma3.gemma3_1b(), mesh, "float32")
    assert shapes["layers"]["k"].sharding.spec == PartitionSpec(
        None, "fsdp", None, None
    )


def test_a_vocabulary_that_does_not_divide_is_split_by_columns():
    mesh = sharding.make_mesh(1, 8, 1)
    shapes = abstract_params(qwen3.qwen3_embedding_0_6b(), mesh, "float32")
    assert shapes["embed"].shape == (151_669, 1024)
    assert shapes["embed"].sharding.spec == PartitionSpec("tensor", "fsdp")


def test_to_the_devices_and_back():
    mesh = sharding.make_mesh(2, 2, 2)
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    placed = sharding.put({"x": x}, sharding.by_batch(mesh))
    assert placed["x"].addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_array_equal(sharding.to_host(placed)["x"], x)


def test_the_part_of_fsdp_that_divides_a_model():
    devices = jax.devices()[:1] * 256  # shapes need no more
    split = sharding.Mesh(np.asarray(devices).reshape(1, 256, 1), sharding.AXES)
    shapes = jax.eval_shape(
        lambda key: decoder.init_params(gemma3.gemma3_1b(), key), jax.random.key(0)
    )
    assert sharding.dividing_fsdp(shapes, split) == 128  # its width is 9 * 128
    assert sharding.dividing_fsdp(shapes, sharding.make_mesh(1, 8, 1)) == 8


def test_arrays_cross_by_the_doors_alone():
    mesh = sharding.make_mesh(1, 8, 1)
    ones, rows = np.ones(8, np.float32), sharding.by_batch(mesh)
    args = (programs.rows(mesh, (8,), np.float32),)
    double = programs.compile_program(lambda x: 2 * x, args, out_shardings=rows)
    with sharding.no_hidden_transfers():
        on_devices = sharding.put(ones, rows)
        assert sharding.to_host(double(on_devices)).sum() == 16
        for hidden in (
            lambda: double(ones),
            lambda: on_devices * 2,
            lambda: jax.numpy.asarray(ones),
        ):
            with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
                hidden()
    assert sharding.to_host(double(ones)).sum() == 16  # outside nothing is guarded
