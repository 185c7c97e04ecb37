"""Tiny image-to-text models in transformers' own folder format, with a tokenizer trained here.

What is built loads with `AutoModelForImageTextToText.from_pretrained(FOLDER)`, as a researcher's own models do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE = 32
"""Pixels of the input."""
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
TEXTS = (
    "an aerial view of green fields and a road beside the river",
    "many buildings with grey roofs stand along the streets of the town",
    "a large white airplane parked near the terminal of the airport",
    "some boats in the harbor next to the long pier",
    "dense forest covers the hills around a small lake",
    "a bridge over the wide water with cars on it",
    "the baseball field lies between trees and houses",
    "bare brown land with few bushes and a dry valley",
    "google earth image of a city in china at night",
)
"""What the tokenizer learns its words from."""


def new_tokenizer() -> Any:
    """A tokenizer of whole words, those of `TEXTS`, as `PreTrainedTokenizerFast`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pad, bos, eos, image = SPECIAL
    tokenizer = Tokenizer(models.WordLevel(unk_token=pad))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=list(SPECIAL), show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, additional_special_tokens=[image]
    )


def make_blip2(folder: str | Path, seed: int = 0) -> Path:
    """A BLIP2 with an OPT language model of random weights that `seed` fixes; returns the folder."""
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
    )

    tokenizer = new_tokenizer()
    layers: Any = {"num_hidden_layers": 2, "num_attention_heads": 2}
    spread: Any = {"initializer_range": 0.2}  # enough for the image to be heard
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            **spread, hidden_size=32, intermediate_size=64, image_size=SIDE, patch_size=8, **layers
        ),
        qformer_config=Blip2QFormerConfig(
            **spread, hidden_size=32, intermediate_size=64, encoder_hidden_size=32, vocab_size=len(tokenizer), **layers
        ),
        text_config=OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            max_position_embeddings=128,
            init_std=0.2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **layers,
        ),
        num_query_tokens=8,
        image_token_index=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blip2ForConditionalGeneration(config).eval()
    processor = Blip2Processor(BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer, num_query_tokens=8)
    folder = Path(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_blip(folder: str | Path, seed: int = 0) -> Path:
    """A BLIP of the first kind, with random weights; returns the folder."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

    tokenizer = new_tokenizer()
    sizes: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text: Any = {"encoder_hidden_size": 32, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    config = BlipConfig(
        vision_config=BlipVisionConfig(image_size=SIDE, patch_size=8, **sizes),
        text_config=BlipTextConfig(vocab_size=len(tokenizer), initializer_range=0.2, **text, **sizes),
    )
    return _saved(BlipForConditionalGeneration, config, tokenizer, folder, seed)


def make_git(folder: str | Path, seed: int = 0) -> Path:
    """A GIT with random weights; returns the folder."""
    from transformers import GitConfig, GitForCausalLM, GitVisionConfig

    tokenizer = new_tokenizer()
    sizes: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GitConfig(
        vision_config=GitVisionConfig(image_size=SIDE, patch_size=8, **sizes).to_dict(),
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **sizes,
    )
    return _saved(GitForCausalLM, config, tokenizer, folder, seed)


def make_encoder_decoder(folder: str | Path, seed: int = 0) -> Path:
    """A vision transformer with a GPT-2 that reads it, random weights; returns the folder."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    tokenizer = new_tokenizer()
    sizes: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(image_size=SIDE, patch_size=8, **sizes),
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, initializer_range=0.2, add_cross_attention=True
        ),
    )
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    return _saved(VisionEncoderDecoderModel, config, tokenizer, folder, seed)


def _saved(cls: Any, config: Any, tokenizer: Any, folder: str | Path, seed: int) -> Path:
    """A model of random weights, its tokenizer and an image processor in one folder."""
    import torch
    from transformers import GenerationConfig, ViTImageProcessor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).eval()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=1)
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
