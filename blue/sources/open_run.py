"""A run as its stages use it: config, workdir, devices, data."""

import dataclasses
import functools

from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.data.examples import Examples
from blue.data.log import Log
from blue.runtime.sharding import make_mesh
from blue.sources.data import load_examples, load_log


@dataclasses.dataclass(frozen=True)
class Run:
    """What a stage opens once and passes to the functions that load its models.

    `examples` are prepared, or read from the workdir, at first use: some stages need
    none.
    """

    config: ConfigDict
    workdir: str
    mesh: Mesh
    log: Log

    @functools.cached_property
    def examples(self) -> Examples:
        """The examples of train, validation and test users."""
        return load_examples(self.config, self.log, self.workdir)


def mesh_of(config: ConfigDict) -> Mesh:
    """The devices of this run, laid out along the axes of `config.mesh`."""
    return make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)


def open_run(config: ConfigDict, workdir: str) -> Run:
    """Lays out the devices and reads the log. Raises `UserError`."""
    return Run(config, workdir, mesh_of(config), load_log(config, workdir))
