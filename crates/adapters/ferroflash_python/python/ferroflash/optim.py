"""AdamW, and the norm of gradients by which they are clipped.

``AdamW``, ``clip_grad_norm_`` and ``gradient_norm`` take parameters of PyTorch. ``step`` and ``norm`` take any arrays.
"""

from numbers import Real

from . import _native
from ._arrays import package_of
from ._errors import InputError

_OF_TORCH = ("AdamW", "clip_grad_norm_", "gradient_norm")

__all__ = ["norm", "step", *_OF_TORCH]


def step(
    parameters,
    gradients,
    moments,
    second_moments,
    number,
    *,
    masters=None,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    gradient_scale=1.0,
    gradient_factor=None,
    stream=None,
    device=None,
):
    """A step of AdamW, with decay that is apart from gradients, over lists of arrays::

        g = gradient_scale gradient_factor gradient        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        w = (1 - lr weight_decay) w - lr / (1 - beta1^number) m / (sqrt(v) / sqrt(1 - beta2^number) + eps)

    Args:
        parameters: contiguous float16, bfloat16 or float32, overwritten.
        gradients: of the parameters' shapes, of their types or float32.
        moments, second_moments: float32 of the same shapes, overwritten; 0 before the first step.
        number: of the step, from 1 on; or int32 ``(1,)`` on the same device, which is not read on the host, and below 1 is taken for 1.
        masters: for each parameter float32 of its shape, or ``None``: it is ``w``, and a parameter of 16 bits what it rounds to. ``None`` is none at all.
        lr: a number, or float32 ``(1,)`` on the same device, which is not read on the host. A captured step reads it, and ``number``, anew.
        gradient_factor: float32 ``(1,)`` on the same device, such as the coefficient of :func:`norm`.
        stream, device: as in :func:`ferroflash.forward`.

    Raises:
        InputError, InputTypeError, DeviceError: before anything is launched, with what was given and what is accepted.
    """
    masters = [None] * len(parameters) if masters is None else masters
    lists = (parameters, gradients, moments, second_moments, masters)
    if len({len(of) for of in lists}) != 1:
        counts = ", ".join(str(len(of)) for of in lists)
        raise InputError(f"parameters, gradients, moments, second_moments and masters are {counts}; as many of all are accepted")
    of_host = isinstance(number, Real)
    if of_host and number < 1:
        raise InputError(f"number is {number}; steps are counted from 1 on")
    if not parameters:
        return
    package = package_of(parameters[0])
    names = ("parameter", "gradient", "moment", "second moment", "master")
    named = [(f"{name} {index}", array) for index, of in enumerate(zip(*lists)) for name, array in zip(names, of)]
    rate, count = None if isinstance(lr, Real) else lr, None if of_host else number
    named += [("gradient_factor", gradient_factor), ("lr", rate), ("number", count)]
    *told, factor, rate, count = package.told("ferroflash.optim.step", named)
    tensors = [told[first : first + 5] for first in range(0, len(told), 5)]
    # What is on the device takes the place of these.
    host_rate, host_number = float(lr) if rate is None else 0.0, number if of_host else 1
    options = (host_rate, *(float(beta) for beta in betas), float(eps), float(weight_decay), float(gradient_scale))
    _native.adamw(tensors, [factor, rate, count], host_number, package.stream_of(parameters[0], stream), device, options)


def norm(gradients, *, max_norm=None, gradient_scale=1.0, out=None, stream=None, device=None):
    """The norm of all gradients as one vector, and the coefficient that clips them.

    Args:
        gradients: contiguous float16, bfloat16 or float32, of any shapes; one at least.
        max_norm: the norm above which gradients are clipped; ``None`` clips none.
        gradient_scale: factor on gradients, such as 1 over a scale of the loss. It is not in the coefficient.
        out: contiguous float32 ``(2,)``; ``None`` makes a new array, for those of PyTorch, NumPy and CuPy.
        stream, device: as in :func:`ferroflash.forward`.

    Returns:
        ``out``, on the device: the norm, and ``min(1, max_norm / (norm + 1e-6))``.
    """
    if not gradients:
        raise InputError("no gradients were given; one or more are accepted")
    package = package_of(gradients[0])
    if out is None:
        out = package.new_like(gradients[0], (2,), "gradient 0", "`out`", "float32")
    named = [(f"gradient {index}", gradient) for index, gradient in enumerate(gradients)]
    *told, result = package.told("ferroflash.optim.norm", [*named, ("out", out)])
    most = None if max_norm is None else float(max_norm)
    _native.gradient_norm(told, result, package.stream_of(gradients[0], stream), device, most, float(gradient_scale))
    return out


def __getattr__(name):
    if name in _OF_TORCH:
        from . import _torch_optim

        return getattr(_torch_optim, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
