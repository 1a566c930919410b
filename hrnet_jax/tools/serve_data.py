"""Makes training samples for runs on other machines (`config.data.service`).

python -m hrnet_jax.tools.serve_data --config=configs/NAME.py --config.data.root=DIR --port=5000
    [--host=NAME]

Use the configuration of the run: a server with another one raises an error in training. The server
reads the dataset itself and runs until it is stopped. Then start training with
--config.data.service="('HOST:5000',)".
"""

import socket

from absl import flags

from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.pipeline.segmentation import TrainingSamples
from hrnet_jax.data.pipeline.service import Server
from hrnet_jax.tools import config_flag, script
from hrnet_jax.train import build
from hrnet_jax.train.tasks import augmentation_of

_CONFIG = config_flag.define()
_PORT = flags.DEFINE_integer("port", 5000, "Port to listen on; 0: any free port.", lower_bound=0)
_HOST = flags.DEFINE_string("host", socket.gethostname(), "Name of this machine for others.")
flags.mark_flags_as_required(["config"])


def run() -> int:
    config = _CONFIG.value
    source, _ = build.open_sources(config)
    augmentation = augmentation_of(config.data, Augmentation)
    samples = TrainingSamples(Mixture.of(source), augmentation, config.seed)
    server = Server(samples, _PORT.value, _HOST.value)
    print(f"serving {samples.description} at {server.address}", flush=True)
    server.join()
    return 0


if __name__ == "__main__":
    script.run(run, parse=config_flag.parse)
