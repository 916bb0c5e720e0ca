"""Packages and libraries of peers: where they lie, and which versions they are."""

import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib

import torch


class NoResult(Exception):
    """Why a peer has no result."""


def first_line(error):
    """What an exception says, in one line."""
    if isinstance(error, NoResult):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def load_library(variable, pattern):
    """Loads a library of PyTorch operators and returns its path.

    The environment variable names the file. Without it the library is looked for by its `pattern` in the folders of a package `vllm`
    on Python's path, which is not imported: that takes a minute, and needs all that vLLM depends on.
    """
    named = os.environ.get(variable)
    if named:
        path = pathlib.Path(named)
        if not path.is_file():
            raise NoResult(f"{variable} names {named}, which is no file")
    else:
        vllm = importlib.util.find_spec("vllm")
        folders = vllm.submodule_search_locations if vllm else []
        path = next((path for folder in folders for path in sorted(pathlib.Path(folder).glob(pattern))), None)
        if path is None:
            raise NoResult(f"{variable} is not set, and no package vllm on the path has {pattern}")
    torch.ops.load_library(str(path))
    return path


def library_version(path):
    """The version of the vLLM whose folder holds this library; for a file that lies alone, what tells one build from another."""
    for folder in path.resolve().parents:
        for distribution in importlib.metadata.distributions(name="vllm", path=[str(folder)]):
            return f"vllm {distribution.version}"
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


class Peer:
    """Something that can be imported: `version` says what was found, `needs` what would have to be."""

    operation = needs = version = None
    # Whether it is PyTorch's own, or what PyTorch compiles with.
    of_torch = False


class FlashMla(Peer):
    """FlashMLA: attention of one or few queries on a compressed cache."""

    operation = "decode with multi-head latent attention"
    needs = "FlashMLA (flash_mla), or the library of vLLM's build in FERROFLASH_FLASHMLA_LIBRARY"

    def __init__(self):
        if not os.environ.get("FERROFLASH_FLASHMLA_LIBRARY") and importlib.util.find_spec("flash_mla"):
            import flash_mla  # noqa: F401

            self.version = importlib.metadata.version("flash_mla")
        else:
            self.version = library_version(load_library("FERROFLASH_FLASHMLA_LIBRARY", "_flashmla_C*.so"))


class Quack(Peer):
    """quack: kernels of the operators around attention, in the CuTe DSL."""

    operation = "norms, softmax and cross-entropy"
    needs = "quack-kernels (quack)"

    def __init__(self):
        import quack

        self.version = quack.__version__
