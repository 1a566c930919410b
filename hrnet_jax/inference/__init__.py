"""From an image to a label map of its size."""


def __getattr__(name: str):
    if name == "Method":  # this package was a module that defined it
        from hrnet_jax.inference import multi_scale

        return multi_scale.Method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
