"""`adadecode generate --chat`: a conversation on a terminal, its answers shown as their tokens are verified."""

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Generator
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from adadecode.cli.console import console, say, say_on_stderr
from adadecode.errors import PromptError, UsageError
from adadecode.printable import printable
from adadecode.records import Message
from adadecode.report.generation import answer_line, depth_styles, legend

if TYPE_CHECKING:
    from adadecode.language_model import LanguageModel

RESET, EXIT = "/reset", "/exit"
PROMPT = "> "
WARM_UP = "Hello"


class Interrupt:
    """Whether Ctrl-C was pressed since an answer began: it stops after the round it is in; a second one leaves at once."""

    def __init__(self) -> None:
        self.is_asked = False

    @contextlib.contextmanager
    def heard(self) -> Generator[None]:
        """While it lasts, Ctrl-C is noted instead of ending the program."""
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True


def check_chat(lm: "LanguageModel") -> None:
    """Raises UsageError for a model whose tokenizer has no chat template."""
    if lm.tokenizer.chat_template is None:
        raise UsageError(
            f"--chat: the tokenizer of model {lm.config.model!r} has no chat template; give a model that has one, "
            "such as an instruction-tuned one, or a prompt without --chat"
        )


def chat(lm: "LanguageModel", first: str | None = None) -> None:
    """Reads what the user says, line by line, `first` if given, and shows the answers, until /exit or the end of input."""
    out = console()
    with_colours = out.is_terminal and not os.environ.get("NO_COLOR")
    say_on_stderr(f"{RESET} begins anew, {EXIT} or Ctrl-D leaves, Ctrl-C stops an answer")
    if with_colours and lm.exits:
        out.print(legend(lm.exits, lm.model.num_layers))
    history: list[Message] = []
    turn = 0
    while (said := first if first is not None else read_line()) is not None:
        first = None
        if said.strip() == EXIT:
            break
        if said.strip() == RESET:
            history = []
        elif said.strip():
            try:
                history = answer(lm, out, history, said, turn, with_colours=with_colours)
            except PromptError as error:
                say_on_stderr(f"adadecode: {error}")
            turn += 1


def read_line() -> str | None:
    """The next line of standard input; None at its end. Ctrl-C drops what is being typed."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # input() edits lines by it
    while True:
        try:
            return input(PROMPT if is_terminal else "")
        except EOFError:
            if is_terminal:
                say("")
            return None
        except KeyboardInterrupt:
            say("")
        except UnicodeDecodeError as error:
            raise UsageError("standard input is not text in UTF-8") from error


def answer(
    lm: "LanguageModel", out: Console, history: list[Message], said: str, turn: int, *, with_colours: bool
) -> list[Message]:
    """Shows the answer to `said` after `history`; returns the history with both, without its oldest messages if too long.

    Raises PromptError for what cannot be answered.
    """
    kept = lm.fitting(said, history)
    if len(kept) < len(history):
        say_on_stderr(f"the context is full: the oldest {len(history) - len(kept)} messages are left out")
    interrupt, texts = Interrupt(), list[str]()
    started = time.perf_counter()
    with interrupt.heard():
        stream = lm.stream(said, context=kept, turn=turn)
        styles = depth_styles(lm.exits) if with_colours else {}
        for piece in stream:
            texts.append(piece.text)
            shown = Text(printable(piece.text, keep="\n\t"), styles.get(piece.depth, ""))
            out.print(shown, end="", soft_wrap=True, highlight=False)
            out.file.flush()
            if interrupt.is_asked:
                stream.stop()
    if not "".join(texts).endswith("\n"):
        out.file.write("\n")
        out.file.flush()
    if stream.output is None:
        say_on_stderr(f"stopped after {stream.num_tokens} tokens in {time.perf_counter() - started:.1f} s")
    else:
        line = answer_line(stream.output.generation, lm.model.num_layers)
        out.print(Text(line, "dim" if with_colours else ""), soft_wrap=True, highlight=False)
    return [*kept, Message("user", said), Message("assistant", "".join(texts))]
