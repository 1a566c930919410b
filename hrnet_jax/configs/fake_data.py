"""Tests the training loop on this machine without a dataset: a few synthetic scenes in OUT.

    python train.py --config=configs/fake_data.py --workdir=OUT

Any variant: `:variant=w48`. `:runlocal` shrinks it to about a minute.
"""

from hrnet_jax.configs import common


def get_config(arg=None):
    arg = common.parse_arg(arg, variant="w18_small_v1", runlocal=False)
    config = common.get_config()
    config.variant = arg.variant
    config.batch_size = 4
    config.num_steps = 20
    config.log_every_steps = 5
    config.checkpoint_every_steps = 10
    config.data.name = "fake"
    config.data.crop_size = (256, 512)
    config.eval.every_steps = 20
    if arg.runlocal:
        common.shrink(config)
    return config
