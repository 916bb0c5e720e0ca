"""The exceptions of the package. Those of the library come with its own messages."""


class Error(Exception):
    """Every exception of this package. Nothing was launched, unless the message says so."""


class InputError(Error, ValueError):
    """Shapes, strides, devices or numbers that do not fit together or that no kernel takes."""


class InputTypeError(Error, TypeError):
    """An object that is no tensor, or an element type that no kernel takes."""


class MissingFeatureError(Error, NotImplementedError):
    """What flash_attn does and ferroflash does not do yet. The message names it."""


class DeviceError(Error, RuntimeError):
    """No driver, no GPU or no memory, or a launch that failed."""


class EmulatorWarning(UserWarning):
    """Tensors are on the CPU: the emulator computes, thousands of times slower than a GPU."""


def missing(function: str, feature: str) -> MissingFeatureError:
    """The exception for a feature that waits for a kernel."""
    return MissingFeatureError(f"{function}: {feature} is not supported by ferroflash yet")
