"""Encoder-decoders of transformers, from small configurations: T5 (Raffel et al., arXiv:1910.10683) with its
relative position biases, and Whisper (Radford et al., arXiv:2212.04356) over log-mel frames.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def t5(width: int, heads: int, hidden: int, layers: int, gated: bool = False) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=1000,
        d_model=width,
        d_kv=width // heads,
        d_ff=hidden,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu" if gated else "relu",
        use_cache=False,
        decoder_start_token_id=0,
    )
    return _quietly(lambda: T5ForConditionalGeneration(config))


def whisper(width: int, heads: int, hidden: int, layers: int, frames: int) -> nn.Module:
    """``frames`` positions of the encoder, which takes twice as many log-mel frames."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=1000,
        num_mel_bins=80,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=hidden,
        decoder_ffn_dim=hidden,
        max_source_positions=frames,
        max_target_positions=64,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return _quietly(lambda: WhisperForConditionalGeneration(config))


def _quietly(make: Callable[[], nn.Module]) -> nn.Module:
    """transformers warns that the token ids of its default configurations exceed a small vocabulary."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return make()
    finally:
        logging.set_verbosity(level)
