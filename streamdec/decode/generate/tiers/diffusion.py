"""A picture by a frozen diffusion model that is shown the embedding through an IP-Adapter.

The pipelines are those of diffusers. As the published systems feed them, with the empty prompt, which is a file: ATM
(arXiv 2403.07721; custom_pipeline.py of dongyangli-del/EEG_Image_decode) gives the vector in place of CLIP's image
features; HVF (build_reconstruction.py of ssshamiii/Brain-HIVE at commit f06db69) gives its own adapter the embedding as
it is, never normalised, optionally through its projector first. Captioned, the prompt is what the language model says
of the same evidence, as Takagi and Nishimoto (arXiv 2306.11536) give text decoded from fMRI.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ....errors import BundleError, EngineError
from ..generator import OpenGenerator
from ..job import Request, Result, Tier
from ..spec import Diffusion
from .base import Progress, check_device, made_up, opening, png, seed, told
from .llm import LlmTier
from .network import Network
from .query import Query

if TYPE_CHECKING:
    from torch import Tensor

_UNET, _VAE, _SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
TEXT = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
"""The folders of a pipeline that a prompt goes through; only SDXL has the second two."""
_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


@dataclass
class _Drawing:
    """What a run has come to: ``result`` so far."""

    result: Result
    cancelled: bool = False


class DiffusionTier:
    """Any text-to-image pipeline of Stable Diffusion's or SDXL's kind; a unit is a step.

    Parameters
    ----------
    generator : OpenGenerator
        With a diffusion model.
    device : str
        As torch names it.
    threads : int
        Within one operation on the CPU.

    Raises
    ------
    BundleError
        A model is not on this machine, of another kind, or incomplete; adapter or prompt do not fit it. Of the
        language model, where pictures are captioned, too.
    EngineError
        The conditioner cannot be loaded, or the device is not there.
    """

    name: Tier = "diffusion"

    def __init__(self, generator: OpenGenerator, device: str = "cpu", threads: int = 1) -> None:
        import torch

        spec = generator.manifest.diffusion
        assert spec is not None, "opened for a generator without a diffusion model"
        check_device(device)
        torch.set_num_threads(threads)
        self._spec, self._device = spec, torch.device(device)
        width = generator.manifest.dim
        self.units = (spec.min_steps, spec.max_steps)
        self.example = made_up("reconstruction", width)
        self._query = Query(generator, threads)
        self._conditioner = Network(generator, spec.conditioner, threads) if spec.conditioner else None
        if self._conditioner is not None:
            self._conditioner.expect(input=(1, width), output=(1, None))
            width = self._conditioner.output[1]
        self._writer = LlmTier(generator, device, threads) if spec.captioned else None
        self._pipe = _pipeline(generator, spec, self._device)
        _adapt(self._pipe, spec, generator.read(spec.adapter), width)
        self._prompt = _prompt(spec, generator.read(spec.prompt), self._pipe, self._device)
        if self._writer is not None:
            _check_text(self._pipe, self._prompt, spec)
        self._clean: Tensor | None = None  # the scheduler's newest guess at the latents without noise
        self._listen()
        if self._device.type == "cuda":
            self._pipe.unet.compile(mode="reduce-overhead")  # one shape, whatever the steps; not measured here

    def warm_up(self) -> None:
        """Draw with the fewest and the most steps, twice: a compiled network records itself on its second call."""
        for units in self.units * 2:
            self.run(self.example, units, float("inf"), lambda: 0.0, lambda result, done: True)

    def run(
        self, request: Request, units: int, deadline: float, clock: Callable[[], float], progress: Progress
    ) -> Result:
        """Draw in ``units`` steps; at the deadline, what the scheduler takes the picture to become is drawn.

        The caption comes first and is no unit; at the deadline nothing is drawn by it. A job that is cancelled while it
        is written ends behind the first step.
        """
        import torch

        said = ""
        if self._writer is not None:
            said = self._writer.run(request, self._writer.units[1], deadline, clock, lambda result, done: True).text
            if clock() >= deadline:
                return Result(units=0, wanted=units)
        embedding = self._query(request)
        if self._conditioner is not None:
            embedding = self._conditioner(embedding, seed(request))
        shown = torch.from_numpy(embedding)[None]  # (1, 1, D): one image, one vector
        if self._pipe.unet.config.time_cond_proj_dim is None and self._spec.guidance > 1:  # as the pipelines decide
            shown = torch.cat([torch.zeros_like(shown), shown])  # as diffusers has it for no image
        drawing = _Drawing(Result(units=0, wanted=units))

        def after_step(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            done = min(step // getattr(pipe.scheduler, "order", 1) + 1, units)
            picture = drawing.result.image
            if self._spec.preview and units >= self._spec.preview and done < units:
                guess = tensors["latents"] if self._clean is None else self._clean
                picture = self._decode(guess)
            drawing.result = Result(image=picture, units=done, wanted=units)
            drawing.cancelled = not progress(drawing.result, done)
            if drawing.cancelled or (clock() >= deadline and done < units):
                pipe._interrupt = True  # the pipeline's own flag: the steps that are left do nothing
            return {}

        try:
            with torch.inference_mode():
                prompt = self._prompt if self._writer is None else self._prompt | encode(self._pipe, said)
                latents = self._pipe(
                    **prompt,
                    height=self._spec.size,
                    width=self._spec.size,
                    num_inference_steps=units,
                    guidance_scale=self._spec.guidance,
                    ip_adapter_image_embeds=[shown.to(self._device, self._pipe.unet.dtype)],
                    generator=torch.Generator("cpu").manual_seed(seed(request)),
                    output_type="latent",
                    return_dict=False,
                    callback_on_step_end=after_step,
                )[0]
                done = drawing.result.units
                if drawing.cancelled:
                    return drawing.result
                if done < units and self._clean is not None:
                    latents = self._clean
                return Result(image=self._decode(latents), units=done, wanted=units)
        except RuntimeError as error:  # out of memory among them
            raise EngineError("diffusion failed", got=told(error)) from error

    def _decode(self, latents: Tensor) -> bytes:
        """Latents (1, 4, h, w) as the pipeline has them -> PNG."""
        import torch

        vae = self._pipe.vae
        latents = latents.to(vae.dtype)
        mean, sd = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is not None and sd is not None:
            mean, sd = (torch.tensor(values).to(latents).view(1, -1, 1, 1) for values in (mean, sd))
            latents = latents * sd + mean * vae.config.scaling_factor
        pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0][0]
        values = (pixels.float() / 2 + 0.5).cpu().numpy()
        if not np.isfinite(values).all():
            raise EngineError("diffusion failed", got="NaN or infinity in its picture", do="take dtype float32")
        return png(values)

    def _listen(self) -> None:
        """Keep, of each step, the latents without noise: a preview of them shows more than the noisy ones do."""
        scheduler = self._pipe.scheduler
        step = scheduler.step

        @functools.wraps(step)  # the pipeline looks at its parameters
        def heard(*args: Any, return_dict: bool = True, **settings: Any) -> Any:
            made = step(*args, **settings)
            self._clean = getattr(made, "pred_original_sample", None)
            return made if return_dict else (made.prev_sample,)

        scheduler.step = heard


def _pipeline(generator: OpenGenerator, spec: Diffusion, device: Any) -> Any:
    """Load network, autoencoder and scheduler."""
    import diffusers
    import torch

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    folder = generator.model(spec.model, (_UNET, _SCHEDULER) if spec.vae else (_UNET, _SCHEDULER, _VAE))
    dtype = getattr(torch, spec.dtype)
    unet = _load(diffusers.UNet2DConditionModel, folder / "unet", spec.model, dtype)
    autoencoder = folder / "vae"
    if spec.vae:
        autoencoder = generator.model(spec.vae, ("config.json",))
    with opening(f"model {spec.vae or spec.model}", "an autoencoder of diffusers"):
        tiny = _read_json(autoencoder / "config.json").get("_class_name") == "AutoencoderTiny"
    kind = diffusers.AutoencoderTiny if tiny else diffusers.AutoencoderKL
    vae = _load(kind, autoencoder, spec.vae or spec.model, dtype)
    if dtype == torch.float16 and getattr(vae.config, "force_upcast", False) and not tiny:
        vae = vae.float()  # SDXL's own overflows in float16
    scheduler = _scheduler(spec, folder)
    xl = unet.config.addition_embed_type == "text_time"
    text: dict[str, Any] = dict.fromkeys((*TEXT, *TEXT.values()) if xl else ("tokenizer", "text_encoder"))
    if spec.captioned:
        for name in text.keys() & TEXT.keys():
            text[name], text[TEXT[name]] = _text(generator, spec, name, dtype)
    if xl:
        pipe = diffusers.StableDiffusionXLPipeline(
            vae=vae, unet=unet, scheduler=scheduler, add_watermarker=False, **text
        )
    else:
        with warnings.catch_warnings():
            # Of schedulers saved without steps_offset = 1 and clip_sample = False: the pipeline sets both.
            warnings.simplefilter("ignore", FutureWarning)
            pipe = diffusers.StableDiffusionPipeline(
                vae=vae,
                unet=unet,
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                **text,
            )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _text(generator: OpenGenerator, spec: Diffusion, name: str, dtype: Any) -> tuple[Any, Any]:
    """Load a tokenizer of the pipeline and its text encoder."""
    import transformers

    encoder = TEXT[name]
    folder = generator.model(spec.model, (f"{name}/tokenizer_config.json", f"{encoder}/config.json"))
    with opening(f"text encoder of {spec.model}", f"a folder of transformers with {' or '.join(_TEXT_ENCODERS)}"):
        (kind,) = set(_read_json(folder / encoder / "config.json")["architectures"]) & set(_TEXT_ENCODERS)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder / name, local_files_only=True, trust_remote_code=False
        )
    loaded = _load(getattr(transformers, kind), folder / encoder, spec.model, dtype, "model")
    if len(tokenizer) < loaded.config.vocab_size:  # without its files it still opens, and knows no word
        got, allowed = f"{len(tokenizer)} words", f"{loaded.config.vocab_size}, as its text encoder"
        raise BundleError(f"{name} of {spec.model}", got=got, allowed=allowed, do="get it anew")
    return tokenizer, loaded


def _check_text(pipe: Any, empty: dict[str, Any], spec: Diffusion) -> None:
    """Refuse text encoders whose prompts are not of the empty one's shape."""
    with opening(f"text encoders of {spec.model}", "those it was published with"):
        found = {name: tuple(tensor.shape) for name, tensor in encode(pipe, "").items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in empty.items() if not name.startswith("negative")}
    if found != wanted:
        raise BundleError(f"text encoders of {spec.model}", got=found, allowed=f"{wanted}, as {spec.prompt}")


