"""Poles, signs, lights: `finetune` for classes that are thin and rare.

    python train.py --config=configs/thin_classes.py --config.data.root=DIR --workdir=OUT

Cross-entropy hardly sees a class of 1 % of the pixels. Here class weights are computed from the
labels, Lovasz-softmax is added, which counts each class by its IoU, and half of the samples are
crops around a pixel of a class; all classes are drawn equally often.

`:scratch`, `:runlocal` and variants are those of `finetune`. A starting point: what these keys
bring is not measured yet.
"""

from hrnet_jax.configs import finetune


def get_config(arg=None):
    config = finetune.get_config(arg)
    config.data.class_uniform = 0.5
    config.loss.class_weights = ("auto",)
    config.loss.terms.cross_entropy = 1.0
    config.loss.terms.lovasz = 0.5
    return config
