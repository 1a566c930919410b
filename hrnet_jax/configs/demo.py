"""A small synthetic street-scene set in the Cityscapes layout: shows the whole way in minutes.

    python -m hrnet_jax.data.synthetic --output=DIR --train=200 --val=20 --height=128 --width=256
    python train.py --config=configs/demo.py --config.data.root=DIR --workdir=OUT

`:runlocal` is shorter still.
"""

from hrnet_jax.configs import common


def get_config(arg=None):
    arg = common.parse_arg(arg, variant="w18_small_v1", runlocal=False)
    config = common.get_config()
    config.variant = arg.variant
    config.batch_size = 4
    config.num_steps = 400
    config.log_every_steps = 20
    config.checkpoint_every_steps = 200
    config.data.crop_size = (128, 256)
    config.data.scale_min = 0.8
    config.data.scale_max = 1.4
    config.optimizer.learning_rate = 0.02
    config.eval.every_steps = 200
    if arg.runlocal:
        common.shrink(config)
    return config
