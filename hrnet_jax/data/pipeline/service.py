"""Samples made on other machines with the tf.data service, in the same sequence as without it.

Each address is a separate server (`python -m hrnet_jax.tools.serve_data`), which opens the dataset
as the run's configuration says. Of K servers the first makes batches 0, K, 2K, ..., the second
batches 1, K + 1, ..., and so on; the run takes them in turn. So the number of servers and their
speed do not change the batches, and the step is still the only state.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import script_ops

_TOKEN = "hrnet_jax/load"

Load = Callable[..., tuple[np.ndarray, ...]]


def call_on_server(load: Load, inputs: tuple, types: tuple[tf.DType, ...]) -> list[tf.Tensor]:
    """Like `tf.numpy_function`, but calls the function of the server instead of `load`."""
    inputs = [tf.convert_to_tensor(value) for value in inputs]
    return tf.raw_ops.PyFunc(input=inputs, token=_TOKEN, Tout=types)


def _register(load: Load) -> None:
    """Makes `load` the function that `call_on_server` calls in this process.

    TensorFlow's public functions name a registered function by a number of the process; the graph
    of a run needs a name that is the same in every process. So this writes to the private registry
    `script_ops._py_funcs`, a WeakValueDictionary from token to function in TensorFlow 2.x: `load`
    is released with the server. If a TensorFlow version changes it, test_service.py fails here.
    """
    script_ops._py_funcs._funcs[_TOKEN] = load


def distribute(dataset: tf.data.Dataset, address: str) -> tf.data.Dataset:
    """The dataset, computed by the server at HOST:PORT."""
    options = tf.data.Options()
    # The only state outside of the graph is the function, which the server has as well.
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
        """
        Args:
            load: makes a sample; one function for all servers of a process.
            port: port to listen on; 0: any free port.
            host: name of this machine for others.
        """
        self._load = load
        _register(load)
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
        """Serves until the program is stopped."""
        self._dispatcher.join()
