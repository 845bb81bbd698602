"""Encode a caption as the pipeline does: one user turn, then the assistant's cue."""

from typing import Any


def encode_chat(tokenizer: Any, caption: str) -> list[int]:
    """Return the token ids that `Ideogram4Pipeline.encode_prompt` feeds its text encoder."""
    messages = [{"role": "user", "content": [{"type": "text", "text": caption}]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]
