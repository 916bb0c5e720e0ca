"""Attention in the manner of PyTorch's flex_attention: functions of scores and of places, read once by what they do with values that stand for
operations."""

import functools
import sys
import types

from . import _native
from ._errors import InputError, InputTypeError
from ._forward import forward
from ._program import OF_NAMES, Bound, ScoreProgram, _no_operation, of_arrays


def flex_attention(query, key, value, score_mod=None, block_mask=None, scale=None, enable_gqa=False, return_lse=False):
    """Attention of query ``(batch, heads, q_rows, head_dim)`` and key, value ``(batch, kv_heads, kv_rows, head_dim)``, whose scores pass through a
    function: ``torch.nn.attention.flex_attention.flex_attention``, on tensors of PyTorch and on arrays of NumPy and CuPy.

    Args:
        score_mod: ``score_mod(score, b, h, q_idx, kv_idx)`` gives the new score. It is called in each call of this function, once, with values that
            stand for operations: operators, comparisons, methods (``abs``, ``clamp``, ``exp``, ``log``, ``sqrt``, ``tanh``, ``sigmoid``, ``where`` and others)
            and the functions of PyTorch of these names. Tensors that it names, as local variables of the function around it or as global ones, it reads
            by such indices, one for each of up to four axes; integers and conditions are read as 32 bits, float64 as float32. A negative index
            counts from the end, and one outside gives 0. It chooses by ``where``, not by ``if``. Numbers that it names are part of the kernels: one that changes from call to call belongs into a
            tensor.
        block_mask: what :func:`ferroflash.create_block_mask` made: keys that rows see.
        scale: factor on the scores; ``None`` is ``head_dim ** -0.5``.
        enable_gqa: whether ``heads`` may be a multiple of ``kv_heads``.
        return_lse: whether to return the log-sum-exp, too.

    Gradients are those of query, key and value, by autograd for tensors of PyTorch. Tensors that functions read have none: one that requires a gradient
    is a :class:`ferroflash.MissingFeatureError`. Under torch.compile the call is a break in the graph.

    Returns:
        ``out`` of query's shape, or ``(out, lse)``, lse float32 ``(batch, heads, q_rows)``: natural logarithm, minus infinity for a row that sees no key,
        whose result is 0.

    Raises:
        MissingFeatureError: an operation that programs on scores do not have, by its name.
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(query, torch.Tensor):
        from . import _flex_torch

        return _flex_torch.flex_attention(query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse)
    return _attend(query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse)


def _attend(query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse):
    for name, array in (("query", query), ("key", key), ("value", value)):
        if not _is_array(array):
            raise InputTypeError(f"{name} is a {type(array).__name__}; a tensor of PyTorch or an array of NumPy or CuPy is accepted")
        if array.ndim != 4:
            raise InputError(f"{name} has {array.ndim} axes; 4 (batch, head, row, dim) are accepted")
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads != kv_heads and not enable_gqa:
        raise InputError(f"query has {heads} heads, key {kv_heads}; they may differ with enable_gqa=True")
    if score_mod is not None and not callable(score_mod):
        raise InputTypeError(f"score_mod is a {type(score_mod).__name__}; a function (score, b, h, q_idx, kv_idx) is accepted")
    program = None
    if block_mask is not None:
        if not isinstance(block_mask, BlockMask):
            raise InputTypeError(f"block_mask is a {type(block_mask).__name__}; what ferroflash.create_block_mask makes is accepted")
        block_mask._check(query.shape, key.shape)
        program = block_mask._with(score_mod)
    elif score_mod is not None:
        captured = _Captured()
        written = ScoreProgram(lambda p: _changed(p, score_mod, captured), _name_of(score_mod))
        program = captured.bound(written)
    q, k, v = (array.swapaxes(1, 2) for array in (query, key, value))
    found = forward(q, k, v, softmax_scale=scale, program=program, return_lse=return_lse)
    if return_lse:
        return found[0].swapaxes(1, 2), found[1]
    return found.swapaxes(1, 2)


class BlockMask:
    """Which keys rows see, and which blocks of keys none of a block of rows does: what :func:`ferroflash.create_block_mask` makes.

    Attributes:
        shape: ``(B, H, Q_LEN, KV_LEN)``, 1 for ``None``.
        mask_mod: the function.
    """

    def __init__(self, mask_mod, shape, device):
        self.mask_mod, self.shape = mask_mod, shape
        self._captured = _Captured()
        self._program = ScoreProgram(lambda p: p.where(self._sees(p), p.score, p.hidden), _name_of(mask_mod))
        self._captured.read()
        self._blocks = self._captured.blocks(self._program, device, shape)

    def __repr__(self):
        return f"BlockMask(shape={self.shape}, {self._program!r})"

    def _sees(self, p):
        return self._sees_by(p, self._captured)

    def _sees_by(self, p, captured):
        # What B and H of None stand for: the mask of the first is that of all.
        of = [p._value(x if extent > 1 else 0) for x, extent in zip((p.batch, p.head), self.shape)]
        return p._bool(captured.call(self.mask_mod, p, *of, p.row, p.key))

    def _check(self, query, key):
        found = (query[0], query[1], query[2], key[2])
        fits = all(own == of or (at < 2 and own == 1) for at, (own, of) in enumerate(zip(self.shape, found)))
        if not fits:
            raise InputError(f"block_mask is of scores {self.shape} (batch, heads, q_rows, kv_rows); those of the call are {found}")

    def _with(self, score_mod):
        """The program of the mask and a function of scores, with the blocks of the mask."""
        if score_mod is None:
            return self._captured.bound(self._program, self._blocks)
        captured = self._captured.copy()

        def write(p):
            sees = self._sees_by(p, captured)
            if p._lines != self._program._text.splitlines()[1:][: len(p._lines)]:
                raise InputError(
                    f"{_name_of(self.mask_mod)} gives another mask than it gave to create_block_mask, whose blocks were found: what it reads has "
                    "changed; a mask that is made anew is accepted"
                )
            captured.forget()
            return p.where(sees, _changed(p, score_mod, captured), p.hidden)

        return captured.bound(ScoreProgram(write, _name_of(score_mod)), self._blocks)


def create_block_mask(mask_mod, B, H, Q_LEN, KV_LEN, device=None):
    """The mask of a function, for calls of :func:`ferroflash.flex_attention`: ``torch.nn.attention.flex_attention.create_block_mask``.

    Which blocks of keys the mask hides from whole blocks of rows is found now, once, on ``device``, and the calls that it is given to pass over them where
    the kernel of compute capability 9.0 runs; others visit every block, with the same result. Tensors that the function reads are taken as they are now:
    when they change, the mask is to be made anew.

    Args:
        mask_mod: ``mask_mod(b, h, q_idx, kv_idx)`` gives whether the row sees the key. It is called once, as ``score_mod`` of ``flex_attention`` is.
        B, H: batch entries and heads of query, ``None`` where the mask is the same for all: the function is then given 0.
        Q_LEN, KV_LEN: rows and keys.
        device: where the calls are: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or a device of PyTorch. ``None`` is that of the tensors that the function reads;
            without any it is a GPU where PyTorch has one, and the CPU elsewhere.

    Raises:
        MissingFeatureError: an operation that programs on scores do not have, by its name.
        InputError, InputTypeError, DeviceError: with what was given and what is accepted.
    """
    if not callable(mask_mod):
        raise InputTypeError(f"mask_mod is a {type(mask_mod).__name__}; a function (b, h, q_idx, kv_idx) is accepted")
    shape = tuple(1 if extent is None else extent for extent in (B, H)) + (Q_LEN, KV_LEN)
    for name, extent in zip(("B", "H", "Q_LEN", "KV_LEN"), shape):
        if not isinstance(extent, int) or extent < 1:
            raise InputError(f"{name} is {extent!r}; whole numbers from 1 on are accepted" + (", and None" if name in ("B", "H") else ""))
    return BlockMask(mask_mod, shape, device)


def _changed(p, score_mod, captured):
    return p._float(captured.call(score_mod, p, p.score, p.batch, p.head, p.row, p.key))


def _name_of(function):
    return getattr(function, "__name__", type(function).__name__)


def _is_array(x):
    return hasattr(x, "ndim") and hasattr(x, "dtype") and (hasattr(x, "__dlpack__") or hasattr(x, "__cuda_array_interface__"))


class _Captured:
    """The tensors that functions name, by names of the program."""

    def __init__(self):
        # By name, and names by the number of the array that a function names, which is kept, so that the number stands for it.
        self.arrays, self.names, self.kept = {}, {}, []

    def copy(self):
        other = _Captured()
        other.arrays, other.names, other.kept = dict(self.arrays), dict(self.names), list(self.kept)
        return other

    def read(self):
        """Takes them as programs read them and as they are now, once for all calls."""
        self.arrays = {name: _copy_of(_readable(array)) for name, array in self.arrays.items()}

    def forget(self):
        """Arrays that functions name from now on are others, even if they are the same: they are read as they are in each call."""
        self.names = {}

    def bound(self, program, blocks=None):
        """A program with those of them that it reads."""
        lines = (line.split() for line in program._text.splitlines()[1:])
        read = {line[1] for line in lines if line[0] in ("floats", "ints")}
        arrays = {name: _readable(array) for name, array in self.arrays.items() if name in read}
        return Bound(program._text, tuple(arrays), tuple(arrays.values()), blocks)

    def blocks(self, program, device, shape):
        """The blocks of a mask, as the extension module keeps them."""
        text, names, arrays, _ = parts = self.bound(program).parts
        torch = sys.modules.get("torch")
        if torch is not None and all(isinstance(array, torch.Tensor) for array in arrays):
            from . import _flex_torch

            return _flex_torch.find_blocks(parts, device, shape)
        ordinal = -1
        if device is not None:
            ordinal = _ordinal(device, 0)
        elif any(not hasattr(array, "__array_interface__") for array in arrays):
            ordinal = arrays[0].__dlpack_device__()[1]
        return _native.find_blocks(of_arrays(parts), ordinal, shape)

    def name_of(self, array, name):
        """The name that the program has for an array."""
        known = self.names.get(id(array))
        if known is None:
            known, count = name, 1
            while known in self.arrays:
                known, count = f"{name}_{count}", count + 1
            self.arrays[known], self.names[id(array)] = array, known
            self.kept.append(array)
        return known

    def call(self, function, scope, *values):
        """What a function gives, with its tensors as those of the program."""
        try:
            return _Reading(self, scope).function(function)(*values)
        except IndexError as error:
            # What arrays of NumPy say to the index of a program.
            raise InputTypeError(f"an array takes no value of a program as an index ({error}); {OF_NAMES}") from error


class _Reading:
    """Functions whose tensors are those of a program: other functions with the same code."""

    def __init__(self, captured, scope):
        self.captured, self.scope, self.known = captured, scope, {}

    def value(self, x, name):
        """What stands for a variable of this name in the function."""
        if _is_array(x):
            return self.tensor(x, name)
        if isinstance(x, (types.FunctionType, types.MethodType, functools.partial)):
            return self.function(x)
        if type(x) in (tuple, list):
            return type(x)(self.value(element, f"{name}_{i}") for i, element in enumerate(x))
        return x

    def tensor(self, array, name):
        tensor = _Tensor(self.scope, self.captured.name_of(array, name), array)
        return tensor[0] if array.ndim == 0 else tensor

    def function(self, function):
        if isinstance(function, functools.partial):
            arguments = [self.value(x, "argument") for x in function.args]
            return functools.partial(self.function(function.func), *arguments, **{name: self.value(x, name) for name, x in function.keywords.items()})
        if isinstance(function, types.MethodType):
            return types.MethodType(self.function(function.__func__), function.__self__)
        if not isinstance(function, types.FunctionType):
            own = getattr(type(function), "__call__", None)
            return types.MethodType(self.function(own), function) if isinstance(own, types.FunctionType) else function
        if function.__module__ and function.__module__.split(".")[0] in ("torch", "numpy", "cupy", "ferroflash"):
            # Functions of packages name no tensors of users, but functions of users, as torch's `and_masks` does, as what they close over.
            names = ()
        else:
            names = _globals_of(function.__code__)
        if id(function) in self.known:
            return self.known[id(function)]
        self.known[id(function)] = function  # one that calls itself
        of_module = function.__globals__
        changed = {name: self.value(of_module[name], name) for name in names if name in of_module}
        changed = {name: x for name, x in changed.items() if x is not of_module[name]}
        closure = tuple(map(self.cell, function.__closure__ or (), function.__code__.co_freevars)) or None
        other = types.FunctionType(function.__code__, {**of_module, **changed} if changed else of_module, function.__name__, None, closure)
        other.__defaults__ = function.__defaults__ and tuple(self.value(x, "default") for x in function.__defaults__)
        other.__kwdefaults__ = function.__kwdefaults__ and {name: self.value(x, name) for name, x in function.__kwdefaults__.items()}
        self.known[id(function)] = other
        return other

    def cell(self, cell, name):
        try:
            held = cell.cell_contents
        except ValueError:  # a variable without a value yet
            return cell
        changed = self.value(held, name)
        return cell if changed is held else types.CellType(changed)


def _globals_of(code):
    """Names that code and the functions in it look up outside of functions."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_of(constant)
    return names


