"""How tests compile programs that run only a few times."""

import functools

import jax

# Fast to compile instead of fast to run: LLVM does not optimise.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# The same for processes of their own, in their environment.
FAST_ENVIRONMENT = {
    "XLA_FLAGS": " ".join(f"--{name}={str(on).lower()}" for name, on in FAST_COMPILE.items())
}

fast_jit = functools.partial(jax.jit, compiler_options=FAST_COMPILE)
