#!/usr/bin/env python3
"""Write a small random llama model as GGUF: `make_model.py OUT [SEED]`.

No model can be downloaded in the lab, and none is needed: llama.cpp tokenizes, generates (nonsense), saves and
restores slots with random weights just as with trained ones. Two layers, 64 wide, 4 heads, f32, about 1 MB. The
vocabulary is SPM: three specials, 256 byte tokens, and single letters, so that one character is one token and a
test can count its conversation in tokens by counting letters.
"""

import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, FEED_FORWARD = 2, 64, 4, 128
CONTEXT = 32768
LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'-"


def main() -> None:
    out = sys.argv[1]
    random = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 1)

    kinds = gguf.TokenType
    tokens = [("<unk>", 0.0, kinds.UNKNOWN), ("<s>", 0.0, kinds.CONTROL), ("</s>", 0.0, kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    tokens += [(letter, -float(rank), kinds.NORMAL) for rank, letter in enumerate(LETTERS, start=1)]

    file = gguf.GGUFWriter(out, "llama")
    file.add_name("lab-random")
    file.add_context_length(CONTEXT)
    file.add_embedding_length(WIDTH)
    file.add_block_count(LAYERS)
    file.add_feed_forward_length(FEED_FORWARD)
    file.add_head_count(HEADS)
    file.add_head_count_kv(HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(WIDTH // HEADS)
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

    def weights(name: str, *shape: int) -> None:
        file.add_tensor(name, (random.standard_normal(shape) * 0.08).astype(np.float32))

    def ones(name: str) -> None:
        file.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    weights("token_embd.weight", len(tokens), WIDTH)
    for layer in range(LAYERS):
        ones(f"blk.{layer}.attn_norm.weight")
        for part in ("q", "k", "v", "output"):
            weights(f"blk.{layer}.attn_{part}.weight", WIDTH, WIDTH)
        ones(f"blk.{layer}.ffn_norm.weight")
        weights(f"blk.{layer}.ffn_gate.weight", FEED_FORWARD, WIDTH)
        weights(f"blk.{layer}.ffn_up.weight", FEED_FORWARD, WIDTH)
        weights(f"blk.{layer}.ffn_down.weight", WIDTH, FEED_FORWARD)
    ones("output_norm.weight")
    weights("output.weight", len(tokens), WIDTH)

    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    main()
