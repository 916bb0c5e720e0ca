"""Programs on scores, written in Python: a function is called once with values that stand for operations, and what it does with them is the
program that runs inside of the kernels."""

import numbers
import operator

from . import _native
from ._errors import InputError, InputTypeError, missing

_INT32 = range(-(2**31), 2**31)
_MOST_AXES = 4
# Of an index that nobody can follow.
OF_NAMES = "programs read tensors by name, and functions of flex_attention read tensors that they name themselves, not those of an object or a list"


class ScoreProgram:
    """A function of scores and of where they are, which scores pass through before the mask and the softmax.

    ``write`` is called once, with a :class:`ferroflash.Scope`, and returns the new score. It chooses with ``where``, not with ``if``: conditions have no
    value while a program is written. A score of minus infinity, ``scope.hidden``, is a key that the row does not see::

        def dilated(p):
            distance = abs(p.position - p.key)
            decayed = p.score - p.floats("slopes")[p.head] * distance
            return p.where(distance % 2 == 0, decayed, p.hidden)

        program = ferroflash.ScoreProgram(dilated)
        out = ferroflash.forward(q, k, v, program=program, tensors={"slopes": slopes})

    Kernels compute it in float32, with the functions of the hardware. Numbers and 32-bit integers are two kinds: integers become numbers where they
    meet one, and a quotient ``/`` is a number. A key that a program hides is still visited: masks that skip keys are ``causal`` and ``window``.

    Args:
        write: the function.
        name: of the program, which errors and plans say; ``None`` is that of the function.

    Raises:
        InputError, InputTypeError: values that do not fit together, a tensor that is read in two ways, too many operations.
    """

    def __init__(self, write, name=None):
        if name is None:
            name = getattr(write, "__name__", type(write).__name__)
        self.name = "".join(x if x.isalnum() or x in "_- " else "" for x in str(name)).strip() or "program"
        scope = Scope()
        result = scope._float(write(scope))
        self._text = "\n".join([self.name, *scope._lines, f"result {result._line}"])
        self._shown = _native.describe_program(self._text)

    @classmethod
    def alibi(cls):
        """Attention with linear biases: ``score - slopes[batch, head] * |position - key|``. It reads one tensor, ``slopes``, ``(batch, heads)``, or ``(1,
        heads)`` for all of the batch."""
        program = cls.__new__(cls)
        program.name = program._text = "alibi"
        program._shown = _native.describe_program(program._text)
        return program

    @classmethod
    def mask(cls, sees, name=None):
        """The program that keeps a score where the condition that ``sees`` returns holds, and hides the key elsewhere."""
        return cls(lambda p: p.where(sees(p), p.score, p.hidden), getattr(sees, "__name__", "mask") if name is None else name)

    def __repr__(self):
        return self._shown

    def __eq__(self, other):
        return self._text == other._text if isinstance(other, ScoreProgram) else NotImplemented

    def __hash__(self):
        return hash(self._text)


