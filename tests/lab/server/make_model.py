#!/usr/bin/env python3
"""Write the lab's random models as GGUF: `make_model.py FOLDER`.

No model can be downloaded in the lab, and none is needed: llama.cpp tokenizes, generates (nonsense), saves and restores
slots with random weights just as with trained ones. The vocabulary is SPM: three specials, 256 byte tokens, and single
letters, so that one character is one token and a test can count its conversation in tokens by counting letters.

  small     llama, 2 layers, 64 wide: 1 kB of slot file a token, about 1 MB
  large     llama with wide keys and values: 24 kB of slot file a token, and still quick on one core
  other     the same with another seed: of the same shapes, so that llama.cpp takes its slot files for its own
  sliding   gemma3: five of its six layers see a window of 64 tokens only
  mamba     recurrent: a state instead of a cache
  jamba     hybrid: a recurrent layer, an attention layer
"""

import pathlib
import sys

import gguf
import numpy as np

WIDTH, FEED_FORWARD = 64, 128
CONTEXT = 32768
LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'-"
STATE, INNER, CONVOLUTION, RANK = 16, 128, 4, 8  # of a recurrent layer


class Writer:
    """A GGUF file with what all kinds have in common."""

    def __init__(self, out: pathlib.Path, architecture: str, seed: int, layers: int) -> None:
        self.random = np.random.default_rng(seed)
        self.file = gguf.GGUFWriter(out, architecture)
        kinds = gguf.TokenType
        tokens = [("<unk>", 0.0, kinds.UNKNOWN), ("<s>", 0.0, kinds.CONTROL), ("</s>", 0.0, kinds.CONTROL)]
        tokens += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
        tokens += [(letter, -float(rank), kinds.NORMAL) for rank, letter in enumerate(LETTERS, start=1)]
        file = self.file
        file.add_name("lab-random")
        file.add_context_length(CONTEXT)
        file.add_embedding_length(WIDTH)
        file.add_block_count(layers)
        file.add_layer_norm_rms_eps(1e-5)
        file.add_vocab_size(len(tokens))
        file.add_file_type(gguf.LlamaFileType.ALL_F32)
        file.add_tokenizer_model("llama")
        file.add_tokenizer_pre("default")
        file.add_token_list([token.encode() for token, _, _ in tokens])
        file.add_token_scores([score for _, score, _ in tokens])
        file.add_token_types([kind for _, _, kind in tokens])
        file.add_unk_token_id(0)
        file.add_bos_token_id(1)
        file.add_eos_token_id(2)
        self.weights("token_embd.weight", len(tokens), WIDTH)
        self.weights("output.weight", len(tokens), WIDTH)
        self.ones("output_norm.weight")

    def weights(self, name: str, *shape: int) -> None:
        self.file.add_tensor(name, (self.random.standard_normal(shape) * 0.08).astype(np.float32))

    def ones(self, name: str, *shape: int) -> None:
        self.file.add_tensor(name, np.ones(shape or WIDTH, dtype=np.float32))

    def attention(self, layer: int, width: int) -> None:
        self.ones(f"blk.{layer}.attn_norm.weight")
        for part in ("q", "k", "v"):
            self.weights(f"blk.{layer}.attn_{part}.weight", width, WIDTH)
        self.weights(f"blk.{layer}.attn_output.weight", WIDTH, width)

    def recurrence(self, layer: int) -> None:
        block = f"blk.{layer}."
        self.ones(block + "attn_norm.weight")
        self.weights(block + "ssm_in.weight", 2 * INNER, WIDTH)
        self.weights(block + "ssm_conv1d.weight", INNER, CONVOLUTION)
        self.weights(block + "ssm_conv1d.bias", INNER)
        self.weights(block + "ssm_x.weight", RANK + 2 * STATE, INNER)
        self.weights(block + "ssm_dt.weight", INNER, RANK)
        self.weights(block + "ssm_dt.bias", INNER)
        self.file.add_tensor(block + "ssm_a", -np.tile(np.arange(1, STATE + 1, dtype=np.float32), (INNER, 1)))
        self.ones(block + "ssm_d", INNER)
        self.weights(block + "ssm_out.weight", WIDTH, INNER)

    def feed_forward(self, layer: int) -> None:
        self.ones(f"blk.{layer}.ffn_norm.weight")
        self.weights(f"blk.{layer}.ffn_gate.weight", FEED_FORWARD, WIDTH)
        self.weights(f"blk.{layer}.ffn_up.weight", FEED_FORWARD, WIDTH)
        self.weights(f"blk.{layer}.ffn_down.weight", WIDTH, FEED_FORWARD)

    def heads(self, count: int, kept: int | list[int], length: int) -> None:
        self.file.add_feed_forward_length(FEED_FORWARD)
        self.file.add_head_count(count)
        self.file.add_head_count_kv(kept)
        self.file.add_key_length(length)
        self.file.add_value_length(length)
        self.file.add_rope_dimension_count(length)

    def states(self) -> None:
        self.file.add_ssm_conv_kernel(CONVOLUTION)
        self.file.add_ssm_inner_size(INNER)
        self.file.add_ssm_state_size(STATE)
        self.file.add_ssm_time_step_rank(RANK)

    def close(self) -> None:
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


def llama(out: pathlib.Path, seed: int, layers: int, heads: int, length: int) -> Writer:
    model = Writer(out, "llama", seed, layers)
    model.heads(heads, heads, length)
    for layer in range(layers):
        model.attention(layer, heads * length)
        model.feed_forward(layer)
    return model


def sliding(out: pathlib.Path, seed: int) -> Writer:
    model = Writer(out, "gemma3", seed, 6)
    model.heads(4, 4, WIDTH // 4)
    model.file.add_sliding_window(64)
    for layer in range(6):
        model.attention(layer, WIDTH)
        model.ones(f"blk.{layer}.attn_q_norm.weight", WIDTH // 4)
        model.ones(f"blk.{layer}.attn_k_norm.weight", WIDTH // 4)
        model.ones(f"blk.{layer}.post_attention_norm.weight")
        model.feed_forward(layer)
        model.ones(f"blk.{layer}.post_ffw_norm.weight")
    return model


def mamba(out: pathlib.Path, seed: int) -> Writer:
    model = Writer(out, "mamba", seed, 2)
    model.file.add_feed_forward_length(0)
    model.file.add_head_count(0)
    model.states()
    for layer in range(2):
        model.recurrence(layer)
    return model


def jamba(out: pathlib.Path, seed: int) -> Writer:
    model = Writer(out, "jamba", seed, 2)
    model.heads(4, [0, 4], WIDTH // 4)
    model.states()
    model.recurrence(0)
    for part, size in (("dt", RANK), ("b", STATE), ("c", STATE)):
        model.ones(f"blk.0.ssm_{part}_norm.weight", size)
    model.attention(1, WIDTH)
    for layer in range(2):
        model.feed_forward(layer)
    return model


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir()
    llama(folder / "small.gguf", 1, 2, 4, 16).close()
    llama(folder / "large.gguf", 1, 6, 8, 128).close()
    llama(folder / "other.gguf", 2, 6, 8, 128).close()
    for kind in (sliding, mamba, jamba):
        kind(folder / f"{kind.__name__}.gguf", 1).close()


if __name__ == "__main__":
    main()
