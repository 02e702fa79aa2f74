"""Records rendered as text: which characters a model reads, and which it is asked to predict."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from lab.data import Chat, Pair, Record, Text
from lab.errors import UsageError

# A line end before the answer, not a blank: byte-level tokenizers keep a word's blank, so " A" would be cut in two.
PLAIN = "Question: {prompt}\n\nAnswer:\n"
PLAIN_WITH_INPUT = "Question: {prompt}\n\n{input}\n\nAnswer:\n"
OPENING = 200  # characters of running text that stand for its prompt

Segment = tuple[str, bool]  # text, and whether it is predicted


def render(record: Record, tokenizer: Any, template: str | None) -> list[Segment]:
    """The text of a record, cut where prediction starts and stops; the beginning-of-text token is part of it.

    Templates, and what a chat template adds, are never predicted; end-of-turn tokens are. Raises UsageError for a
    template without {prompt} or, where there is one, {input}, and for turns without a chat template.
    """
    if isinstance(record, Text):
        return [(opening(tokenizer), False), (record.text, True)]
    if isinstance(record, Chat) or (template in (None, "auto") and tokenizer.chat_template):
        return turns(messages_of(record), tokenizer)
    return [(opening(tokenizer) + fill(record, template), False), (record.response, True)]


def render_prompt(record: Record, tokenizer: Any, template: str | None) -> str:
    """What generation starts from: all but the last answer, or the opening of a text; its special tokens are in it."""
    if isinstance(record, Text):
        return opening(tokenizer) + record.text[:OPENING]
    if isinstance(record, Chat) or (template in (None, "auto") and tokenizer.chat_template):
        messages = messages_of(record)
        return apply(messages[:-1] if messages[-1]["role"] == "assistant" else messages, tokenizer, prompt=True)
    return opening(tokenizer) + fill(record, template)


def opening(tokenizer: Any) -> str:
    """The beginning-of-text token, where the tokenizer puts one in front by itself."""
    first = tokenizer("")["input_ids"][:1]
    return str(tokenizer.bos_token) if first and first[0] == tokenizer.bos_token_id else ""


def fill(pair: Pair, template: str | None) -> str:
    """The prompt in its template."""
    if template in (None, "auto"):
        template = PLAIN_WITH_INPUT if pair.input else PLAIN
    check_template(template)
    if pair.input and "{input}" not in template:
        raise UsageError(
            f"data.template={template!r} has no {{input}}, and an example has the input {pair.input[:40]!r}, "
            f"which would be lost; put {{input}} into the template, or set data.input_field=null."
        )
    values = {"prompt": pair.prompt, "input": pair.input}
    return re.sub(r"\{(prompt|input)\}", lambda match: values[match[1]], template)  # once: a prompt may hold "{input}"


def check_template(template: str | None) -> None:
    """Raises UsageError where a template has no place for the prompt, or one for the response."""
    if template in (None, "auto"):
        return
    if "{prompt}" not in template:
        raise UsageError(
            f"data.template={template!r} has no {{prompt}}; put it where the prompt belongs, or use `auto`."
        )
    if "{response}" in template:
        raise UsageError(
            f"data.template={template!r} has a {{response}}, but the response always stands behind; drop it."
        )


def messages_of(record: Chat | Pair) -> list[dict[str, str]]:
    """The turns of a record; a pair is a user's and an assistant's."""
    if isinstance(record, Chat):
        return [{"role": role, "content": content} for role, content in record.messages]
    prompt = f"{record.prompt}\n\n{record.input}" if record.input else record.prompt
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": record.response}]


def turns(messages: list[dict[str, str]], tokenizer: Any) -> list[Segment]:
    """The rendered conversation, predicted in the assistant's turns only, from behind its header to its end token."""
    whole = apply(messages, tokenizer)
    segments: list[Segment] = []
    done = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = apply(messages[:i], tokenizer, prompt=True), apply(messages[: i + 1], tokenizer)
        if not (whole.startswith(before) and whole.startswith(after.rstrip())):
            raise UsageError(
                "the tokenizer's chat template renders a turn differently once others follow, so the assistant's part "
                "cannot be told from the rest; give each answer a conversation of its own."
            )
        end = len(after.rstrip())  # the line end behind an end-of-turn token is the template's
        segments += [(whole[done : len(before)], False), (whole[len(before) : end], True)]
        done = end
    if done < len(whole) and whole[done:].strip():
        segments.append((whole[done:], False))
    return segments


def apply(messages: Sequence[dict[str, str]], tokenizer: Any, prompt: bool = False) -> str:
    """The tokenizer's chat template applied; with `prompt`, up to where the assistant would start."""
    if not tokenizer.chat_template:
        raise UsageError(
            "the data holds messages, and this model's tokenizer has no chat template; choose a chat model, or use "
            "data.prompt_field and data.response_field."
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages) or "no turn"
        raise UsageError(
            f"the tokenizer's chat template refuses the roles {roles} ({error}); reorder the messages."
        ) from error
