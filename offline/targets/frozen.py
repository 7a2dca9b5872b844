"""What every frozen network here shares: how it is run, and what is said when it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from streamdec.errors import ConfigError, EngineError

if TYPE_CHECKING:
    import torch


def run(call: Callable[[int], torch.Tensor], n: int, device: str) -> torch.Tensor:
    """Call a network on a batch, without gradients.

    Parameters
    ----------
    call : callable
        How many of the batch, from its beginning -> what the network gives for them.
    n : int
        The whole batch.
    device : str
        Where it runs, for the message.

    Returns
    -------
    Tensor
        What the call gave, on the CPU.

    Raises
    ------
    EngineError
        Out of memory; says the batch that fits.
    """
    import torch

    # The same numbers each time: no TF32 in convolutions, and none of the algorithms that differ from run to run.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        try:
            return call(n).cpu()
        except torch.OutOfMemoryError as error:
            why = str(error).partition(".")[0]
        fits = n  # outside of the handler: its traceback holds the tensors of the call that failed
        while fits := fits // 2:
            try:
                call(fits)
            except torch.OutOfMemoryError:
                continue
            raise EngineError(f"out of memory on {device}", got=f"batch {n}: {why}", do=f"--batch {fits} fits")
    raise EngineError(
        f"out of memory on {device}", got=f"a batch of 1: {why}", do="take a smaller model, or --device cpu"
    )


def check_device(device: str) -> str:
    """Look whether torch can use a device, and tell the model of a GPU, or the name as it was given.

    Raises
    ------
    ConfigError
        There is none of this name here.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        first = str(error).partition("\n")[0]
        raise ConfigError(f"device {device}", got=first, allowed="cpu, or what torch finds here") from error
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def missing(package: str, extra: str) -> ConfigError:
    """Error of a package that is not installed."""
    return ConfigError(f"{package} is not installed", do=f"pip install 'streamdec[{extra}]'")
