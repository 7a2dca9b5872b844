"""A generator for a run: its parts fitted one by one, resumable, then sealed in a folder the live side opens.

While it is made, what training needs to go on is kept in ``OUT.parts``.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from streamdec.decode.generate.generator import write_generator
from streamdec.decode.generate.spec import Bank, Diffusion, Drawing, Generator, Latent, Llm
from streamdec.decode.generate.tiers.diffusion import TEXT
from streamdec.errors import ConfigError, DataError
from streamdec.types import Float32

from .. import checkpoint
from ..checkpoint import RunFolder, writing
from ..data.store import Item
from ..progress import Report, silent
from ..space import space
from ..targets.huggingface import opened
from ..targets.store import Targets
from ..targets.text import read_captions
from . import diffusion_prior, expectation, onnx_file, projector
from .bank import write_bank
from .config import DiffusionConfig, GeneratorConfig
from .diffuser import empty_prompt, latent_shape
from .latent import write_latent
from .linear import Rescaled, fit_linear, typical_length
from .loop import Rows
from .prior import Prior
from .source import Shown, Source

_CITATIONS = {
    "bank": "nearest sentence in the space of a text tower",
    "llm": "Mishra et al. (2024), Thought2Text, arXiv 2410.07507",
    "latent": "ridge regression to latents, after Perceptogram (desa-lab/Perceptogram)",
    "hvf": "HVF (2026), Learning Brain Representation with Hierarchical Visual Embeddings, ICLR",
    "atm": "Li et al. (2024), Visual Decoding and Reconstruction via EEG Embeddings, arXiv 2403.07721",
    "captioned": "Takagi, Nishimoto (2023), image reconstruction via multiple decoded inputs, arXiv 2306.11536",
    "direct": "Ye et al. (2023), IP-Adapter, arXiv 2308.06721",
}
_QUERY = "query.onnx"
_CONDITIONER = "conditioner.onnx"
_CHECKED = 3  # embeddings an exported network is compared on
_SAME = 1e-3  # of the typical length: embeddings that differ less are the features themselves


def build(config: GeneratorConfig, out: Path, *, device: str = "cpu", report: Report = silent) -> dict[str, float]:
    """Make a generator.

    Parameters
    ----------
    config : GeneratorConfig
    out : Path
        New folder. A killed call goes on with what ``OUT.parts`` holds.
    device : str
        For what is trained by steps.
    report : callable

    Returns
    -------
    dict
        What was found on the way: variance explained in concepts left out, losses.

    Raises
    ------
    ConfigError
        The folder exists; features, captions or models do not fit.
    DataError
        An image without a caption; see the parts.
    """
    if out.exists():
        raise ConfigError(f"{out}", got="it exists", do="name another folder, or delete it")
    return _Builder(config, out, device, report).build()


class _Builder:
    def __init__(self, config: GeneratorConfig, out: Path, device: str, report: Report) -> None:
        self.config, self.out, self.device, self.report = config, out, device, report
        self.parts = out.with_name(out.name + ".parts")
        self.folder = self.parts / "generator"
        self.notes: dict[str, float] = {}
        self.citations: list[str] = []
        images = {role: Targets(Path(path)) for role, path in config.images.items()}
        self.source = Source(Path(config.run), images or None)
        raw = self.source.candidates()
        length = typical_length(raw)
        self.before: nn.Module = Rescaled(length) if config.rescale else nn.Identity()
        self.embeddings = self._rescaled(raw)
        self.length = length
        self.group = self.source.concepts()
        self.query: nn.Module = self.before
        self._captions = read_captions(Path(config.captions)) if config.captions else {}
        self._shown: Shown | None = None

    @property
    def shown(self) -> Shown:
        if self._shown is None:
            self._shown = self.source.shown()
        return self._shown

    def build(self) -> dict[str, float]:
        with writing(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        config, meta = self.config, self.source.meta
        if config.diffusion:
            _texts(config.diffusion)  # refused now, not after the hours that the others take
        query = self._query()
        made: dict[str, Any] = {
            "bank": self._bank() if config.bank else None,
            "latent": self._latent() if config.latent else None,
            "llm": self._llm() if config.llm else None,
            "diffusion": self._diffusion(config.diffusion) if config.diffusion else None,
        }
        run = RunFolder(Path(config.run))
        manifest = Generator(
            space=space(run.encoder, meta, self.source.encoder, self.source.targets),
            dim=self.source.dim,
            citation="; ".join(dict.fromkeys(self.citations)),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            commit=checkpoint.commit(),
            config={
                "generator": checkpoint.without_folders(msgspec.to_builtins(config)),
                "method": meta.method,
                "notes": self.notes,
                "versions": checkpoint.versions(),
            },
            seeds=(config.seed,),
            data=" ".join(meta.data),
            simulated=self.source.simulated,
            query=query,
            **made,
        )
        write_generator(self.folder, manifest)
        with writing(self.out):
            self.folder.replace(self.out)
            shutil.rmtree(self.parts, ignore_errors=True)
        return self.notes

    def _query(self) -> str:
        """Learn what to make of the embedding of an epoch, before all that is fitted on embeddings of images."""
        settings = self.config.expectation
        if settings.fit and (held := self.shown.held).any() and not held.all():
            images = self._rescaled(self.source.images_of(self.shown))[self.shown.item]
            found = expectation.fit(
                self._rescaled(self.shown.embeddings),
                images,
                held,
                settings,
                self.parts / "expectation",
                seed=self.config.seed,
                device=self.device,
                report=lambda line, done=0, total=0: self.report(f"expectation, {line}", done, total),
            )
            self._note("expectation", explained=found.explained, ridge=found.ridge)
            self.query = nn.Sequential(self.before, found.network)
        if isinstance(self.query, nn.Identity):
            return ""
        self._export(_QUERY, self.query, "expected")
        return _QUERY

    def _bank(self) -> Bank:
        config = self.config.bank
        assert config is not None
        self.report("bank")
        said = self._said(self.source.items)
        own, rows = self._captioned(self.shown.of_sample)
        bank = said + own
        if (held := self.shown.held[rows]).any():
            own, rows = [text for text, is_held in zip(own, held, strict=True) if is_held], rows[held]
        scale, adapter, explained = write_bank(
            self.folder,
            bank,
            config.text,
            self.embeddings,
            self._features(Path(config.images)),
            self.group,
            self._of_epochs(self.shown.embeddings[rows]),
            own,
            self.device,
        )
        self._note("bank", explained=explained, scale=scale)
        return Bank("bank.safetensors", "bank.json", scale, adapter)

    def _latent(self) -> Latent:
        config = self.config.latent
        assert config is not None
        self.report("latent")
        targets = Targets(Path(config.latents))
        shape = latent_shape(targets)
        if config.reads == "embedding":
            x, wanted, group = self.embeddings, self._features(targets.path), self.group
        else:
            x = self.shown.epochs
            wanted = np.asarray(targets.of(self.shown.of_sample), np.float32)
            names = [item.concept for item in self.shown.of_sample]
            group = np.unique(names, return_inverse=True)[1].astype(np.int64)
        path = self.folder / "latent.onnx"
        explained = write_latent(path, config.vae, x, wanted, shape, group, config.reads)
        self._note("latent", explained=explained)
        return Latent("latent.onnx", config.reads)

    def _llm(self) -> Llm:
        config = self.config.llm
        assert config is not None
        settings = projector.ProjectorSettings(
            **{name: getattr(config, name) for name in projector.ProjectorSettings.__struct_fields__}
        )
        speaker = projector.Speaker(config.model, config.system, config.prompt, self.device, config.dtype)
        items = self.source.items
        images = projector.Told(self.embeddings, [item.label for item in items], self._said(items))
        epochs = None
        if settings.epochs is not None:
            own, rows = self._captioned(self.shown.of_sample)
            if settings.right_only:
                right = self.source.right(self.shown)[rows]
                self._note("llm", right=float(right.mean()))
                own, rows = [text for text, is_right in zip(own, right, strict=True) if is_right], rows[right]
            if not len(rows):
                raise DataError("llm.right_only", got="no epoch is decoded right", do="set it to false")
            labels = [self.shown.of_sample[row].label for row in rows]
            epochs = projector.Told(self._of_epochs(self.shown.embeddings[rows]), labels, own)
        trained, losses = projector.fit(
            speaker, images, epochs, settings, self.parts / "llm", seed=self.config.seed, report=self.report
        )
        self._note("llm", **losses)
        self._export("projector.onnx", trained, "vectors")
        return Llm(
            model=self._model(config.model, "llm"),
            projector="projector.onnx",
            prompt=config.prompt,
            system=config.system,
            min_tokens=config.min_tokens,
            max_tokens=config.max_tokens,
            repetition_penalty=config.repetition_penalty,
            dtype=config.dtype,
        )

    def _diffusion(self, config: DiffusionConfig) -> Diffusion:
        prior = Prior(Path(config.prior)) if config.prior else None
        native = self._native(config, prior)
        fused = prior is not None and prior.meta.settings.fuse
        layers: list[nn.Module] = []
        if config.diffusion_prior is not None:
            if fused:
                raise ConfigError("diffusion_prior", got="with a prior that fuses", allowed="with a plain adapter")
            self._sampled(config.diffusion_prior, native)
        else:
            if native.shape != self.embeddings.shape and not config.bridge:
                got = f"embeddings of {self.source.dim} dims"
                raise ConfigError("diffusion bridge = false", got=got, allowed=f"{native.shape[1]} dims")
            if config.bridge and not self._same(native):
                bridge, explained = fit_linear(self.embeddings, native, self.group)
                self._note("diffusion", explained=explained)
                layers.append(bridge)
            if prior is not None and fused and config.brain_through_adapter:
                layers.append(prior.network.projector)
            if layers:
                self._export(_CONDITIONER, nn.Sequential(*layers), "condition")
        self.citations.append(_CITATIONS["hvf" if fused else "atm" if config.diffusion_prior else "direct"])
        texts = _texts(config)
        if config.captioned:
            self.citations.append(_CITATIONS["captioned"])
        if prior is not None:
            for name in ("adapter.safetensors", "prompt.safetensors"):
                shutil.copyfile(prior.path / name, self.folder / name)
        else:
            shutil.copyfile(config.adapter, self.folder / "adapter.safetensors")
            self._write_prompt(config.model)
        return Diffusion(
            model=self._model(config.model, "diffusion", ("unet", "scheduler", "vae", *texts)),
            adapter="adapter.safetensors",
            prompt="prompt.safetensors",
            size=config.size,
            conditioner=_CONDITIONER if layers or config.diffusion_prior else "",
            **{name: getattr(config, name) for name in Drawing.__struct_fields__}
            | {"vae": self._model(config.vae, "vae") if config.vae else ""},
        )

    def _native(self, config: DiffusionConfig, prior: Prior | None) -> Float32:
        """Features of the images as phi_c or the adapter takes them: (n_images, D)."""
        arrays = {role: self._features(Path(path)) for role, path in config.features.items()}
        if prior is None:
            if len(arrays) > 1:
                raise ConfigError("diffusion features", got=", ".join(arrays), allowed="those of the adapter, one")
            (only,) = arrays.values()
            return only.reshape(len(only), -1)
        widths = {role: int(np.prod(array.shape[1:])) for role, array in arrays.items()}
        if widths != prior.meta.widths:
            raise ConfigError(f"diffusion features for {prior.path}", got=widths, allowed=prior.meta.widths)
        return prior.fused(arrays)

    def _same(self, native: Float32) -> bool:
        """Whether embeddings are these features, once they have the same length."""
        if native.shape != self.embeddings.shape:
            return False
        return bool(np.abs(self._rescaled(native) - self.embeddings).max() <= _SAME * self.length)

    def _sampled(self, settings: diffusion_prior.DiffusionPriorSettings, native: Float32) -> None:
        """Train ATM's prior from epochs to the images' features, and write its sampling."""
        place = {item.id: i for i, item in enumerate(self.source.items)}
        rows = [i for i, item in enumerate(self.shown.of_sample) if item.id in place]
        if not rows:
            raise DataError("diffusion_prior", got="no training stimulus among the images", do="leave images out")
        conditions = self._of_epochs(self.shown.embeddings[rows])
        images = native[[place[self.shown.of_sample[row].id] for row in rows]]
        network, loss = diffusion_prior.fit(
            conditions,
            images,
            settings,
            self.parts / "diffusion_prior",
            seed=self.config.seed,
            device=self.device,
            report=self.report,
        )
        self._note("diffusion_prior", loss=loss)
        sampler = diffusion_prior.Sampler(network, settings)
        noise = diffusion_prior.noises(sampler, _CHECKED, self.config.seed)
        examples = [{"embedding": self.embeddings[i : i + 1], "noise": noise[i]} for i in range(_CHECKED)]
        onnx_file.write(self.folder / _CONDITIONER, sampler, examples, "condition")

    def _write_prompt(self, model: str) -> None:
        from diffusers import DiffusionPipeline

        pipeline = opened(DiffusionPipeline.from_pretrained, model, low_cpu_mem_usage=False)
        prompt = {name: tensor.numpy() for name, tensor in empty_prompt(pipeline).items()}
        checkpoint.save(self.folder / "prompt.safetensors", prompt)

    def _model(self, name: str, kind: str, parts: Sequence[str] = ()) -> str:
        """Name a model for the manifest: a hub name, an absolute path, or a copy inside."""
        folder = Path(name)
        if not folder.is_dir():
            return name
        if not self.config.inside:
            return str(folder.resolve())
        with writing(self.folder):
            for part in parts or ("",):
                shutil.copytree(folder / part, self.folder / kind / part, dirs_exist_ok=True)
        return kind

    def _export(self, name: str, network: nn.Module, output: str) -> None:
        examples = [{"embedding": np.ascontiguousarray(self.embeddings[i : i + 1])} for i in range(_CHECKED)]
        onnx_file.write(self.folder / name, network, examples, output)

    def _features(self, path: Path) -> Float32:
        """Features of the images, float32."""
        return np.asarray(Targets(path).of(self.source.items), np.float32)

    def _rescaled(self, embeddings: Float32) -> Float32:
        return _through(self.before, embeddings)

    def _of_epochs(self, embeddings: Float32) -> Float32:
        return _through(self.query, embeddings)

    def _said(self, items: Sequence[Item]) -> list[str]:
        """Caption of each item.

        Raises
        ------
        DataError
            There is none of one.
        """
        lacking = [item.id for item in items if item.id not in self._captions]
        if lacking:
            raise DataError(
                f"captions {self.config.captions}", got=f"none of {lacking[0]!r}", do="caption these images"
            )
        return [self._captions[item.id] for item in items]

    def _captioned(self, items: Sequence[Item]) -> tuple[list[str], Rows]:
        """Captions of those items that have one, and their places."""
        rows = np.array([i for i, item in enumerate(items) if item.id in self._captions], np.int64)
        if not len(rows):
            raise DataError(f"captions {self.config.captions}", got="none of a training stimulus")
        return [self._captions[items[row].id] for row in rows], rows

    def _note(self, part: str, **found: float) -> None:
        self.notes |= {f"{part}.{name}": value for name, value in found.items()}
        if part in _CITATIONS:
            self.citations.append(_CITATIONS[part])


def _texts(config: DiffusionConfig) -> list[str]:
    """Name the folders of a pipeline that captions go through; none of a name on the hub.

    Raises
    ------
    ConfigError
        It lacks them.
    """
    folder = Path(config.model)
    if not config.captioned or not folder.is_dir():
        return []
    found = [name for pair in TEXT.items() for name in pair if (folder / name).is_dir()]
    if not found or len(found) % 2:
        got = ", ".join(found) or "none"
        raise ConfigError(f"text encoders of {folder}", got=got, allowed=", ".join(next(iter(TEXT.items()))))
    return found


def _through(network: nn.Module, embeddings: Float32) -> Float32:
    with torch.no_grad():
        out: Float32 = network(torch.from_numpy(embeddings)).numpy()
    return out
