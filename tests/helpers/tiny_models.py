"""Models of transformers and diffusers with random weights, small enough for a test, in folders as published."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "this",
    "is",
    "a",
    "photo",
    "of",
    "picture",
    "cat",
    "dog",
    "eagle",
]
WORDS += ["briefly", "describe", "the", "'", "in", "images", "."]
_SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
_SMALL["initializer_range"] = 0.3  # so that small differences of the input show
_PICTURE = {**_SMALL, "image_size": 32, "patch_size": 16}
_SENTENCE = {**_SMALL, "vocab_size": len(WORDS) + 3, "max_position_embeddings": 32}


_ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


def _processor(kind: type = transformers.CLIPImageProcessor):
    square = {"height": 32, "width": 32}
    if kind is transformers.CLIPImageProcessor:
        return kind(size={"shortest_edge": 32}, crop_size=square)
    return kind(size=square)


def _tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return transformers.BertTokenizer.from_pretrained(folder)


def _save(folder: Path, network: torch.nn.Module, *parts: object) -> Path:
    network.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config={**_SENTENCE, **_ENDS}, vision_config=_PICTURE, projection_dim=8)
    return _save(folder, transformers.CLIPModel(config), _processor(), _tokenizer(folder))


def clip_vision(folder: Path) -> Path:
    torch.manual_seed(1)
    network = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**_PICTURE, projection_dim=8))
    return _save(folder, network, _processor())


def classifier(folder: Path) -> Path:
    """A ViT trained to name classes: no pooler among its weights."""
    torch.manual_seed(2)
    network = transformers.ViTForImageClassification(transformers.ViTConfig(**_PICTURE))
    return _save(folder, network, _processor(transformers.ViTImageProcessor))


def bert(folder: Path) -> Path:
    torch.manual_seed(3)
    return _save(folder, transformers.BertModel(transformers.BertConfig(**_SENTENCE)), _tokenizer(folder))


def blip(folder: Path) -> Path:
    torch.manual_seed(4)
    text = {**_SENTENCE, **_ENDS, "sep_token_id": 3, "encoder_hidden_size": 16}
    network = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text, vision_config=_PICTURE)
    )
    processor = transformers.BlipProcessor(_processor(transformers.BlipImageProcessor), _tokenizer(folder))
    return _save(folder, network, processor)


def git(folder: Path) -> Path:
    torch.manual_seed(5)
    config = transformers.GitConfig(
        **_SENTENCE,
        vision_config=_PICTURE,
        **_ENDS,
        num_image_with_embedding=None,
    )
    processor = transformers.GitProcessor(_processor(), _tokenizer(folder))
    return _save(folder, transformers.GitForCausalLM(config), processor)


def vae(folder: Path) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(6)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.13025,
    )
    return _save(folder, network)


def blip_2(folder: Path) -> Path:
    torch.manual_seed(7)
    image_token = len(WORDS)
    config = transformers.Blip2Config(
        vision_config=_PICTURE,
        qformer_config={**_SENTENCE, "encoder_hidden_size": 16},
        text_config=transformers.OPTConfig(
            vocab_size=image_token + 1,
            hidden_size=16,
            word_embed_proj_dim=16,
            num_hidden_layers=2,
            ffn_dim=24,
            num_attention_heads=2,
            max_position_embeddings=64,
            **_ENDS,
            init_std=0.3,
        ),
        num_query_tokens=4,
        image_token_index=image_token,
    )
    processor = transformers.Blip2Processor(
        _processor(transformers.BlipImageProcessor), _tokenizer(folder), num_query_tokens=4
    )
    return _save(folder, transformers.Blip2ForConditionalGeneration(config), processor)


def llava(folder: Path) -> Path:
    """A chat model: its processor has a template."""
    torch.manual_seed(8)
    tokenizer = _tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = transformers.LlamaConfig(**_SMALL, vocab_size=len(tokenizer), max_position_embeddings=64, **_ENDS)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_PICTURE),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    part = "{{ '<image>' if part.type == 'image' else part.text }} "
    template = f"{{% for part in messages[0].content %}}{part}{{% endfor %}}."
    processor = transformers.LlavaProcessor(
        _processor(),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    return _save(folder, transformers.LlavaForConditionalGeneration(config), processor)
