"""ferroflash under the name of flash_attn, for programs that are not to be changed."""

import importlib
import importlib.machinery
import sys
import types

from ._errors import InputError

# The version whose functions these are: programs choose arguments by it.
_FLASH_ATTN_VERSION = "2.8.3"

# Modules of flash_attn around attention, and what of `ferroflash.ops` is in them.
_OPERATORS = {
    "layers.rotary": ("rotary", ("apply_rotary_emb",)),
    "losses.cross_entropy": ("cross_entropy", ("CrossEntropyLoss",)),
    "ops.fused_dense": ("fused_dense", ("FusedDense", "FusedMLP", "fused_dense_func", "fused_mlp_func")),
    "ops.triton.cross_entropy": ("cross_entropy", ("cross_entropy_loss",)),
    "ops.triton.layer_norm": ("layer_norm", ("RMSNorm", "layer_norm_fn", "rms_norm_fn")),
}


def install_as(name="flash_attn"):
    """Makes ``import flash_attn`` give ferroflash's functions in this process, and ``flash_attn.flash_attn_interface``,
    ``flash_attn.bert_padding`` and the modules of flash_attn whose functions are in ``ferroflash.ops`` with it. With ``name="flash_attn_interface"`` it is the module of FlashAttention-3.

    Raises:
        InputError: for other names, and when the original is imported already.
    """
    if name not in ("flash_attn", "flash_attn_interface"):
        raise InputError(f"there is nothing to install as {name!r}; 'flash_attn' and 'flash_attn_interface' are accepted")
    there = sys.modules.get(name)
    if there is not None:
        if getattr(there, "__ferroflash__", False):
            return
        raise InputError(f"{name} is imported already, from {getattr(there, '__file__', None)}; install_as comes before that")
    if name == "flash_attn_interface":
        from . import flash_attn_3

        _alias(name, flash_attn_3)
        return
    from . import bert_padding, flash_attn_interface

    package = _alias(name, flash_attn_interface)
    package.__version__ = _FLASH_ATTN_VERSION
    package.__path__ = []
    package.flash_attn_interface = _alias(f"{name}.flash_attn_interface", flash_attn_interface)
    package.bert_padding = _alias(f"{name}.bert_padding", bert_padding)
    for path, (of, names) in _OPERATORS.items():
        module = importlib.import_module(f"ferroflash.ops.{of}")
        parent = package
        *folders, last = path.split(".")
        for folder in folders:
            if not hasattr(parent, folder):
                setattr(parent, folder, _made(f"{parent.__name__}.{folder}", module, {}))
                getattr(parent, folder).__path__ = []
            parent = getattr(parent, folder)
        setattr(parent, last, _made(f"{parent.__name__}.{last}", module, {name: getattr(module, name) for name in names}))


def _alias(name, module):
    """A module of another name with the contents of `module`."""
    alias = _made(name, module, {key: value for key, value in vars(module).items() if not key.startswith("__")})
    alias.__all__ = list(module.__all__)
    return alias


def _made(name, module, contents):
    """A module of another name with something of `module`. importlib finds a specification in it, as `find_spec` asks for one."""
    alias = types.ModuleType(name, module.__doc__)
    alias.__dict__.update(contents)
    alias.__all__ = list(contents)
    alias.__file__ = module.__file__
    alias.__ferroflash__ = True
    alias.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, origin=module.__file__)
    sys.modules[name] = alias
    return alias
