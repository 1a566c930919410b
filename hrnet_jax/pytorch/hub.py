"""Weights on the Hugging Face hub: hf://OWNER/NAME[@REVISION][/FILE] and timm:NAME.

Files are downloaded once, into the cache of huggingface_hub (HF_HOME), and are read from there
afterwards, also offline. Nothing but the one file of weights is downloaded.
"""

import importlib.util
import re
from pathlib import Path

PREFIXES = ("hf://", "timm:")
# In a repository, in this order: the first that is there is taken.
_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pdparams")

# timm's HRNets, each trained on ImageNet-1k: name -> variant here.
TIMM = {
    "hrnet_w18_small.ms_in1k": "w18_small_v1",
    "hrnet_w18_small.gluon_in1k": "w18_small_v1",
    "hrnet_w18_small_v2.ms_in1k": "w18_small_v2",
    "hrnet_w18_small_v2.gluon_in1k": "w18_small_v2",
    "hrnet_w18.ms_in1k": "w18",
    "hrnet_w18.ms_aug_in1k": "w18",
    "hrnet_w18_ssld.paddle_in1k": "w18",
    "hrnet_w30.ms_in1k": "w30",
    "hrnet_w32.ms_in1k": "w32",
    "hrnet_w40.ms_in1k": "w40",
    "hrnet_w44.ms_in1k": "w44",
    "hrnet_w48.ms_in1k": "w48",
    "hrnet_w48_ssld.paddle_in1k": "w48",
    "hrnet_w64.ms_in1k": "w64",
}


def is_address(name: str) -> bool:
    """Whether this names weights on the hub rather than a path."""
    return name.startswith(PREFIXES)


def fetch(name: str) -> str:
    """The local file of weights on the hub; any other name or path as it is.

    Raises:
      FileNotFoundError: there is no such repository, revision or file, or it cannot be reached and
        is not in the cache.
      ValueError: malformed, or huggingface_hub is not installed.
    """
    if not is_address(name):
        return name
    repository, revision, file = parse(name)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError(
            f"{name}: needs huggingface_hub, which is not installed: pip install huggingface_hub"
        )
    import huggingface_hub  # takes a second, and most weights are local
    from huggingface_hub import errors

    problem: Exception | None = None
    for candidate in [file] if file else _FILES:
        try:
            return huggingface_hub.hf_hub_download(repository, candidate, revision=revision)
        except errors.LocalEntryNotFoundError as error:
            raise FileNotFoundError(
                f"{name}: {candidate} of {repository} is not in the cache, and the hub cannot be"
                " reached. Download it where there is a network (huggingface-cli download"
                f" {repository}) and copy the cache (HF_HOME), or give the file's path"
            ) from error
        except (errors.EntryNotFoundError, errors.RepositoryNotFoundError) as error:
            problem = error
        except errors.RevisionNotFoundError as error:
            raise FileNotFoundError(f"{name}: no revision {revision!r}") from error
        except errors.HfHubHTTPError as error:
            raise FileNotFoundError(f"{name}: {_first_line(error)}") from error
    sought = file or " or ".join(_FILES)
    raise FileNotFoundError(
        f"{name}: no {sought} in {repository} ({_first_line(problem)})"
    ) from problem


def parse(name: str) -> tuple[str, str | None, str]:
    """(repository, revision or None, file or "") of an address.

    Raises:
      ValueError: malformed, or an unknown name of timm's.
    """
    if name.startswith("timm:"):
        short, _, revision = name.removeprefix("timm:").partition("@")
        if short not in TIMM:
            raise ValueError(f"{name}: unknown; known: {[f'timm:{known}' for known in TIMM]}")
        return f"timm/{short}", revision or None, ""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+))?", name)
    if not found:
        raise ValueError(f"{name}: expected hf://OWNER/NAME, hf://OWNER/NAME@REVISION or .../FILE")
    repository, revision, file = found.groups()
    if file and Path(file).suffix not in _SUFFIXES:
        raise ValueError(f"{name}: not a file of weights; known: {_SUFFIXES}")
    return repository, revision, file or ""


def _first_line(error: Exception | None) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
