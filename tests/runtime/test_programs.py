"""Programs: compiled once, for given shapes, before the loop."""

import jax
import numpy as np
import pytest

from blue.runtime import programs
from blue.runtime.sharding import by_batch, make_mesh, put, to_host


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, -1, 1)


@pytest.fixture
def double(mesh):
    """[8] -> twice as much; its argument is donated."""
    args = (programs.rows(mesh, (8,), np.float32),)
    return programs.compile_program(
        lambda x: 2 * x, args, out_shardings=by_batch(mesh), donate=(0,)
    )


def test_a_call_compiles_nothing_and_reuses_what_is_donated(mesh, double):
    programs.wait()
    count = programs.compiles["count"]
    values = np.arange(8, dtype=np.float32)
    given = put(values, by_batch(mesh))
    out = double(given)
    np.testing.assert_array_equal(to_host(out), 2 * values)
    assert given.is_deleted() and out.sharding == by_batch(mesh)
    np.testing.assert_array_equal(to_host(double(out)), 4 * values)
    assert programs.compiles["count"] == count > 0


def test_a_call_waits_for_its_own_compilation(mesh, double):
    ones = put(np.ones(8, np.float32), by_batch(mesh))
    np.testing.assert_array_equal(to_host(double(ones)), 2.0)


@pytest.mark.parametrize("shape, dtype", [((16,), np.float32), ((8,), np.int32)])
def test_other_arguments_than_those_it_was_built_for_are_an_error(
    mesh, double, shape, dtype
):
    with pytest.raises(TypeError, match="compiled"):
        double(put(np.ones(shape, dtype), by_batch(mesh)))


def test_an_error_of_a_program_comes_out_of_the_wait(mesh):
    def wrong(x):
        raise RuntimeError("no such program")

    programs.compile_program(wrong, (programs.rows(mesh, (8,), np.float32),))
    with pytest.raises(RuntimeError, match="no such program"):
        programs.wait()
    programs.wait()  # it is told once


def test_a_described_program_is_compiled_by_whoever_asks(mesh):
    traced = []

    def square(x):
        traced.append(x.shape)
        return x @ x.T

    with programs.descriptions_only():
        args = (programs.rows(mesh, (8, 4), np.float32),)
        program = programs.compile_program(square, args, out_shardings=by_batch(mesh))
    programs.wait()
    assert not traced and program.chips == 8
    with pytest.raises(AssertionError, match="only described"):
        program(np.ones((8, 4), np.float32))
    assert program.trace().jaxpr.out_avals[0].shape == (8, 8)
    assert program.compile().cost_analysis()["flops"] > 0
    later = programs.compile_program(lambda x: x, args)  # outside it is as ever
    ones = put(np.ones((8, 4), np.float32), by_batch(mesh))
    assert later(ones).shape == (8, 4)


def test_shardings_are_those_of_abstract_arrays(mesh):
    tree = {"x": programs.rows(mesh, (8, 2), np.float32)}
    assert programs.shardings_of(tree) == {"x": by_batch(mesh)}
    assert tree["x"].sharding.shard_shape((8, 2)) == (1, 2)
    assert jax.tree.leaves(tree)[0].dtype == np.float32