def encode(pipe: Any, text: str) -> dict[str, Tensor]:
    """Encode a prompt: ``prompt_embeds`` (1, n_tokens, width), and ``pooled_prompt_embeds`` (1, D) of SDXL."""
    made = pipe.encode_prompt(
        prompt=text, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"prompt_embeds": made[0]} | ({"pooled_prompt_embeds": made[2]} if len(made) > 2 else {})


def _load(kind: Any, folder: Path, name: str, dtype: Any, file: str = "diffusion_pytorch_model") -> Any:
    # Published models have files of half precision beside or instead of the others.
    half = (folder / f"{file}.fp16.safetensors").is_file()
    full = (folder / f"{file}.safetensors").is_file()
    halved = half and (not full or "16" in str(dtype))
    with opening(f"model {name}", f"a folder of diffusers with a {kind.__name__}, safetensors"):
        model, info = kind.from_pretrained(
            folder,
            torch_dtype=dtype,
            variant="fp16" if halved else None,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,  # needs no accelerate
            output_loading_info=True,
        )
    if info["missing_keys"]:
        raise BundleError(f"weights of {name}", got=f"none for {min(info['missing_keys'])}", do="get it anew")
    return model.eval().requires_grad_(False)


def _scheduler(spec: Diffusion, folder: Path) -> Any:
    import diffusers

    with opening(f"model {spec.model}", "a scheduler's config"):
        config = _read_json(folder / _SCHEDULER)
    name = spec.scheduler or config.get("_class_name", "")
    kind: Any = getattr(diffusers, name, None)
    known: Any = diffusers.SchedulerMixin
    if not (isinstance(kind, type) and issubclass(kind, known)):
        raise BundleError("diffusion scheduler", got=repr(name), allowed="a scheduler class of diffusers")
    made: Any = kind
    with opening(f"scheduler of {spec.model}", f"a config of {name}"):
        return made.from_config(config)


