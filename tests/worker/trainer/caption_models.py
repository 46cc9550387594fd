"""Tiny caption models of the transformers library's own architectures, with random weights.

python -P -m tests.worker.trainer.caption_models FOLDER [--kind blip]
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    PreTrainedTokenizerFast,
)

_SIDE = 64
_WORDS = ["a", "cat", "dog", "red", "blue", "on", "the", "square", "of", "photo", "image", "in"]


def build_florence2(folder: Path, seed: int = 0) -> Path:
    """Build a folder of a tiny Florence-2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        special = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
        vocabulary = {token: number for number, token in enumerate([*special, *_WORDS])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        make_tokenizer: Any = PreTrainedTokenizerFast
        tokenizer = make_tokenizer(
            tokenizer_object=words,
            bos_token="<s>",
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            extra_special_tokens={"image_token": "<image>"},
        )
        vision = {
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 4,
            "projection_dim": 32,
            "max_position_embeddings": 50,
        }
        text = {
            "vocab_size": len(vocabulary),
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            # With the usual spread of random weights, it would end each caption at once.
            "forced_eos_token_id": None,
            "init_std": 2.0,
        }
        config = Florence2Config(
            text_config=text, vision_config=vision, image_token_id=vocabulary["<image>"]
        )
        model = Florence2ForConditionalGeneration(config)
        images: Any = CLIPImageProcessor(
            size={"height": _SIDE, "width": _SIDE},
            crop_size={"height": _SIDE, "width": _SIDE},
            do_center_crop=False,
        )
        # The patches of the vision tower, and their mean.
        images.image_seq_length = (_SIDE // 8) ** 2 + 1
        model.save_pretrained(folder)
        Florence2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def build_blip(folder: Path, seed: int = 0) -> Path:
    """Build a folder of a tiny BLIP."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *_WORDS]
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
        config = BlipConfig(
            text_config={
                "vocab_size": len(tokens),
                "hidden_size": 32,
                "encoder_hidden_size": 32,
                "intermediate_size": 32,
                "projection_dim": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "bos_token_id": 5,
                "eos_token_id": 3,
                "sep_token_id": 3,
                "pad_token_id": 0,
            },
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": _SIDE,
                "patch_size": 16,
            },
            projection_dim=16,
        )
        BlipForConditionalGeneration(config).save_pretrained(folder)
        images = BlipImageProcessor(size={"height": _SIDE, "width": _SIDE})
        processor: Any = BlipProcessor
        processor(images, tokenizer).save_pretrained(folder)
    return folder


def main() -> None:
    """Build a model from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=("florence2", "blip"), default="florence2")
    arguments = parser.parse_args()
    build = build_blip if arguments.kind == "blip" else build_florence2
    build(arguments.folder)


if __name__ == "__main__":
    main()
