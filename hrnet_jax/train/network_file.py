"""Reads the trained network that a key of the configuration names."""

import logging
from typing import Any, NamedTuple

from hrnet_jax.checkpoints import foreign, weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.pytorch import convert, hub
from hrnet_jax.runtime import storage

logger = logging.getLogger(__name__)


class NetworkFile(NamedTuple):
    """A trained network.

    Attributes:
      variables: {"params", "batch_stats"}.
      model: what builds it, the arguments of `create_model`.
      class_names: of its classes; None: the file does not say.
    """

    variables: dict[str, Any]
    model: dict[str, Any]
    class_names: list[str] | None


def read(key: str, path: str, *, backbone_only: bool = False) -> NetworkFile:
    """The network at `path`, with a summary in the log.

    Args:
      key: of the configuration, for the message.
      path: a run's folder, a weights file, a PyTorch file, an address on the hub, or the name of
        weights in the package.
      backbone_only: PyTorch files need no head, and any head is accepted.

    Raises:
      FileNotFoundError: if there is no such folder, file or name.
      ValueError: for a damaged file or an unknown network.
    """
    if not (hub.is_address(path) or weights_file.find(path) or storage.path(path).exists()):
        raise FileNotFoundError(
            f"config.{key}={path!r}: no such file or folder; {weights_file.known()}"
        )
    if foreign.is_foreign(path):
        converted = convert.convert(path, backbone_only=backbone_only)
        logger.info("%s", converted.report.summary())
        return NetworkFile(converted.variables, converted.model.to_json(), None)
    found = load_checkpoint(path)
    return NetworkFile(found.variables, found.metadata["model"], found.metadata["classes"]["names"])