class Scope:
    """Where a program is written: the score and where it is, tensors by name, and what has no operator.

    Attributes:
        score: ``softmax_scale * q @ k.T``, behind the softcap if there is one.
        batch, head, row, key: batch entry or sequence, head of q, row and key, counted from 0 in each sequence; keys of a cache from the first in use.
        q_rows, kv_rows: how many rows and keys the sequence has.
        position: the key where the row stands, ``row + kv_rows - q_rows``: the last that it sees under a causal mask.
        hidden: minus infinity, the score of a key that the row does not see.
    """

    def __init__(self):
        self._lines, self._known = [], {}

    score = property(lambda self: Float(self, "score"))
    batch = property(lambda self: Int(self, "batch"))
    head = property(lambda self: Int(self, "head"))
    row = property(lambda self: Int(self, "row"))
    key = property(lambda self: Int(self, "key"))
    q_rows = property(lambda self: Int(self, "q_rows"))
    kv_rows = property(lambda self: Int(self, "kv_rows"))
    position = property(lambda self: self.row + self.kv_rows - self.q_rows)
    hidden = property(lambda self: Float(self, "float -inf"))

    def floats(self, name):
        """A tensor of numbers (float16, bfloat16, float32) of 1 to 4 axes, ``scope.floats(name)[index, ..]``. Outside of it is 0; along an axis of
        extent 1, every index is its element."""
        return _Tensor(self, name, "floats", Float)

    def ints(self, name):
        """A tensor of 32-bit integers, likewise."""
        return _Tensor(self, name, "ints", Int)

    def where(self, condition, yes, no):
        """``yes`` where the condition holds, else ``no``. Both are computed."""
        condition = self._bool(condition)
        yes, no = _alike(self, yes, no)
        return type(yes)(self, f"select {condition._line} {yes._line} {no._line}")

    def minimum(self, a, b):
        """The smaller of the two."""
        return _binary(self, "min", a, b)

    def maximum(self, a, b):
        """The larger of the two."""
        return _binary(self, "max", a, b)

    def exp(self, x):
        """``e`` to the power of ``x``."""
        return self._unary("exp", x)

    def log(self, x):
        """The natural logarithm."""
        return self._unary("log", x)

    def sqrt(self, x):
        """The square root."""
        return self._unary("sqrt", x)

    def tanh(self, x):
        """The hyperbolic tangent."""
        return self._unary("tanh", x)

    def sigmoid(self, x):
        """``1 / (1 + exp(-x))``."""
        return self._unary("sigmoid", x)

    def _unary(self, operation, x):
        return Float(self, f"{operation} {self._float(x)._line}")

    def _emit(self, line):
        """The number of a line, which is written once."""
        at = self._known.setdefault(line, len(self._lines))
        if at == len(self._lines):
            self._lines.append(line)
        return at

    def _value(self, x):
        """A value of this program, or a constant."""
        if isinstance(x, _Value):
            if x._scope is not self:
                raise InputError("a value of one program is used in another")
            return x
        if not isinstance(x, bool) and getattr(x, "ndim", None) == 0 and hasattr(x, "item"):
            x = x.item()  # a number of NumPy, or a tensor that is one
        if isinstance(x, bool):
            return Bool(self, f"bool {int(x)}")
        try:
            x = operator.index(x)
        except TypeError:
            if isinstance(x, numbers.Real):
                return Float(self, f"float {float(x)!r}")
            found = type(x).__name__
            raise InputTypeError(f"a program computes with its own values and with numbers; it is given a {found}") from None
        if x not in _INT32:
            raise InputError(f"{x} is no integer of 32 bits, as programs have them")
        return Int(self, f"int {x}")

    def _float(self, x):
        x = self._value(x)
        if isinstance(x, Int):
            return Float(self, f"to_float {x._line}")
        if isinstance(x, Bool):
            raise InputTypeError("a condition is no number; where(condition, yes, no) makes one of it")
        return x

    def _bool(self, x):
        x = self._value(x)
        if not isinstance(x, Bool):
            raise InputTypeError("a number is no condition; comparisons make one of it")
        return x


class _Tensor:
    def __init__(self, scope, name, kind, of):
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{name!r} is no name of a tensor; identifiers are accepted")
        self._scope, self._name, self._kind, self._of = scope, name, kind, of

    def __getitem__(self, index):
        scope = self._scope
        index = [scope._value(x) for x in (index if isinstance(index, tuple) else (index,))]
        if not 1 <= len(index) <= _MOST_AXES:
            raise InputError(f"{self._name} is given {len(index)} indices; 1 to {_MOST_AXES} are accepted")
        if not all(isinstance(x, Int) for x in index):
            raise InputTypeError(f"{self._name} is given an index that is no integer")
        return self._of(scope, " ".join([self._kind, self._name, *(str(x._line) for x in index)]))


class _Value:
    __slots__ = ("_scope", "_line")
    # NumPy is to leave operators with its numbers to this class.
    __array_ufunc__ = None

    def __init__(self, scope, line):
        self._scope, self._line = scope, scope._emit(line)

    def __bool__(self):
        raise InputTypeError(
            "a value of a program has none while the program is written; `where` chooses in place of `if`, and `&`, `|`, `~` are `and`, `or`, `not`"
        )

    def __index__(self):
        raise InputTypeError(
            "a value of a program has none while the program is written: it is no bound of a loop, and no index of a tensor that the program does not "
            f"know; {OF_NAMES}"
        )

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        raise _no_operation(name)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        """Functions of PyTorch on values of a program."""
        name = getattr(function, "__name__", str(function)).strip("_")
        if name == "getitem":
            raise InputTypeError(f"a tensor takes no value of a program as an index; {OF_NAMES}")
        operation = _OF_TORCH.get(name)
        if operation is None:
            raise _no_operation(f"torch.{name}")
        scope = next(x._scope for x in (*arguments, *(named or {}).values()) if isinstance(x, _Value))
        try:
            return operation(scope, *arguments, **(named or {}))
        except TypeError as error:
            if isinstance(error, InputTypeError):
                raise
            raise _no_operation(f"torch.{name} with these arguments") from None

    __hash__ = None


