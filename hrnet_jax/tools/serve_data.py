"""Makes training samples for runs on other machines (`config.data.service`).

python -m hrnet_jax.tools.serve_data --config=configs/NAME.py --config.data.root=DIR --port=5000
    [--host=NAME]

Give the run's configuration: a server with another one is refused. The data set has to be readable
here. Runs until it is stopped; training then uses --config.data.service="('HOST:5000',)".
"""

import socket

from absl import flags

from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.pipeline.service import Server
from hrnet_jax.tools import config_flag, script
from hrnet_jax.train import build

_CONFIG = config_flag.define()
_PORT = flags.DEFINE_integer("port", 5000, "Where to listen; 0: any free one.", lower_bound=0)
_HOST = flags.DEFINE_string("host", socket.gethostname(), "This machine's name for the others.")
flags.mark_flags_as_required(["config"])


def run() -> int:
    data, seed = _CONFIG.value.data, _CONFIG.value.seed
    source, _ = build.open_sources(_CONFIG.value)
    keys = ("scale_min", "scale_max", "scale_step", "flip", "brightness")
    augmentation = segmentation_data.Augmentation(
        tuple(data.crop_size), **{k: data[k] for k in keys}
    )
    samples = segmentation_data.TrainingSamples(Mixture.of(source), augmentation, seed)
    server = Server(samples, _PORT.value, _HOST.value)
    print(f"serving {samples.description} at {server.address}", flush=True)
    server.join()
    return 0


if __name__ == "__main__":
    script.run(run, parse=config_flag.parse)
