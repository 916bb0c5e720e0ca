"""What a model computes around attention: RMSNorm and LayerNorm (``layer_norm``), cross-entropy (``cross_entropy``), rotary embedding (``rotary``)
and softmax (``softmax``).

Each module has ``forward`` and ``backward`` for any arrays that speak DLPack or ``__cuda_array_interface__``, which record no gradients, and functions
for tensors of PyTorch, with gradients: where ``flash_attn`` has the like, with its names and arguments. PyTorch is imported when the first of those is
asked for.
"""
