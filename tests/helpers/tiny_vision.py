"""Tiny random vision-language checkpoints of mlx-vlm's families, and images to show them."""

from __future__ import annotations

import copy
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, IMAGE = 0, 3
VOCAB = 96
_SPECIAL = ("~", "/", "|", "<image>", "<boi>", "<eoi>", "<thumbnail>")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789.,?!:;'()-+=*&%$#@^"
_TEMPLATE = (
    "{% for m in messages %}/{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}MARK{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}~{% endfor %}"
    "{% if add_generation_prompt %}|{% endif %}"
)
_GEMMA: dict[str, Any] = {
    "model_type": "gemma4",
    "image_token_id": IMAGE,
    "audio_token_id": VOCAB - 1,
    "vocab_size": VOCAB,
    "eos_token_id": [END],
    "audio_config": None,
    "text_config": {
        "model_type": "gemma4_text",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "head_dim": 32,
        "global_head_dim": 64,
        "vocab_size": VOCAB,
        "vocab_size_per_layer_input": VOCAB,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "use_double_wide_mlp": False,
        "sliding_window": 12,
        "max_position_embeddings": 512,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "use_bidirectional_attention": "vision",
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 16,
        "patch_size": 4,
        "position_embedding_size": 64,
        "pooling_kernel_size": 2,
        "default_output_length": 20,
    },
}
_SMALL = {
    "use_bidirectional_attention": None,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 2,
}
_LFM: dict[str, Any] = {
    "model_type": "lfm2_vl",
    "image_token_id": IMAGE,
    "eos_token_id": END,
    "downsample_factor": 2,
    "projector_hidden_size": 48,
    "text_config": {
        "model_type": "lfm2",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 64,
        "block_multiple_of": 4,
        "block_ffn_dim_multiplier": 2,
        "block_auto_adjust_ff_dim": True,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "rope_theta": 1000.0,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 4,
        "num_patches": 64,
        "image_size": 32,
    },
}
_QWEN: dict[str, Any] = {
    "model_type": "qwen3_5",
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": VOCAB - 1,
    "vision_start_token_id": 4,
    "vision_end_token_id": 5,
    "vocab_size": VOCAB,
    "eos_token_id": END,
    "text_config": {
        "model_type": "qwen3_5_text",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 3,
        "full_attention_interval": 2,
        "rms_norm_eps": 1e-5,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [3, 3, 2],
            "rope_theta": 1000.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "vision_config": {
        "model_type": "qwen3_5",
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [],
    },
}
_QWEN3_VL: dict[str, Any] = _QWEN | {
    "model_type": "qwen3_vl",
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "head_dim": 32,
        "rope_theta": 1000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [6, 5, 5],
        },
    },
    "vision_config": _QWEN["vision_config"]
    | {"model_type": "qwen3_vl", "depth": 3, "deepstack_visual_indexes": [0, 1]},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma4": _GEMMA,
    "gemma4 with inputs a layer": _GEMMA | {"text_config": _GEMMA["text_config"] | _SMALL},
    "lfm2_vl": _LFM,
    "qwen3_5": _QWEN,
    "qwen3_vl": _QWEN3_VL,
}
_QWEN_IMAGES = {
    "image_processor": {
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "min_pixels": 64,
        "max_pixels": 1024,
    }
}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "qwen3_5": _QWEN_IMAGES,
    "qwen3_vl": _QWEN_IMAGES,
    "gemma4": {
        "image_processor": {"patch_size": 4, "max_soft_tokens": 20, "pooling_kernel_size": 2}
    },
    "lfm2_vl": {
        "patch_size": 4,
        "encoder_patch_size": 4,
        "downsample_factor": 2,
        "min_image_tokens": 4,
        "max_image_tokens": 16,
        "max_num_patches": 64,
        "tile_size": 32,
    },
}


def vision_folder(folder: Path, name: str) -> Path:
    """A random checkpoint of one of `CONFIGS`, as mlx-vlm saves one."""
    config = CONFIGS[name]
    folder.mkdir(parents=True)
    _tokenizer(mark_of(name)).save_pretrained(folder)
    processor = _PROCESSORS[config["model_type"]]
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "config.json").write_text(json.dumps(config))
    tensors = dict(tree_flatten(_model(config).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    return folder


def picture(seed: int, height: int = 24, width: int = 32) -> Any:
    """A random image."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mark_of(name: str) -> str:
    """What a family's chat template writes for an image; some processors add the rest."""
    return "<boi><image><eoi>" if name.startswith("qwen") else "<image>"


def _tokenizer(mark: str) -> PreTrainedTokenizerFast:
    vocabulary = [*_SPECIAL, *_CHARACTERS.replace(" ", "Ġ")]
    assert len(vocabulary) < VOCAB
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="~",
        pad_token="~",
        chat_template=_TEMPLATE.replace("MARK", mark),
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<boi>",
            "eoi_token": "<eoi>",
            "image_start_token": "<boi>",
            "image_end_token": "<eoi>",
            "image_thumbnail": "<thumbnail>",
            "vision_start_token": "<boi>",
            "vision_end_token": "<eoi>",
        },
    )


def _model(config: dict[str, Any]) -> Any:
    """mlx-vlm's model with weights large enough that images and text change the tokens."""
    module = import_module(f"mlx_vlm.models.{config['model_type']}")
    made = module.ModelConfig.from_dict(copy.deepcopy(config))
    made.text_config = module.TextConfig.from_dict(copy.deepcopy(config["text_config"]))
    made.vision_config = module.VisionConfig.from_dict(config["vision_config"])
    mx.random.seed(5)
    model = module.Model(made)
    weights = []
    size = 0.3 if "qwen" in config["model_type"] else 0.15
    for name, value in tree_flatten(model.parameters()):
        changed = value + size * mx.random.normal(value.shape)
        # Else the embedding of a token outweighs the layers, and each token repeats itself.
        weights.append((name, changed * (0.2 if name.endswith("embed_tokens.weight") else 1)))
    model.load_weights(weights)
    mx.eval(model.parameters())
    return model
