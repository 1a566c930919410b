"""The arrays of a checkpoint against those that are expected."""

import jax
import jax.numpy as jnp
import pytest
from states import make_state, write_steps

from hrnet_jax.checkpoints.store import CheckpointStore


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(params=make_state(shape=(4, 5)).params), r"expected float32\[4, 5\]"),
        (lambda s: s.replace(params={"other": s.params["layer"]}), "missing in the checkpoint"),
        (
            lambda s: s.replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), s.params)),
            "checkpoint has float32.*expected bfloat16",
        ),
        (lambda s: make_state(ema=True), "there is no part 'ema'"),
    ],
)
def test_other_structures_are_refused(tmp_path, change, message):
    write_steps(tmp_path, {1: None})
    store = CheckpointStore(tmp_path)
    with pytest.raises(ValueError, match=message):
        store.restore(change(make_state()))
    store.close()
