"""The text-to-image model: a small UNet over the latents (diffusers), which reads the words of the text tower.

Velocity is predicted, the last step of the schedule holds no signal, and sampling begins there (Lin et al. 2023,
arXiv 2305.08891): one step then gives the mean picture of a sentence, more steps its details.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip import CONFIG, CONTEXT, END, PAD, START, VOCABULARY, tokenize, tokenizer
from data import Data
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from judge import read
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from training import train
from transformers import CLIPTextConfig, CLIPTextModel
from vae import CHANNELS, latents

from streamdec.simulate.captions import ATTRIBUTES, PHRASINGS, describe
from streamdec.simulate.features import UInt8

SEED = 13
DROPPED = 0.1
"""Share of sentences that are empty in training, for guidance and for adapters beside the text."""
LAST = 0.25
"""Share of pictures at the last step of the schedule, where every drawing begins."""
OFTEN = (249, 499, 749)
"""Steps where drawing in four steps passes through: half of the other pictures are taken there."""


def build() -> UNet2DConditionModel:
    """Make the untrained network: it reads the text at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=(3, 1, 1),  # edges of small shapes are drawn at 16 x 16
        cross_attention_dim=CONFIG["model_cfg"]["text_cfg"]["width"],
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=8,
    )


def text_encoder(folder: Path) -> CLIPTextModel:
    """Take the text tower of the open_clip model in ``folder`` into the class of transformers."""
    told = CONFIG["model_cfg"]["text_cfg"]
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=told["vocab_size"],
            hidden_size=told["width"],
            intermediate_size=4 * told["width"],
            projection_dim=CONFIG["model_cfg"]["embed_dim"],
            num_hidden_layers=told["layers"],
            num_attention_heads=told["heads"],
            max_position_embeddings=CONTEXT,
            hidden_act="gelu",
            bos_token_id=VOCABULARY.index(START),
            eos_token_id=VOCABULARY.index(END),
            pad_token_id=VOCABULARY.index(PAD),
        )
    )
    have = {key: value.float() for key, value in load_file(folder / "open_clip_model.safetensors").items()}
    taken = {
        "embeddings.token_embedding.weight": have["token_embedding.weight"],
        "embeddings.position_embedding.weight": have["positional_embedding"],
        "final_layer_norm.weight": have["ln_final.weight"],
        "final_layer_norm.bias": have["ln_final.bias"],
    }
    for i in range(told["layers"]):
        theirs, ours = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            parts = have[f"{theirs}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                taken[f"{ours}.self_attn.{letter}_proj.{kind}"] = part
            for here, there in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                taken[f"{ours}.{here}.{kind}"] = have[f"{theirs}.{there}.{kind}"]
    prefix = "" if "final_layer_norm.weight" in model.state_dict() else "text_model."
    model.load_state_dict({prefix + key: value for key, value in taken.items()})
    return model.eval().requires_grad_(False)


def scheduler() -> DDIMScheduler:
    """Make the noise schedule."""
    return DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
    )


def make(data: Data, cache: Path, out: Path, steps: int = 15000, batch: int = 32) -> dict[str, Any]:
    """Train it on the latents of ``out``/vae and the words of clip beside ``out``; write a pipeline of diffusers."""
    torch.manual_seed(SEED)
    module, words, schedule = build(), tokenizer(), scheduler()
    text = text_encoder(out.parent / "clip")
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    known = latents(vae, data.images)

    def batch_loss(rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(known), size=batch)
        texts = ["" if rng.random() < DROPPED else data.caption(row, rng, short=0.15) for row in rows]
        clean, noise = known[rows], torch.randn(batch, *known.shape[1:])
        anywhere, often = rng.integers(1000, size=batch), rng.choice(OFTEN, batch)
        before = np.where(rng.random(batch) < 0.5, often, anywhere)
        times = torch.from_numpy(np.where(rng.random(batch) < LAST, 999, before))
        noisy, wanted = (f(clean, noise, times) for f in (schedule.add_noise, schedule.get_velocity))
        with torch.no_grad():
            hidden = text(tokenize(words, texts)).last_hidden_state
        return functional.mse_loss(module(noisy, times, hidden).sample, wanted)

    trained = train(module, batch_loss, cache / "unet.pt", steps=steps, rate=1e-3, seed=SEED)
    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text.half(),
        tokenizer=words,
        unet=trained.half(),
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)
    return {"steps": steps, "batch": batch, "seed": SEED}


def draw(folder: Path, texts: list[str], steps: int, guidance: float = 0.0, seed: int = 0) -> UInt8:
    """Draw pictures of sentences through diffusers' pipeline: (n, 64, 64, 3) uint8."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for first in range(0, len(texts), 50):
        generator = torch.Generator().manual_seed(seed + first)
        drawn.append(
            pipeline(
                texts[first : first + 50],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generator,
                output_type="np",
            ).images
        )
    pictures: UInt8 = np.rint(np.concatenate(drawn) * 255).astype(np.uint8)
    return pictures


def measure(folder: Path, data: Data, n: int = 200) -> dict[str, float]:
    """Tell what the judge beside ``folder`` sees on pictures of the sentences of ``n`` test concepts, in 1, 2, 4 steps.

    Beside it, its accuracy on the images themselves, and the peak signal to noise of a picture to the image, decibels.
    """
    images, shows = data.test(n)
    texts = [describe(shown, i % PHRASINGS) for i, shown in enumerate(shows)]
    figures = {}
    for steps in (1, 2, 4):
        drawn = draw(folder, texts, steps)
        seen = read(folder.parent / "judge", drawn)
        for name in ATTRIBUTES:
            right = np.mean([getattr(a, name) == getattr(b, name) for a, b in zip(seen, shows, strict=True)])
            figures[f"{name}_{steps}"] = round(float(right), 3)
        error = np.square((drawn.astype(np.float32) - images) / 255).mean(axis=(1, 2, 3))
        figures[f"psnr_db_{steps}"] = round(float(-10 * np.log10(error).mean()), 2)
    return figures