class Bool(_Value):
    """A condition: ``&``, ``|`` and ``~`` join conditions."""

    __slots__ = ()

    def _join(operation):
        def join(self, other):
            return Bool(self._scope, f"{operation} {self._line} {self._scope._bool(other)._line}")

        return join

    __and__ = __rand__ = _join("and")
    __or__ = __ror__ = _join("or")

    def __invert__(self):
        return Bool(self._scope, f"not {self._line}")

    def __eq__(self, other):
        raise InputTypeError("conditions are not compared; `&`, `|` and `~` join them")

    __hash__ = None


def _alike(scope, a, b):
    """Two values of one kind: an integer becomes a number where it meets one."""
    a, b = scope._value(a), scope._value(b)
    if type(a) is type(b) is Int:
        return a, b
    return scope._float(a), scope._float(b)


def _binary(scope, operation, a, b):
    a, b = _alike(scope, a, b)
    return type(a)(scope, f"{operation} {a._line} {b._line}")


def _operators(operation):
    def left(self, other):
        return _binary(self._scope, operation, self, other)

    def right(self, other):
        return _binary(self._scope, operation, other, self)

    return left, right


def _comparison(operation):
    def compare(self, other):
        a, b = _alike(self._scope, self, other)
        if operation in ("eq", "ne") and isinstance(a, Float):
            raise InputTypeError("numbers are compared by <, <=, > and >=; integers by == and != too")
        return Bool(self._scope, f"{operation} {a._line} {b._line}")

    return compare


class _Number(_Value):
    __slots__ = ()

    __add__, __radd__ = _operators("add")
    __sub__, __rsub__ = _operators("sub")
    __mul__, __rmul__ = _operators("mul")
    __lt__, __le__ = _comparison("lt"), _comparison("le")
    __gt__, __ge__ = _comparison("gt"), _comparison("ge")
    __eq__, __ne__ = _comparison("eq"), _comparison("ne")
    __hash__ = None

    def __truediv__(self, other):
        return _quotient(self._scope, self, other)

    def __rtruediv__(self, other):
        return _quotient(self._scope, other, self)

    def exp(self):
        return self._scope.exp(self)

    def log(self):
        return self._scope.log(self)

    def sqrt(self):
        return self._scope.sqrt(self)

    def tanh(self):
        return self._scope.tanh(self)

    def sigmoid(self):
        return self._scope.sigmoid(self)

    def abs(self):
        return abs(self)

    def float(self):
        return self._scope._float(self)

    def clamp(self, min=None, max=None):
        return _clamped(self._scope, self, min, max)

    def minimum(self, other):
        return self._scope.minimum(self, other)

    def maximum(self, other):
        return self._scope.maximum(self, other)

    def where(self, condition, other):
        return self._scope.where(condition, self, other)

    # As masks of PyTorch begin that are joined of others.
    device = None

    def new_ones(self, size=(), dtype=None, device=None):
        return _one_condition(self._scope, "new_ones", size, dtype, True)

    def new_zeros(self, size=(), dtype=None, device=None):
        return _one_condition(self._scope, "new_zeros", size, dtype, False)

    def __neg__(self):
        return type(self)(self._scope, f"neg {self._line}")

    def __abs__(self):
        return type(self)(self._scope, f"abs {self._line}")


def _quotient(scope, a, b):
    return Float(scope, f"div {scope._float(a)._line} {scope._float(b)._line}")


class Float(_Number):
    """A number, float32 in kernels."""

    __slots__ = ()


class Int(_Number):
    """An integer of 32 bits. Sums and products wrap around; ``//`` and ``%`` take a positive constant and round as Python does."""

    __slots__ = ()

    def __floordiv__(self, other):
        return self._divided("div_floor", other)

    def __mod__(self, other):
        return self._divided("rem_floor", other)

    def _divided(self, operation, divisor):
        try:
            divisor = operator.index(divisor)
        except TypeError:
            found = type(divisor).__name__
            raise InputTypeError(f"integers are divided by positive constants; a {found} is given") from None
        if divisor not in _INT32:
            raise InputError(f"{divisor} is no integer of 32 bits, as programs have them")
        return Int(self._scope, f"{operation} {self._line} {divisor}")


