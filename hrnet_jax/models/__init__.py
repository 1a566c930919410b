"""The network: `create_model` builds one, `VARIANTS` lists the sizes."""

from hrnet_jax.models.heads import HEADS
from hrnet_jax.models.model import HRNetModel, create_model
from hrnet_jax.models.variants import VARIANTS, Variant, get_variant

__all__ = ["HEADS", "VARIANTS", "HRNetModel", "Variant", "create_model", "get_variant"]
