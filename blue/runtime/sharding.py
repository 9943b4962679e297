"""The mesh, the shardings of parameters and batches, and transfers to and from the
host.

Axes ("data", "fsdp", "tensor"): replicate parameters, shard parameters, shard heads and
mlp. Batches are split over data and fsdp.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from blue.errors import UserError
from blue.runtime import distributed

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

TABLES = ("embed", "head")
# last name of a parameter's path -> axes of its dimensions, but the stack of layers
RULES: dict[str, P] = {
    # whole rows, so that a gather moves no single elements
    "embed": P(("tensor", "fsdp"), None),
    "head": P(("tensor", "fsdp"), None),
    "q": P("fsdp", "tensor", None),
    "k": P("fsdp", "tensor", None),
    "v": P("fsdp", "tensor", None),
    "o": P("tensor", None, "fsdp"),
    "gate": P("fsdp", "tensor"),
    "up": P("fsdp", "tensor"),
    "down": P("tensor", "fsdp"),
    # adapters (models/lora.py): A has the matrix's input axes, B its output axes
    "q_a": P("fsdp", None),
    "k_a": P("fsdp", None),
    "v_a": P("fsdp", None),
    "o_a": P("tensor", None, None),
    "gate_a": P("fsdp", None),
    "up_a": P("fsdp", None),
    "down_a": P("tensor", None),
    "q_b": P(None, "tensor", None),
    "k_b": P(None, "tensor", None),
    "v_b": P(None, "tensor", None),
    "o_b": P(None, "fsdp"),
    "gate_b": P(None, "tensor"),
    "up_b": P(None, "tensor"),
    "down_b": P(None, "fsdp"),
}


def make_mesh(
    data: int, fsdp: int, tensor: int, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices, or those given; one size may be -1, the devices left."""
    sizes, devices = [data, fsdp, tensor], list(devices or jax.devices())
    if sizes.count(-1) > 1:
        raise UserError(f"mesh sizes {tuple(sizes)}: at most one may be -1")
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh (data, fsdp, tensor) = {tuple(sizes)} does not match the "
            f"{len(devices)} devices; their product must, or one of them may be -1"
        )
    mesh = Mesh(np.asarray(devices).reshape(sizes), AXES)
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        _connect(mesh)
    return mesh


@functools.cache
def _connect(mesh: Mesh) -> None:
    """Sums once over the axes that programs sum over, on all processes together.

    gloo makes a group of devices at its first sum. It fails if one of them is 30 s
    late, for instance because it compiles. Later sums wait without limit.
    """
    distributed.wait_for_all()
    ones = np.ones(mesh.devices.shape, np.float32)
    sets = (AXES, AXES[:2], AXES[1:], *((axis,) for axis in AXES))
    wide = (tuple(a for a in axes if mesh.shape[a] > 1) for axes in sets)
    for axes in dict.fromkeys(wide):  # in the same order everywhere
        rest = P(*(None if axis in axes else axis for axis in AXES))
        dims = tuple(AXES.index(axis) for axis in axes)
        add = jax.jit(
            lambda x, dims=dims: x.sum(dims, keepdims=True),
            out_shardings=NamedSharding(mesh, rest),
        )
        add(put(ones, NamedSharding(mesh, P(*AXES)))).block_until_ready()


