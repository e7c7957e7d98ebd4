"""A conversation as the one text that a chat model was trained on, rendered exactly as transformers renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from kvtrove.models.spec import ModelError
from kvtrove.request import RequestError
from kvtrove.text.bounds import check_source
from kvtrove.text.budget import BudgetError
from kvtrove.text.files import read_json
from kvtrove.text.messages import Message, plain, read_messages, read_objects
from kvtrove.text.sandbox import Clock, sandbox

DEFAULT, TOOL_USE = "default", "tool_use"
END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # the space at its end tells whether the template strips messages


class ChatTemplate:
    """One template, or several by name: "tool_use" is taken when there are tools, else "default".

    named_tokens: "bos_token" -> "<s>" ..., which templates see as variables. clock: the time they are told.
    files: where each was found, for errors. Raises jinja2.TemplateSyntaxError for a text that is not a template.
    """

    def __init__(
        self,
        sources: str | Mapping[str, str],
        named_tokens: Mapping[str, str] | None = None,
        *,
        clock: Clock = datetime.now,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.sources = {DEFAULT: sources} if isinstance(sources, str) else dict(sources)
        self.named_tokens = dict(named_tokens or {})
        self._files = dict(files or {})
        environment = sandbox(clock)
        for source in self.sources.values():
            check_source(source)
        self._templates = {name: environment.from_string(source) for name, source in self.sources.items()}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        keep_null_content: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation; encode it without special tokens, it holds its own.

        add_generation_prompt: end with the opening of an answer. continue_final_message: leave the last message open.
        keep_null_content: content that is None reaches the template as none, rather than not at all.
        variables: for the template, for example enable_thinking; they may replace named tokens.
        RequestError: a message is malformed (it says which field), or the template refuses the conversation.
        """
        name = self._name(has_tools=tools is not None)
        conversation = read_messages(messages, keep_null_content)
        context = {
            **self.named_tokens,
            **plain(variables, "chat_template_kwargs"),
            "tools": read_objects(tools, "tools"),
            "documents": read_objects(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        if not continue_final_message:
            return self._render(name, conversation, context)
        if add_generation_prompt:
            raise RequestError(
                "continue_final_message leaves the last message open, add_generation_prompt begins a new one; "
                "set one of them to false",
                "continue_final_message",
            )
        if "content" not in self.sources[name]:
            raise RequestError("continue_final_message: this chat template does not use content", "messages")
        open_text = _mark_end(conversation)
        return _cut_at_mark(self._render(name, conversation, context), open_text)

    def _name(self, has_tools: bool) -> str:
        if has_tools and TOOL_USE in self.sources:
            return TOOL_USE
        if DEFAULT not in self.sources:
            raise RequestError(f"none of the model's chat templates is the default one: {', '.join(self.sources)}")
        return DEFAULT

    def _render(self, name: str, messages: list[Message], context: Mapping[str, Any]) -> str:
        try:
            return self._templates[name].render({**context, "messages": messages})
        except BudgetError as error:
            text = f"the chat template {self._files.get(name, name)} is stopped on these messages: {error}"
            raise RequestError(text, "messages") from error
        except jinja2.TemplateError as error:
            raise RequestError(f"the chat template refuses these messages: {error}", "messages") from error
        except Exception as error:  # a template can fail as any program can: adding None to a string, range(10**9)
            raise RequestError(
                f"the chat template fails on these messages: {type(error).__name__}: {error}", "messages"
            ) from error


def _mark_end(conversation: list[Message]) -> str:
    """Put END_MARK behind the last text of the last message, in place; returns that text."""
    last = conversation[-1]
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + END_MARK
        return content
    for part in reversed(content or []):
        if "text" in part:
            text = str(part["text"])
            part["text"] = text + END_MARK
            return text
    where = f"messages[{len(conversation) - 1}].content"
    raise RequestError(f"{where}: continue_final_message needs a text to continue, there is none", "messages")


def _cut_at_mark(rendered: str, open_text: str) -> str:
    """What stands before END_MARK. Where the template stripped the message, the cut is stripped too."""
    mark = END_MARK.strip()
    if open_text.strip() not in rendered or mark not in rendered:
        raise RequestError(
            "continue_final_message: the chat template leaves the last message out, so it cannot be continued",
            "messages",
        )
    at = rendered.rindex(mark)
    kept = rendered[at : at + len(END_MARK)] == END_MARK
    return rendered[:at] if kept else rendered[:at].rstrip()


def read_chat_template(directory: Path, configured: Any, named_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The template of a checkpoint, None when it has none. ModelError names the file of a broken one.

    chat_template.jinja and additional_chat_templates/*.jinja come before `configured` (tokenizer_config.json's:
    a text, or a list of named ones), and that before chat_template.json.
    """
    sources = {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    if (directory / "chat_template.jinja").is_file():
        sources[DEFAULT] = directory / "chat_template.jinja"
    if sources:
        return build_templates(
            {name: path.read_text(encoding="utf-8") for name, path in sources.items()}, named_tokens, sources
        )
    path = directory / "tokenizer_config.json"
    if configured is None:
        path = directory / "chat_template.json"
        configured = read_json(path).get("chat_template")
    if configured is None:
        return None
    try:
        texts = {DEFAULT: configured} if isinstance(configured, str) else {t["name"]: t["template"] for t in configured}
    except (TypeError, KeyError) as error:
        raise ModelError(f"{path}: chat_template must be a text or a list of {{name, template}}") from error
    return build_templates(texts, named_tokens, dict.fromkeys(texts, path))


def given_template(text_or_file: str, named_tokens: Mapping[str, str]) -> ChatTemplate:
    """A template that the operator chose: a file, or the text itself. ModelError when it is neither, or broken."""
    path = Path(text_or_file)
    try:
        is_file = len(text_or_file) < 4096 and path.is_file()
        text = path.read_text(encoding="utf-8") if is_file else text_or_file
    except (OSError, ValueError) as error:
        raise ModelError(f"chat_template: {path}: {error}") from error
    if not is_file and "{" not in text:
        raise ModelError(f"chat_template: {text_or_file!r} is no file, and no Jinja template either")
    return build_templates({DEFAULT: text}, named_tokens, {DEFAULT: path if is_file else Path("chat_template")})


def build_templates(
    texts: Mapping[str, str], named_tokens: Mapping[str, str], paths: Mapping[str, Path]
) -> ChatTemplate:
    """Templates by name; paths: where each was found. ModelError names the file of a broken one."""
    for name, text in texts.items():
        try:
            ChatTemplate(text)
        except RecursionError as error:
            raise ModelError(f"{paths[name]}: the chat template {name!r} nests too deeply") from error
        except jinja2.TemplateSyntaxError as error:
            message = (
                f"{paths[name]}: the chat template {name!r} is not valid Jinja: line {error.lineno}: {error.message}"
            )
            raise ModelError(message) from error
    return ChatTemplate(texts, named_tokens, files={name: path.name for name, path in paths.items()})
