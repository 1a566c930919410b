"""Mapillary Vistas 1.2, 65 classes, 18,000 training images of about 3000x4000.

    python train.py --config=configs/mapillary.py:variant=w48 --config.data.root=DIR --workdir=OUT

DIR holds `training` and `validation`. `:version=2.0` takes the 116 classes of Vistas 2.0. The
recipe follows that of hierarchical multi-scale attention (Tao et al., arXiv 2005.10821;
https://github.com/NVIDIA/semantic-segmentation, train_mapillary.yml): 200 epochs with batch 16 and
crops of 1024x1024, SGD 0.005 with linear decay, weight decay 1e-4, an HRNet-OCR of W48
(`--config.head=ocr`) from ImageNet weights (`--config.init_from=FILE`). Published for it, with
attention over scales and another loss (RMI): 61.1 mIoU on validation. Differences: cross-entropy
instead of RMI and no blur. There, images are first reduced to 2177 pixels on their longer side,
then scaled by 0.5 to 2; here they are scaled by 0.25 to 1, the same for a side of 4000.

The validation images are large and of many sizes. Training evaluates 200 of the 2000, padded to
multiples of 128, as each size is compiled once; `hrnet evaluate` evaluates all.
Converting the dataset to tiles first (`hrnet prepare_tiles`) makes reading several times faster.

`:runlocal` shrinks the run to about a minute.
"""

from hrnet_jax.configs import common

VERSIONS = ("1.2", "2.0")


def get_config(arg=None):
    arg = common.parse_arg(arg, variant="w48", version="1.2", runlocal=False)
    if arg.version not in VERSIONS:
        raise ValueError(f"unknown version {arg.version!r} of Mapillary Vistas; known: {VERSIONS}")
    config = common.get_config()
    config.variant = arg.variant
    config.batch_size = 16
    config.num_epochs = 200
    config.data.name = f"mapillary_vistas_v{arg.version}"
    config.data.crop_size = (1024, 1024)
    config.data.scale_min = 0.25
    config.data.scale_max = 1.0
    config.data.scale_step = 0.0
    config.data.color_jitter = 0.25
    config.optimizer.learning_rate = 0.005
    config.optimizer.weight_decay = 1e-4
    config.optimizer.poly_power = 1.0
    config.eval.every_epochs = 20.0
    config.eval.batch_size = 1
    config.eval.num_images = 200
    config.eval.size_step = 128
    if arg.runlocal:
        common.shrink(config)
    return config
