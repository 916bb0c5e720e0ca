"""What a model computes around attention: RMSNorm and LayerNorm (``layer_norm``), cross-entropy (``cross_entropy``), rotary embedding (``rotary``),
softmax (``softmax``), embedding tables (``embedding``) and dense layers (``fused_dense``).

Each module has ``forward`` and, where there are gradients, ``backward`` for any arrays that speak DLPack or ``__cuda_array_interface__``, which record
none, and functions for tensors of PyTorch, with gradients: where ``flash_attn`` has the like, with its names and arguments. PyTorch is imported when the
first of those is asked for.
"""

from . import cross_entropy, embedding, fused_dense, layer_norm, rotary, softmax

__all__ = ["cross_entropy", "embedding", "fused_dense", "layer_norm", "rotary", "softmax"]
