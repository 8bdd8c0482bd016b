"""A small Llama with random weights, a tokenizer and LoRA adapters, for a real vLLM where no model can be downloaded.

``python -m benchmarks.tiny_llama FOLDER`` writes ``FOLDER/model`` and ``FOLDER/adapters/a000-r8``, ...: the checkpoint
format of transformers and PEFT, written with numpy and safetensors alone. What it says is noise; what it costs a server
is real. The same arguments write the same weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

RANKS = (8, 16, 32)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
HALF = NDArray[np.float16]


@dataclass(frozen=True)
class Sizes:
    """The shape of the model; as given, 27 million parameters."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    inner: int = 1376
    vocabulary: int = 1024
    longest: int = 2048

    def targets(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers that adapters change."""
        square, wide = (self.hidden, self.hidden), (self.hidden, self.inner)
        attention = {f"self_attn.{name}_proj": square for name in "qkvo"}
        return attention | {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": wide[::-1]}


def write_model(folder: Path, sizes: Sizes = Sizes(), seed: int = 0) -> None:
    """Write config, weights and tokenizer of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 0])
    ones = np.ones(sizes.hidden, np.float16)
    weights = {
        "model.embed_tokens.weight": _normal(rng, sizes.vocabulary, sizes.hidden),
        "lm_head.weight": _normal(rng, sizes.vocabulary, sizes.hidden),
        "model.norm.weight": ones,
    }
    for layer in range(sizes.layers):
        path = f"model.layers.{layer}"
        weights |= {f"{path}.{name}.weight": ones for name in ("input_layernorm", "post_attention_layernorm")}
        for name, (inner, outer) in sizes.targets().items():
            weights[f"{path}.{name}.weight"] = _normal(rng, outer, inner)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", _config(sizes))
    _write(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    _write(folder / "tokenizer.json", _tokenizer(sizes.vocabulary))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": sizes.longest} | names,
    )


def write_adapter(folder: Path, rank: int, sizes: Sizes = Sizes(), seed: int = 1) -> None:
    """Write one LoRA adapter on all linear layers."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, rank])
    weights = {}
    for layer in range(sizes.layers):
        for name, (inner, outer) in sizes.targets().items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{path}.lora_A.weight"] = _normal(rng, rank, inner)
            weights[f"{path}.lora_B.weight"] = _normal(rng, outer, rank)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = sorted({name.split(".")[1] for name in sizes.targets()})
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
    _write(
        folder / "adapter_config.json",
        about | {"r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "target_modules": modules},
    )


def write_all(folder: Path, adapters: int, ranks: Sequence[int] = RANKS, sizes: Sizes = Sizes()) -> list[Path]:
    """Write what is not there yet of the model and of ``adapters`` adapters, ranks dealt round-robin; their folders."""
    if not (folder / "model" / "tokenizer_config.json").exists():
        write_model(folder / "model", sizes)
    folders = []
    for n in range(adapters):
        rank = ranks[n % len(ranks)]
        folders.append(folder / "adapters" / f"a{n:03d}-r{rank}")
        if not (folders[-1] / "adapter_config.json").exists():
            write_adapter(folders[-1], rank, sizes, seed=n + 1)
    return folders


def _config(sizes: Sizes) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "head_dim": sizes.hidden // sizes.heads,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.longest,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _tokenizer(vocabulary: int) -> dict[str, object]:
    """A word-level tokenizer, in the format of the tokenizers library: a word is a token."""
    words = {word: n for n, word in enumerate((*SPECIAL, *(f"w{n}" for n in range(len(SPECIAL), vocabulary))))}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": word} | special for n, word in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


def _normal(rng: np.random.Generator, rows: int, columns: int) -> HALF:
    return (0.02 * rng.standard_normal((rows, columns), dtype=np.float32)).astype(np.float16)


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Write the model and its adapters."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny_llama", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapters", type=int, default=24)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    given = parser.parse_args()
    for folder in write_all(given.folder, given.adapters, given.ranks):
        print(folder)


if __name__ == "__main__":
    main()
