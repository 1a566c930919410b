import logging

import jax.numpy as jnp
import pytest

from hrnet_jax.tools import script


def test_says_what_to_do_without_memory(capsys):
    def allocate(arguments):
        return jnp.zeros(2**46).block_until_ready()

    assert script.call(allocate, []) == 2
    message = capsys.readouterr().err
    assert "RESOURCE_EXHAUSTED" in message
    assert "--tile=512x1024" in message


def test_other_errors_of_the_device_are_not_hidden():
    def fail(arguments):
        raise RuntimeError("INTERNAL: something else")

    with pytest.raises(RuntimeError, match="something else"):
        script.call(fail, [])


def test_what_is_said_to_the_user_stands_without_the_place_in_our_code():
    assert script.format_warning("gray", UserWarning, "inference.py", 12) == "warning: gray\n"
    other = script.format_warning("old", DeprecationWarning, "jax.py", 7)
    assert other.startswith("jax.py:7: DeprecationWarning: old")


def test_logged_warnings_as_well():
    record = logging.LogRecord("hrnet_jax", logging.WARNING, "files.py", 172, "no %s", ("a",), None)
    assert script._LogFormatter().format(record) == "warning: no a"
