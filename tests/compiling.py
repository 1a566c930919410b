"""How tests compile programs that run only a few times."""

import functools

import jax

# Fast to compile instead of fast to run: LLVM does not optimise.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

fast_jit = functools.partial(jax.jit, compiler_options=FAST_COMPILE)
