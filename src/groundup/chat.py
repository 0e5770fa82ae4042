"""The special tokens and the one chat template that every rung shares."""

END_OF_TEXT = "<|endoftext|>"  # between documents in pre-training
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"  # what an assistant says when it is done; the tokenizer's eos
PAD = "<|pad|>"  # never the end-of-turn token: a reward model and a padded loss would not see that one
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, PAD)
ROLES = ("system", "user", "assistant")

# ChatML. What stands between `generation` marks is what the assistant says, its end of turn included: SFTTrainer computes
# the loss there only. The newline after it is outside, so that the text of n turns is a prefix of the text of n+1.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
