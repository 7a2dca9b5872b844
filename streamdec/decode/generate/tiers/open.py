"""Opens the tiers of a kind: the first one in the dispatcher, the others in a worker."""

from __future__ import annotations

from ...bundle import Bundle
from ..generator import OpenGenerator
from ..job import Kind
from .bank import BankTier
from .base import First, Worked
from .nearest import NearestTier


def open_first(kind: Kind, bundle: Bundle, generator: OpenGenerator | None) -> First | None:
    """Open the first tier of a kind; None where the generator has no text bank.

    Raises
    ------
    BundleError
        Its files are not what they should be.
    EngineError
        Its network cannot be loaded.
    """
    if kind == "reconstruction":
        return NearestTier(bundle)
    return BankTier(generator) if generator is not None and generator.manifest.bank is not None else None


def open_tiers(generator: OpenGenerator, kind: Kind, device: str = "cpu", threads: int = 1) -> list[Worked]:
    """Load the tiers of a kind that run in a worker, cheap to good; imports torch where one needs it.

    Parameters
    ----------
    generator : OpenGenerator
    kind : str
    device : str
        As torch names it. Small ONNX networks run on the CPU all the same.
    threads : int
        Within one operation on the CPU.

    Raises
    ------
    BundleError
        A model is not on this machine, or not what the manifest says.
    EngineError
        A network cannot be loaded, or the device is not there.
    """
    tiers: list[Worked] = []
    manifest = generator.manifest
    if kind == "caption" and manifest.llm is not None:
        from .llm import LlmTier

        tiers.append(LlmTier(generator, device, threads))
    if kind == "reconstruction" and manifest.latent is not None:
        from .latent import LatentTier

        tiers.append(LatentTier(generator, threads))
    if kind == "reconstruction" and manifest.diffusion is not None:
        from .diffusion import DiffusionTier

        tiers.append(DiffusionTier(generator, device, threads))
    return tiers