class _Tensor:
    """A tensor that a function names: read by indices, all at once or one after the other."""

    def __init__(self, scope, name, array, index=()):
        self._scope, self._name, self._array, self._index = scope, name, array, index

    def __getitem__(self, index):
        index = self._index + (index if isinstance(index, tuple) else (index,))
        axes = max(self._array.ndim, 1)
        if len(index) > axes:
            raise InputError(f"{self._name} has {axes} axes; {len(index)} indices are given")
        for x in index:
            if not hasattr(x, "_line") and not hasattr(x, "__index__"):
                raise _no_operation(f"indexing of {self._name} with {'...' if x is ... else 'a ' + type(x).__name__}")
        if len(index) < axes:
            return _Tensor(self._scope, self._name, self._array, index)
        index = tuple(self._from_the_start(x, extent) for x, extent in zip(index, self._array.shape or (1,)))
        kind = str(self._array.dtype).split(".")[-1]
        if kind.startswith(("float", "bfloat")):
            return self._scope.floats(self._name)[index]
        number = self._scope.ints(self._name)[index]
        return number != 0 if kind == "bool" else number

    def _from_the_start(self, x, extent):
        """An index that counts from the end where it is negative, as one that counts from the start."""
        if not hasattr(x, "_line"):
            return x if x.__index__() >= 0 else x.__index__() + extent
        # Where a score is, is never negative.
        of_place = self._scope._lines[x._line] in ("batch", "head", "row", "key", "q_rows", "kv_rows")
        return x if of_place else self._scope.where(x < 0, x + extent, x)

    def __getattr__(self, name):
        if name in ("shape", "ndim", "dtype", "device", "size", "dim", "numel") and not self._index:
            return getattr(self._array, name)
        if name.startswith("_"):
            raise AttributeError(name)
        raise _no_operation(f"{name} of the tensor {self._name}")

    def __len__(self):
        return self._array.shape[len(self._index)]

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        raise _no_operation(f"torch.{getattr(function, '__name__', function)} of a whole tensor")


def _readable(array):
    """An array as programs read it: float32 in the place of float64, integers of 32 bits without gaps in the place of all others and of conditions."""
    if array.ndim == 0:
        array = array.reshape(1)
    kind = str(array.dtype).split(".")[-1]
    if kind in ("float16", "bfloat16", "float32"):
        return array
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return array.to(torch.float32) if kind == "float64" else array.to(torch.int32).contiguous()
    if kind == "float64":
        return array.astype("float32")
    if not kind.startswith(("int", "uint", "bool")):
        raise InputTypeError(f"a tensor of {kind} is read by a function; numbers and conditions are accepted")
    array = array.astype("int32", copy=False)
    return array if array.flags.c_contiguous else array.copy(order="C")


def _copy_of(array):
    return array.clone() if hasattr(array, "clone") else array.copy()


def _ordinal(device, current):
    """The number of the GPU that a device names, -1 for the CPU."""
    kind, _, number = str(device).partition(":")
    if kind == "cpu":
        return -1
    if kind == "cuda" and (not number or number.isdecimal()):
        return int(number) if number else current
    raise InputError(f"device is {device!r}; 'cpu', 'cuda' and 'cuda:N' are accepted")
