"""What a model computes around attention: RMSNorm and LayerNorm (``layer_norm``), cross-entropy (``cross_entropy``), rotary embedding (``rotary``),
softmax (``softmax``), embedding tables (``embedding``), dense layers (``fused_dense``), and cross-entropy of the logits of one, which are never in memory
(``linear_cross_entropy``).

Each module has ``forward`` and, where there are gradients, ``backward`` for any arrays that speak DLPack or ``__cuda_array_interface__``, which record
none, and functions for tensors of PyTorch, with gradients: where ``flash_attn`` has the like, with its names and arguments. PyTorch is imported when the
first of those is asked for.
"""

from . import cross_entropy, embedding, fused_dense, layer_norm, linear_cross_entropy, rotary, softmax

__all__ = ["cross_entropy", "embedding", "fused_dense", "layer_norm", "linear_cross_entropy", "rotary", "softmax"]
