"""Records rendered as text: which characters a model reads, and which it is asked to predict."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from lab.data import Chat, Pair
from lab.data.special import SpecialTokens, unused
from lab.errors import UsageError

# A line end before the answer, not a blank: byte-level tokenizers keep a word's blank, so " A" would be cut in two.
PLAIN = "Question: {prompt}\n\nAnswer:\n"
PLAIN_WITH_INPUT = "Question: {prompt}\n\n{input}\n\nAnswer:\n"

Segment = tuple[str, bool]  # text, and whether it is predicted; no token reaches over a segment's border
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Renderer:
    """Pairs and chats as text for one tokenizer, cut where prediction starts and stops.

    Templates, and what a chat template adds, are never predicted; end-of-turn tokens are. A special token's name is
    the token where a template holds it, and text where a record does: there it is cut, see SpecialTokens. Methods
    raise UsageError for a template without {prompt} or, where there is one, {input}, and for turns without a chat
    template.
    """

    tokenizer: Any
    template: str | None
    special: SpecialTokens

    def writes_turns(self, record: Pair | Chat) -> bool:
        """True where the tokenizer's chat template writes all there is, the beginning-of-text token included."""
        return isinstance(record, Chat) or (self.template in (None, "auto") and bool(self.tokenizer.chat_template))

    def whole(self, record: Pair | Chat) -> list[Segment]:
        """The segments that training reads."""
        if isinstance(record, Chat) or self.writes_turns(record):
            return self._turns(messages_of(record))
        return self._prompt_of_pair(record) + [(piece, True) for piece in self.special.split(record.response)]

    def prompt(self, record: Pair | Chat) -> list[Segment]:
        """The segments that generation starts from: the very ones that training reads before the last answer."""
        if isinstance(record, Chat) or self.writes_turns(record):
            messages = messages_of(record)
            return self._turns(messages[:-1] if messages[-1]["role"] == "assistant" else messages, prompt=True)
        return self._prompt_of_pair(record)

    def _prompt_of_pair(self, pair: Pair) -> list[Segment]:
        template = template_for(pair, self.template)
        mark = unused(template, pair.prompt, pair.input)
        text = fill(template, self.special.mark(pair.prompt, mark), self.special.mark(pair.input, mark))
        return [(piece, False) for piece in self.special.cut(text, mark)]

    def _turns(self, messages: Messages, prompt: bool = False) -> list[Segment]:
        """The rendered conversation, predicted in the assistant's turns only, from behind its header to its end token.

        With `prompt`, up to where the assistant would start.
        """
        if not self.tokenizer.chat_template:
            raise UsageError(
                "the data holds messages, and this model's tokenizer has no chat template; choose a chat model, or use "
                "data.prompt_field and data.response_field."
            )
        roles = [message["role"] for message in messages]
        for role in roles:
            if self.special.split(role) != [role]:
                raise UsageError(
                    f"a message has the role {role!r}, which holds a special token; name the role in words."
                )
        mark = unused(str(self.tokenizer.chat_template), *(message["content"] for message in messages))
        marked = [{**message, "content": self.special.mark(message["content"], mark)} for message in messages]
        try:
            segments = self._between_turns(marked, prompt)
        except TemplateError as error:
            raise UsageError(
                f"the tokenizer's chat template refuses the roles {', '.join(roles)} of the conversation that begins "
                f"with {messages[0]['content'][:40]!r} ({error}); reorder the messages."
            ) from error
        return [(piece, predicted) for text, predicted in segments for piece in self.special.cut(text, mark)]

    def _between_turns(self, messages: Messages, prompt: bool) -> list[Segment]:
        whole = self._apply(messages, prompt)
        segments: list[Segment] = []
        done = 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._apply(messages[:i], prompt=True)
            after = self._apply(messages[: i + 1]).rstrip()  # a line end behind the turn is the template's
            if not (whole.startswith(before) and whole.startswith(after)):
                raise UsageError(
                    "the tokenizer's chat template renders a turn differently once others follow, so the assistant's "
                    "part cannot be told from the rest; give each answer a conversation of its own."
                )
            segments += [(whole[done : len(before)], False), (whole[len(before) : len(after)], True)]
            done = len(after)
        if prompt or whole[done:].strip():
            segments.append((whole[done:], False))
        return segments

    def _apply(self, messages: Sequence[dict[str, str]], prompt: bool = False) -> str:
        """The chat template applied; with `prompt`, up to where the assistant would start."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


def template_for(pair: Pair, template: str | None) -> str:
    """The template of a pair, which has a place for all that the pair holds; raises UsageError where it has none."""
    if template in (None, "auto"):
        template = PLAIN_WITH_INPUT if pair.input else PLAIN
    check_template(template)
    assert template is not None
    if pair.input and "{input}" not in template:
        raise UsageError(
            f"data.template={template!r} has no {{input}}, and an example has the input {pair.input[:40]!r}, "
            f"which would be lost; put {{input}} into the template, or set data.input_field=null."
        )
    return template


def fill(template: str, prompt: str, input: str) -> str:
    """The template with its places filled, once: a prompt may hold "{input}"."""
    values = {"prompt": prompt, "input": input}
    return re.sub(r"\{(prompt|input)\}", lambda match: values[match[1]], template)


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


def messages_of(record: Chat | Pair) -> Messages:
    """The turns of a record; a pair is a user's and an assistant's. Raises UsageError where the assistant begins."""
    if isinstance(record, Chat):
        if record.messages[0][0] == "assistant":
            raise UsageError(
                f"a conversation begins with the assistant's {record.messages[0][1][:40]!r}, which answers nothing; "
                f"put a user's or a system's turn in front, or drop it."
            )
        return [{"role": role, "content": content} for role, content in record.messages]
    prompt = f"{record.prompt}\n\n{record.input}" if record.input else record.prompt
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": record.response}]