def _read_json(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])


def _adapt(pipe: Any, spec: Diffusion, data: bytes, width: int) -> None:
    """Put the IP-Adapter into the network, by diffusers' own loader."""
    import safetensors.torch
    from diffusers.models.attention_processor import IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection

    parts: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
    with opening(spec.adapter, "image_proj.* and ip_adapter.* for this network, safetensors"):
        for key, tensor in safetensors.torch.load(data).items():
            part, _, rest = key.partition(".")
            parts[part][rest] = tensor
        pipe.load_ip_adapter(parts, subfolder="", weight_name="", image_encoder_folder=None, low_cpu_mem_usage=False)
    (projection,) = pipe.unet.encoder_hid_proj.image_projection_layers
    if not isinstance(projection, ImageProjection) or projection.image_embeds.in_features != width:
        got = getattr(getattr(projection, "image_embeds", None), "in_features", type(projection).__name__)
        raise BundleError(spec.adapter, got=got, allowed=f"a plain IP-Adapter for vectors of {width} dims")
    # Not by set_ip_adapter_scale, which takes layers_per_block for one number: networks may have one for each level.
    for processor in pipe.unet.attn_processors.values():
        if isinstance(processor, IPAdapterAttnProcessor | IPAdapterAttnProcessor2_0):
            processor.scale = [spec.adapter_scale]


def _prompt(spec: Diffusion, data: bytes, pipe: Any, device: Any) -> dict[str, Any]:
    """Arguments of the pipeline that stand for the empty prompt, its negative as well."""
    import safetensors.torch

    with opening(spec.prompt, "safetensors"):
        found = safetensors.torch.load(data)
    wanted = {"prompt_embeds": 3}
    if pipe.unet.config.addition_embed_type == "text_time":
        wanted["pooled_prompt_embeds"] = 2
    given: dict[str, Any] = {}
    for name, n_dims in wanted.items():
        tensor = found.get(name)
        if tensor is None or tensor.ndim != n_dims or len(tensor) != 1:
            got = "none" if tensor is None else tuple(tensor.shape)
            raise BundleError(f"{name} of {spec.prompt}", got=got, allowed=f"a batch of 1, {n_dims} dimensions")
        given[name] = given[f"negative_{name}"] = tensor.to(device, pipe.unet.dtype)
    width = pipe.unet.config.cross_attention_dim
    if given["prompt_embeds"].shape[2] != width:
        got = given["prompt_embeds"].shape[2]
        raise BundleError(f"prompt_embeds of {spec.prompt}", got=f"width {got}", allowed=width)
    return given
