"""The functions of ``flash_attn.bert_padding`` that programs use around packed sequences, in PyTorch's own operations."""

import torch

__all__ = ["index_first_axis", "pad_input", "unpad_input"]


def index_first_axis(hidden_states, indices):
    """The rows of ``hidden_states (total, ...)`` with these indices."""
    return hidden_states.index_select(0, indices)


def unpad_input(hidden_states, attention_mask, unused_mask=None):
    """The rows of ``hidden_states (batch, seqlen, ...)`` that ``attention_mask (batch, seqlen)`` counts, one behind the other.

    Rows of ``unused_mask`` are kept and not counted.

    Returns:
        ``(rows, indices, cu_seqlens, max_seqlen, seqused)``: the rows, their indices in the flattened batch, the int32 starts of the
        sequences with the end of the last, the longest of them, and the int32 numbers of counted rows.
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(dim=-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    longest = int(lengths.max())
    seqused = attention_mask.sum(dim=-1, dtype=torch.int32)
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, cu_seqlens, longest, seqused


def pad_input(hidden_states, indices, batch, seqlen):
    """``(batch, seqlen, ...)`` with these rows at ``indices`` of the flattened batch, and zeros elsewhere."""
    padded = hidden_states.new_zeros((batch * seqlen, *hidden_states.shape[1:]))
    return padded.index_copy(0, indices, hidden_states).unflatten(0, (batch, seqlen))
