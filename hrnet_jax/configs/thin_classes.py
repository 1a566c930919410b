"""Poles, signs, lights: `finetune` for classes that are thin and rare.

    python train.py --config=configs/thin_classes.py --config.data.root=DIR --workdir=OUT

Cross-entropy hardly sees a class of 1 % of the pixels. Here class weights are computed from the
labels by the rule `median_frequency`: a class counts the more, the fewer pixels it has where it
occurs. Rare classes are found earlier, and more pixels of the large ones are given to them: pixel
accuracy falls. Measured in docs/experiments/finetuning.md, beside Lovasz-softmax, crops around rare
classes and a heavier boundary.

`:scratch`, `:runlocal` and variants are those of `finetune`.
"""

from hrnet_jax.configs import finetune


def get_config(arg=None):
    config = finetune.get_config(arg)
    config.loss.class_weights = ("median_frequency",)
    return config
