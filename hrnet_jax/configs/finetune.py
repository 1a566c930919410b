"""From trained weights to a small dataset of your own with other classes, in minutes on a CPU.

    python train.py --config=configs/finetune.py --config.data.root=DIR --workdir=OUT

DIR is a dataset as `data.name` says, "folder" by default: images, labels and classes.json. The
network starts from the CamVid weights in the package; classes that both have by name keep their
row of the classifier. AdamW with a short warm-up and a cosine to 0, batch 4, and a moving average
of the weights, which is what is evaluated.

`:scratch` starts from random weights, for comparison. Other variants than the shipped ones need
--config.init_from. `:runlocal` shrinks it to about a minute. Measured in
docs/experiments/finetuning.md.
"""

from hrnet_jax.configs import common


def get_config(arg=None, num_steps=150):
    arg = common.parse_arg(arg, variant="w18_small_v1", scratch=False, runlocal=False)
    config = common.get_config()
    config.variant = arg.variant
    config.init_from = "" if arg.scratch else f"camvid_{arg.variant}"
    config.batch_size = 4
    config.num_steps = num_steps
    config.log_every_steps = 15
    config.checkpoint_every_steps = num_steps
    config.data.name = "folder"
    config.data.crop_size = (128, 256)
    config.data.scale_min = 0.75
    config.data.scale_max = 1.5
    config.data.scale_step = 0.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.001
    config.optimizer.beta2 = 0.99
    config.optimizer.weight_decay = 0.02
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 10
    config.optimizer.ema_decay = 0.9
    config.eval.every_steps = num_steps // 5
    config.eval.batch_size = 4
    if arg.runlocal:
        common.shrink(config)
    return config
