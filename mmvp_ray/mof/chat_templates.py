"""Chat templates whose {% generation %} blocks mark what a model learns to say: LLaVA's vicuna_v1, and the plain one of stage "align"."""

from __future__ import annotations

from typing import Final

# What a message says: its images first, each on a line of its own, then its texts, as LLaVA moves "<image>" to the front of a turn.
# A literal "<image>" in a text part is somebody's text and no image (transformers' sanitize_control_tokens does not go with generation masks);
# content that is one string is taken as it is.
_CONTENT: Final = (
    "{%- macro said(message) -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] | replace('<image>', '< image >') }}{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
)

VICUNA_V1: Final = (
    _CONTENT
    + "{%- if messages[0]['role'] == 'system' -%}{%- set system = said(messages[0]) -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}"
    '{%- set system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and '
    "polite answers to the user's questions.\" -%}{%- set turns = messages -%}"
    "{%- endif -%}"
    "{{ system + ' ' }}"
    "{%- for message in turns -%}"
    "{%- if message['role'] == 'user' -%}{{ 'USER: ' + said(message) + ' ASSISTANT:' }}"
    "{%- elif message['role'] == 'assistant' -%}{%- generation -%}{{ ' ' + said(message) + eos_token }}{%- endgeneration -%}"
    "{%- else -%}{{ raise_exception('expected the roles user and assistant, found ' + message['role']) }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
"""LLaVA-1.5's conversation "vicuna_v1": what is learnt is each answer, the space before it and the end-of-text token after it."""

PLAIN: Final = (
    _CONTENT + "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{%- if message['content'] is not string -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}"
    "{%- endif -%}"
    "{%- elif message['role'] == 'assistant' -%}{%- generation -%}{{ said(message) + '\\n' }}{%- endgeneration -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
"""LLaVA's conversation "plain", of stage 1: the image and its caption; the instruction is not shown."""

TEMPLATES: Final = {"default": VICUNA_V1, "plain": PLAIN}
"""What a processor is saved with; apply_chat_template(..., chat_template="plain") chooses."""