def _no_operation(name):
    return missing("a program on scores", f"the operation {name}")


def _one_condition(scope, name, size, dtype, holds):
    if tuple(size) or str(dtype).split(".")[-1] != "bool":
        raise _no_operation(f"{name}, but of one condition (size=(), dtype=torch.bool),")
    return scope._bool(holds)


def _clamped(scope, x, min=None, max=None):
    x = x if min is None else scope.maximum(x, min)
    return x if max is None else scope.minimum(x, max)


def _like(fill):
    """A constant of the kind of the first value."""

    def like(scope, x, *value):
        constant = scope._value(value[0] if fill is None else fill)
        return scope._float(constant) if isinstance(x, Float) else constant

    return like


def _by_operator(operation):
    """By the operator of Python, with numbers of NumPy and tensors that are one as values of the program."""
    return lambda scope, *values: operation(*map(scope._value, values))


_LN_2 = 0.6931471805599453

# What functions of PyTorch are, by name.
_OF_TORCH = {
    **{name: (lambda name: lambda scope, x: getattr(scope, name)(x))(name) for name in ("exp", "log", "sqrt", "tanh", "sigmoid")},
    **{name: (lambda name: lambda scope, a, b: getattr(scope, name)(a, b))(name) for name in ("minimum", "maximum")},
    "where": lambda scope, condition, yes, no: scope.where(condition, yes, no),
    "clamp": _clamped,
    "clip": _clamped,
    "exp2": lambda scope, x: scope.exp(scope._float(x) * _LN_2),
    "log2": lambda scope, x: scope.log(x) / _LN_2,
    "log1p": lambda scope, x: scope.log(1.0 + scope._float(x)),
    "rsqrt": lambda scope, x: 1.0 / scope.sqrt(x),
    "square": lambda scope, x: x * x,
    "zeros_like": _like(0),
    "ones_like": _like(1),
    "full_like": _like(None),
    "rsub": _by_operator(lambda a, b: b - a),
    "rdiv": _by_operator(lambda a, b: b / a),
    **{name: _by_operator(operator.abs) for name in ("abs", "absolute")},
    **{name: _by_operator(operator.neg) for name in ("neg", "negative")},
    **{name: _by_operator(operator.add) for name in ("add", "radd")},
    **{name: _by_operator(operator.sub) for name in ("sub", "subtract")},
    **{name: _by_operator(operator.mul) for name in ("mul", "multiply", "rmul")},
    **{name: _by_operator(operator.truediv) for name in ("div", "divide", "true_divide", "truediv")},
    **{name: (lambda divide: lambda scope, x, by: divide(scope._value(x), by))(divide) for name, divide in (("floor_divide", operator.floordiv), ("remainder", operator.mod))},
    **{name: _by_operator(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"{kind}_{name}": _by_operator(join) for kind in ("logical", "bitwise") for name, join in (("and", operator.and_), ("or", operator.or_))},
    **{f"{kind}_not": _by_operator(operator.invert) for kind in ("logical", "bitwise")},
    **{name: _by_operator(join) for name, join in (("and", operator.and_), ("or", operator.or_), ("rand", operator.and_), ("ror", operator.or_))},
}


class Bound:
    """What :func:`bound` gives, in the place of a program: of functions of flex_attention, which name their tensors themselves."""

    def __init__(self, *parts):
        self.parts = parts


def bound(program, tensors):
    """What the functions of this package carry along: ``(text, names, tensors, blocks)``."""
    if program is None:
        if tensors:
            raise InputError(f"tensors has {sorted(tensors)}; there is no program that reads them")
        return None
    if isinstance(program, Bound):
        return program.parts
    if not isinstance(program, ScoreProgram):
        raise InputTypeError(f"program is a {type(program).__name__}; a ferroflash.ScoreProgram is accepted")
    tensors = dict(tensors or {})
    return program._text, tuple(tensors), tuple(tensors.values()), None


def of_arrays(program):
    """A program as the extension module takes it, with arrays of any package."""
    if program is None:
        return None
    text, names, tensors, blocks = program
    return text, list(zip(names, tensors)), blocks
