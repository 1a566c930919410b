"""Samples made on other machines: the tf.data service, with the same sequence as without it.

Each address is a server of its own (`python -m hrnet_jax.tools.serve_data`), which opens the data
as the run's configuration says. Of K servers the first makes every K-th batch, the second those one
step later, and so on; they are taken in turn. So neither the number of servers nor their speed
changes what comes, and the state is still nothing but the step.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import script_ops

_TOKEN = "hrnet_jax/load"

Load = Callable[..., tuple[np.ndarray, ...]]


def call_on_server(load: Load, inputs: tuple, types: tuple[tf.DType, ...]) -> list[tf.Tensor]:
    """As `tf.numpy_function`, but calls the server's own function instead of `load`."""
    inputs = [tf.convert_to_tensor(value) for value in inputs]
    return tf.raw_ops.PyFunc(input=inputs, token=_TOKEN, Tout=types)


def distribute(dataset: tf.data.Dataset, address: str) -> tf.data.Dataset:
    """The dataset, computed by the server at HOST:PORT."""
    options = tf.data.Options()
    # The only state outside of the graph is the function that the server has, too.
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    return dataset.with_options(options).apply(
        tf.data.experimental.service.distribute(
            processing_mode=tf.data.experimental.service.ShardingPolicy.OFF,
            service=f"grpc://{address}",
        )
    )


class Server:
    """A dispatcher with one worker, in this process, that makes samples with `load`."""

    def __init__(self, load: Load, port: int, host: str):
        # TensorFlow's registry of functions holds them weakly and names them by number; graphs of
        # other processes need a name that is always the same.
        self._load = load
        script_ops._py_funcs._funcs[_TOKEN] = load
        service = tf.data.experimental.service
        self._dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
        dispatcher_port = self._dispatcher.target.rpartition(":")[2]
        self.address = f"{host}:{dispatcher_port}"
        self._worker = service.WorkerServer(
            service.WorkerConfig(
                dispatcher_address=f"localhost:{dispatcher_port}",
                worker_address=f"{host}:%port%",
            )
        )

    def join(self) -> None:
        """Serves until the program is ended."""
        self._dispatcher.join()