def batch_shards(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def param_shardings(tree: Any, mesh: Mesh, *, axes: tuple[str, ...] = AXES) -> Any:
    """A sharding for every leaf of params, or of a state that mirrors them, by name.

    Only the given mesh axes are used: ("tensor",) is the decode layout, which needs no
    gather of weights. An axis that does not divide its dimension is dropped; leaves
    without a rule are replicated.
    """

    def one(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _spec(path, leaf.shape, mesh, axes))

    return jax.tree_util.tree_map_with_path(one, tree)


def _spec(path: tuple, shape: tuple[int, ...], mesh: Any, axes: tuple[str, ...]) -> P:
    names = [getattr(entry, "key", getattr(entry, "name", "")) for entry in path]
    rule = RULES.get(str(names[-1]) if names else "", P())
    if names and names[-1] in TABLES and shape[0] % mesh.shape["fsdp"]:
        rule = P("tensor", "fsdp")  # 151,669 words have no useful divisor
    by_dim = (None,) * (len(shape) - len(rule)) + tuple(rule) if rule else ()
    dims = zip(by_dim, shape, strict=False)
    return P(*(_divide(axis, size, mesh, axes) for axis, size in dims))


def _divide(
    rule: str | tuple[str, ...] | None, size: int, mesh: Any, axes: tuple[str, ...]
) -> str | tuple[str, ...] | None:
    """The requested axes of a rule that divide the dimension."""
    names, parts = [], 1
    for axis in (rule,) if isinstance(rule, str) else rule or ():
        if axis in axes and size % (parts * mesh.shape[axis]) == 0:
            names.append(axis)
            parts *= mesh.shape[axis]
    return tuple(names) if len(names) > 1 else names[0] if names else None


def dividing_fsdp(tree: Any, mesh: Mesh) -> int:
    """The largest part of the mesh's `fsdp` that divides every layer's matrices.

    If it is less than `fsdp`, some matrices are replicated, with gradients and moments.
    """
    size, sides = mesh.shape["fsdp"], []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        rule = RULES.get(str(getattr(path[-1], "key", "")), P())
        by_dim = zip(reversed(rule), reversed(leaf.shape), strict=False)
        sides += [dim for axis, dim in by_dim if axis == "fsdp"]
    return math.gcd(size, *sides)


# --- inside a program. Without these constraints the compiler may gather the
# activations of all users to the weights; with them it gathers the weights to the
# users.


def keep_rows(tree: Any) -> Any:
    """Keeps the leading axis of activations split over data and fsdp, others whole.

    Without a mesh (`jax.set_mesh`, which programs.py calls) it does nothing.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, BATCH), tree)


def keep_kv(tree: Any, num_kv_heads: int) -> Any:
    """Keeps keys and values [B Q S H], Q a multiple of the heads, in the sharding of
    `kv_shardings` for one completion."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    keep = lambda x: jax.lax.with_sharding_constraint(
        x, _kv_spec(x, mesh, num_kv_heads)
    )
    return jax.tree.map(keep, tree)


def gather(tree: Any, dtype: Any) -> Any:
    """Gathers the weights of a layer: matrices in `dtype`, sharded over `tensor` only.

    They are cast first, so that half the bytes are sent. Gradients return to the stored
    shards. Vectors (norms) are unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def one(path: tuple, x: Any) -> Any:
        if x.ndim < 2:
            return x
        x = x.astype(dtype)
        if mesh.empty:
            return x
        stored = _spec(path, x.shape, mesh, AXES)
        return _gather(x, stored, _spec(path, x.shape, mesh, ("tensor",)))

    return jax.tree_util.tree_map_with_path(one, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: Any, stored: P, used: P) -> Any:
    # the barrier keeps the cast before the transfer
    x = jax.lax.optimization_barrier(jax.lax.with_sharding_constraint(x, stored))
    return jax.lax.with_sharding_constraint(x, used)


_gather.defvjp(
    lambda x, stored, used: (_gather(x, stored, used), None),
    lambda stored, used, _, g: (jax.lax.with_sharding_constraint(g, stored),),
)


def kv_shardings(tree: Any, mesh: Mesh) -> Any:
    """Rows over data and fsdp; heads of keys and values [B K S H] over tensor, as the
    weights."""
    return jax.tree.map(lambda x: NamedSharding(mesh, _kv_spec(x, mesh)), tree)


def _kv_spec(x: Any, mesh: Any, heads: int = 0) -> P:
    split = x.ndim == 4 and (heads or x.shape[1]) % mesh.shape["tensor"] == 0
    return P(*BATCH, "tensor") if split else BATCH


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def by_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over data and fsdp."""
    return NamedSharding(mesh, BATCH)


def put(tree: Any, shardings: Any) -> Any:
    """Host arrays -> device arrays.

    Every host has the whole (small) array. Inside `no_hidden_transfers` only this and
    `to_host` may transfer arrays.
    """

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

    with jax.transfer_guard("allow"):
        if isinstance(shardings, NamedSharding):
            return jax.tree.map(lambda x: one(x, shardings), tree)
        return jax.tree.map(one, tree, shardings)


def to_host(tree: Any) -> Any:
    """Device arrays -> numpy, whole, on every host. Called by every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def one(x: Any) -> np.ndarray:
        # Arrays complete on this host need no gather, which would concatenate the
        # copies.
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            if not x.is_fully_replicated:
                return np.asarray(multihost_utils.process_allgather(x, tiled=True))
            x = x.addressable_data(0)
        return np.asarray(x)

    with jax.transfer_guard("allow"):
        return jax.tree.map(one, tree)


def no_hidden_transfers() -> Any:
    """A context in which only `put` and `to_host` may transfer arrays.

    Any other transfer raises: for instance a host array as a program's argument, or an
    operation outside programs. It holds in this thread only. On the CPU, whose memory
    is the host's, transfers to the host are not checked.
    """
    return jax.transfer_guard("disallow")


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes with shardings: what programs are compiled for."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
