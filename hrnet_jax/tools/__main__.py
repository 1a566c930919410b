"""The command `hrnet`: trains, evaluates, predicts, exports, ...

hrnet TOOL [--FLAG=VALUE ...]      the same as: python -m hrnet_jax.tools.TOOL [--FLAG=VALUE ...]
hrnet TOOL --help                  what the tool does, and its flags

Names of tools may be written with - or with _.
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from hrnet_jax import __version__

# Every tool, in the order of a project: data, training, evaluation, use.
TOOLS = (
    "inspect_data", "prepare_tiles", "show_batch", "serve_data", "describe", "preflight", "train",
    "cross_validate", "evaluate", "precise_bn", "convert_weights", "predict", "side_by_side",
    "export_model",
)  # fmt: skip


def start(tool: str) -> None:
    """Runs a tool as the program, with the arguments of this process.

    The tool becomes `__main__`, because absl takes the description and the flags shown by --help
    from that module.
    """
    runpy.run_module(f"hrnet_jax.tools.{tool}", run_name="__main__", alter_sys=True)


def usage() -> str:
    """What `hrnet --help` prints: how to call it, and a line for each tool."""
    # Read from the source, since importing a tool takes seconds.
    texts = (Path(__file__).with_name(f"{tool}.py").read_text("utf-8") for tool in TOOLS)
    docs = (ast.get_docstring(ast.parse(text)) or "" for text in texts)
    lines = [f"  {tool:16} {doc.splitlines()[0]}" for tool, doc in zip(TOOLS, docs, strict=True)]
    return "\n".join([__doc__.strip(), "", "Tools:", *lines])


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(usage())
        return 0 if len(sys.argv) > 1 else 2
    if name == "--version":
        print(__version__)
        return 0
    tool = name.replace("-", "_")
    if tool not in TOOLS:
        near = difflib.get_close_matches(tool, TOOLS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        print(
            f"hrnet: error: unknown tool {name!r}{hint}; known: {', '.join(TOOLS)}", file=sys.stderr
        )
        return 2
    del sys.argv[1]
    start(tool)
    return 0


if __name__ == "__main__":
    sys.exit(main())
