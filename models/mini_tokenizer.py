"""The mini's tokenizer: whole tokens for the schema's boilerplate, one token a character elsewhere.

A poster caption of about 300 characters becomes 40-80 tokens. Every string survives encode-decode:
a character outside printable ASCII falls back to its UTF-8 bytes. Number tokens end in "," or "]"
so that they only fire inside a bbox, never inside quoted text such as "7525".
"""

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Sequence
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from dit8.models.poster_type import FACES
from dit8.models.posters import COLORS, COUNT_WORDS, HARD_BACKGROUNDS, SHAPES

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOILERPLATE = (
    "user\n",
    "assistant\n",
    '{"high_level_description":"',
    '","compositional_deconstruction":{"background":"',
    '{"compositional_deconstruction":{"background":"',
    '","elements":[',
    '{"type":"text","bbox":[',
    '{"type":"obj","bbox":[',
    ',"text":"',
    '","desc":"',
    ',"desc":"',
    '"},',
    '"}]}}',
)
WORDS = (
    *COLORS,
    *FACES,
    *SHAPES,
    *HARD_BACKGROUNDS,
    *COUNT_WORDS,
    "flat",
    "poster",
    "with",
    "word",
    "words",
    "and",
    "shape",
    "shapes",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; ids depend on the tables above alone."""
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *byte_tokens, *characters])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = Sequence([ByteFallback(), Fuse()])
    numbers = [f"{25 * i}{end}" for i in range(41) for end in (",", "]")]
    words = [variant for word in WORDS for variant in (word, f" {word}")]
    plain = [*BOILERPLATE, *numbers, *words]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
