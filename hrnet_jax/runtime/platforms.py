"""Whether the platform that JAX_PLATFORMS asks for is on this machine."""

import contextlib
import logging
from collections.abc import Iterator

import jax
import jax.extend


def check() -> None:
    """Starts JAX's devices, unless they have been started.

    Raises:
      ValueError: if they cannot be started, in one line: the platform, the reason, what there is,
        and what to do. JAX's own errors have several lines, or no text at all.
    """
    wanted = jax.config.jax_platforms
    if not wanted:
        jax.devices()  # JAX chooses among what there is
        return
    with _plugin_errors() as reasons:
        try:
            jax.devices()
        except (RuntimeError, AssertionError) as error:
            reasons.append(str(error) or "JAX has no plugin for it")
        else:
            return
        present = _present()
    reason = next(line for text in reasons for line in text.splitlines()[:1])
    raise ValueError(
        f"JAX_PLATFORMS={wanted}: no such device can be used ({reason}). This machine has"
        f" {present}: unset JAX_PLATFORMS to use it, or install JAX for the other kind:"
        " pip install 'jax[cuda12]', 'jax[cuda13]' or 'jax[tpu]'"
    )


@contextlib.contextmanager
def _plugin_errors() -> Iterator[list[str]]:
    """Collects why plugins cannot be started, which JAX logs as tracebacks before it fails."""
    reasons: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.exc_info is None or record.exc_info[1] is None:
            return True
        reasons.append(str(record.exc_info[1]))
        return False

    logger = logging.getLogger("jax._src.xla_bridge")
    logger.addFilter(collect)
    try:
        yield reasons
    finally:
        logger.removeFilter(collect)


def _present() -> str:
    """The kinds of devices that JAX finds by itself; leaves JAX as it was, without devices."""
    wanted = jax.config.jax_platforms
    jax.config.update("jax_platforms", "")
    try:
        devices = jax.devices()
        return ", ".join(sorted({f"{d.platform} ({d.device_kind})" for d in devices}))
    except RuntimeError as error:
        return f"none ({next(iter(str(error).splitlines()), '')})"
    finally:
        jax.extend.backend.clear_backends()
        jax.config.update("jax_platforms", wanted)
