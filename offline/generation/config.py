"""What a generator is made of: a TOML file that names a run, features, captions and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from streamdec.config import convert, read_toml
from streamdec.decode.generate.spec import Drawing, Dtype
from streamdec.errors import ConfigError

from .diffusion_prior import DiffusionPriorSettings
from .expectation import ExpectationSettings
from .projector import ProjectorSettings


class BankConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``text`` tower as ``features`` names it; ``images`` folder of features by the image tower of the same model."""

    text: str
    images: str


class LlmConfig(ProjectorSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``model`` of transformers, and what the manifest says of it; the rest is how the projector is trained."""

    model: str
    prompt: str = "<image> <label> Describe this image in one sentence:"
    system: str = "You are a helpful assistant."
    min_tokens: int = 8
    max_tokens: int = 100
    repetition_penalty: float = 1.1
    dtype: Dtype = "float32"


class LatentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``vae`` of diffusers; ``latents`` folder of features by it; ``reads`` the embedding, or the epoch itself."""

    vae: str
    latents: str
    reads: Literal["embedding", "epoch"] = "embedding"


class DiffusionConfig(Drawing, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of three ways into ``model``, and how it draws.

    ``prior`` folder that ``streamdec-train prior`` made; or ``adapter``, a file of IP-Adapter weights. ``features`` by
    role, of the images, that prior or adapter were trained on. A prior that fuses: HVF's way; an embedding goes through
    phi_c unless ``brain_through_adapter`` is false, which is how the reference draws. With ``diffusion_prior`` one of
    ATM is trained from embeddings of epochs to the features; else a linear map leads there, where it is needed, unless
    ``bridge`` is false: then they go in as they are, as ENIGMA has it, and must have the same width.
    """

    model: str
    features: dict[str, str]
    size: int
    prior: str = ""
    adapter: str = ""
    diffusion_prior: DiffusionPriorSettings | None = None
    bridge: bool = True
    brain_through_adapter: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.prior) == bool(self.adapter):
            raise ConfigError("diffusion", got="prior and adapter" if self.prior else "neither", allowed="one of them")
        if not self.features:
            raise ConfigError("diffusion features", got="none", allowed="those the prior or the adapter was trained on")


class GeneratorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A generator.

    ``run`` whose embeddings it reads. ``images`` features by role of the run, of other images than its training
    part: all parts without EEG are then fitted on those. ``captions`` of these images, and of the training part for
    an LLM's third stage (:mod:`..targets.text` says how they lie). ``rescale`` gives every embedding the length
    that images have first; ``expectation`` then takes those of epochs to what is expected of their images', as far as
    the concepts that the run was validated on show it (:mod:`.expectation`). ``inside`` copies models that are folders
    here into the generator, so that it can be carried elsewhere.
    """

    run: str
    images: dict[str, str] = {}
    captions: str = ""
    rescale: bool = True
    expectation: ExpectationSettings = ExpectationSettings()
    inside: bool = True
    seed: int = 0
    bank: BankConfig | None = None
    llm: LlmConfig | None = None
    latent: LatentConfig | None = None
    diffusion: DiffusionConfig | None = None

    def __post_init__(self) -> None:
        if self.diffusion is not None and self.diffusion.captioned and self.llm is None:
            raise ConfigError("diffusion captioned", got="no llm", allowed="with an [llm]")
        if (self.bank or self.llm) and not self.captions:
            raise ConfigError("captions", got="none", allowed="a table of captions, for bank and llm")


_FOLDERS = {"run", "images", "captions", "latents", "prior", "adapter", "features"}
_MODELS = {"model", "vae"}  # folders, or names on the hub


def read(path: Path) -> GeneratorConfig:
    """Read a config; folders and files in it start from its own folder.

    Raises
    ------
    ConfigError
        An unknown key, a wrong type or value.
    """
    return convert(_from(read_toml(path), path.parent), GeneratorConfig, f"config {path}")


def _from(fields: dict[str, Any], folder: Path, key: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in fields.items():
        of = key if key in ("images", "features") else name  # tables of folders by role
        if isinstance(value, dict):
            made[name] = _from(value, folder, name)
        elif isinstance(value, str) and value and (of in _FOLDERS or (of in _MODELS and (folder / value).is_dir())):
            made[name] = str((folder / value).resolve())
        else:
            made[name] = value
    return made
