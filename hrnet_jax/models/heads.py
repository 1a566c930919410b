"""What stands on the backbone: each head maps its streams to a dictionary of outputs."""

import flax.linen as nn
import jax

from hrnet_jax.models.hrnet import Streams
from hrnet_jax.models.layers import Conv, ConvBN, Policy


class SegmentationHead(nn.Module):
    """1x1 convolution over all streams at 1/4 resolution, then the classifier.

    With four streams this is HRNetV2's head (arXiv 1908.07919, fig. 4b), with one HRNetV1's.
    """

    num_classes: int
    align_corners: bool = False
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> dict[str, jax.Array]:
        features = sum(s.shape[-1] for s in streams)
        hidden = ConvBN(
            features,
            use_bias=True,
            align_corners=self.align_corners,
            policy=self.policy,
            name="hidden",
        )(streams, train=train)  # [N, H/4, W/4, sum of C]
        classifier = Conv(self.num_classes, use_bias=True, policy=self.policy, name="classifier")
        return {"logits": classifier(hidden).astype(self.policy.statistics_dtype)}
