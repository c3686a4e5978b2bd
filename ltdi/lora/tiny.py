"""A tiny, randomly initialised base model: every part is real, none knows any language."""

from __future__ import annotations

import string

from ltdi.lora.base import ATTENTION, EXTRA, Base, freeze, libraries
from ltdi.optional import optional
from ltdi.seeding import seeded

_WORDS = (
    "the a an and or not no of to in on for with by from at as is are was were be been it this "
    "that he she they we you i his her their good bad great new old one two more most all some"
)


def tiny_base(seed: int = 0) -> Base:
    """A 2-layer BERT of width 32 with a WordPiece tokenizer of common words and letters.

    Raises:
        InputError: If transformers is not installed.
    """
    transformers = libraries()[0]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*letters, *(f"##{c}" for c in string.ascii_lowercase + string.digits)]
    # Some of the words are single letters.
    vocabulary = list(dict.fromkeys([*special, *pieces, *_WORDS.split()]))
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        # With the usual 0.02 a net this small gives nearly the same output for every text.
        initializer_range=0.2,
    )
    with seeded(seed):
        encoder = transformers.AutoModel.from_config(config, attn_implementation=ATTENTION)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(vocabulary),
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name[1:-1].lower()}_token": name for name in special},
    )
    return freeze(Base(f"tiny-{seed}", encoder, tokenizer))


def _tokenizer(vocabulary: list[str]) -> object:
    tokenizers = optional("tokenizers", purpose="a language model", extra=EXTRA)
    number = {piece: i for i, piece in enumerate(vocabulary)}
    out = tokenizers.Tokenizer(tokenizers.models.WordPiece(number, unk_token="[UNK]"))
    out.normalizer = tokenizers.normalizers.BertNormalizer()
    out.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    out.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B:1 [SEP]:1",
        [(piece, number[piece]) for piece in ("[CLS]", "[SEP]")],
    )
    return out
