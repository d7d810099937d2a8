"""A conversation with the real program on a real terminal, and what `generate` reads when it is given no prompt."""

import dataclasses
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import adadecode
from adadecode.cli import chat
from adadecode.errors import UsageError
from adadecode.records import Message

ROOT = Path(__file__).parents[3]
ESCAPE = "\x1b["


def chat_flags(tiny, chat_model, **changed: object) -> list[str]:
    left_out = {"task": None, "data_file": None, "shard_size": None}
    return tiny.flags(**(left_out | {"model": chat_model} | changed))


@pytest.fixture(scope="module")
def lm(tiny, chat_model):
    return adadecode.load(str(chat_model), str(tiny.heads), dtype="float32", threads=1, gamma=0.02, max_new_tokens=12)


@pytest.mark.parametrize("method", ["adadecode", "vanilla", "transformers"])
def test_a_stream_gives_what_generate_gives(lm, method):
    stream = lm.stream("w10 w20", method=method)
    pieces = list(stream)
    whole = lm.generate("w10 w20", method=method)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert stream.output.generation.output_token_ids == whole.generation.output_token_ids
    assert stream.num_tokens == len(whole.generation.output_token_ids)
    assert {piece.depth for piece in pieces} <= {*whole.generation.draft_depths}


def test_a_stream_that_is_stopped_has_no_output(lm):
    stream = lm.stream("w10 w20")
    next(stream)
    stream.stop()
    assert len(list(stream)) <= 1
    assert stream.output is None


def test_a_request_closes_the_stream_that_was_not_read_to_its_end(lm):
    alone = lm.generate("w11 w12").generation.output_token_ids
    first, second = lm.stream("w10 w20"), lm.stream("w11 w12")
    next(first)
    assert list(second)
    assert second.output.generation.output_token_ids == alone
    assert list(second) == []
    with pytest.raises(UsageError, match="closed before its end"):
        next(first)
    assert first.output is None
    third = lm.stream("w10 w20")
    next(third)
    assert lm.generate("w11 w12").generation.output_token_ids == alone
    with pytest.raises(UsageError, match="closed before its end"):
        list(third)
    assert lm.open_streams == []


def test_each_prompt_is_drawn_by_a_key_of_its_own_and_all_methods_share_it(lm):
    sampled = dataclasses.replace(lm, config=lm.config.model_copy(update={"temperature": 1.0}))
    keys = [
        sampled._request(prompt, (), method, None, repeat, 0).draw.key
        for prompt, repeat in (("w10 w20", 0), ("w11 w12", 0), ("w10 w20", 1))
        for method in ("vanilla", "adadecode", "transformers")
    ]
    assert [len(set(keys[at : at + 3])) for at in (0, 3, 6)] == [1, 1, 1]
    assert len(set(keys)) == 3


def test_a_turn_is_asked_after_those_before_it(lm):
    context = [Message("user", "w10"), Message("assistant", "w20")]
    assert lm.stream("w30", context=context)._pieces is not None
    assert lm.fitting("w30", context) == context
    long = [message for _ in range(400) for message in context]
    assert 0 < len(lm.fitting("w30", long)) < len(long)


def test_each_line_of_standard_input_is_a_turn_where_it_is_no_terminal(cli, tiny, chat_model):
    flags = chat_flags(tiny, chat_model)
    result = cli("generate", "--chat", *flags, input="w10 w20\n/reset\n\nw11\n/exit\nw12\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(" tokens/s") == 2
    assert "of drafts accepted" in result.stdout
    assert "layers per token" in result.stdout
    assert ESCAPE not in result.stdout


def test_a_full_context_forgets_the_oldest_messages(cli, tiny, chat_model):
    lines = (" ".join(["w10"] * 300) + "\n") * 5
    result = cli("generate", "--chat", *chat_flags(tiny, chat_model), input=lines)
    assert result.exit_code == 0, result.stderr
    assert "the context is full: the oldest 2 messages are left out" in result.stderr


def test_a_message_that_cannot_be_answered_is_a_line_and_the_next_is_answered(cli, tiny, chat_model):
    result = cli("generate", "--chat", *chat_flags(tiny, chat_model), input=" ".join(["w10"] * 5000) + "\nw11\n")
    assert result.exit_code == 0, result.stderr
    assert "the prompt has" in result.stderr
    assert result.stdout.count(" tokens/s") == 1


def test_a_prompt_comes_from_standard_input(cli, usage_error, tiny):
    flags = chat_flags(tiny, tiny.model)
    piped, given = cli("generate", *flags, input="w10 w20 w30\n"), cli("generate", "w10 w20 w30", *flags)
    assert piped.exit_code == 0, piped.stderr
    assert piped.stdout.splitlines()[0] == given.stdout.splitlines()[0]
    assert "standard input is empty" in usage_error("generate", *flags)


def test_what_cannot_be_a_conversation_is_one_line(usage_error, tiny):
    flags = chat_flags(tiny, tiny.model)
    assert "has no chat template; give a model that has one" in usage_error("generate", "--chat", *flags)
    assert "drop one of the two" in usage_error("generate", "--chat", "--compare", *flags)


class Terminal:
    """The program on a pseudo-terminal of its own."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.screen, side = pty.openpty()
        command = [sys.executable, "-m", "adadecode", *map(str, arguments)]
        environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environ, "TERM": "xterm-256color", **environment},
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
        )
        os.close(side)
        self.text = ""

    def until(self, wanted: str, seconds: float = 120.0) -> str:
        """What it shows up to `wanted`, from where the last call ended."""
        end = time.monotonic() + seconds
        while wanted not in self.text and time.monotonic() < end:
            if select.select([self.screen], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.screen, 65536).decode("utf-8", errors="replace")
                except OSError:  # it has ended
                    break
        before, found, self.text = self.text.partition(wanted)
        assert found, before
        return before + found

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


@pytest.mark.slow
def test_a_conversation_on_a_terminal(tiny, chat_model):
    flags = chat_flags(tiny, chat_model, max_new_tokens=400)
    terminal = Terminal("generate", "--chat", *flags)
    assert "drafted at layer" in terminal.until("> ")
    terminal.type("w10 w20\n")
    answered = terminal.until("tokens/s")
    assert ESCAPE in answered.replace("\x1b[?2004", ""), "coloured by depth"
    terminal.until("> ")
    terminal.type("w11 w12\n")
    terminal.until("w1")
    os.killpg(terminal.process.pid, signal.SIGINT)  # what Ctrl-C is
    terminal.until("> ")
    terminal.type("/reset\n")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_there_on_a_terminal_unless_no_color_is_set(lm, monkeypatch, capsys, no_color):
    shown = io.StringIO()
    monkeypatch.setattr(chat, "console", lambda: Console(file=shown, force_terminal=True, width=80))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setenv("NO_COLOR", no_color)
    chat.chat(lm, "w10 w20")
    assert "tokens/s" in shown.getvalue()
    assert (ESCAPE in shown.getvalue()) == (not no_color)
    assert ("drafted at layer" in shown.getvalue()) == (not no_color)


def test_escapes_in_an_answer_are_shown_and_not_obeyed(lm, monkeypatch, capsys):
    shown = io.StringIO()
    monkeypatch.setattr(chat, "console", lambda: Console(file=shown))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    harmful = type(lm.tokenizer).decode
    monkeypatch.setattr(type(lm.tokenizer), "decode", lambda *given, **how: "\x1b[2J" + harmful(*given, **how))
    chat.chat(lm, "w10 w20")
    assert ESCAPE not in shown.getvalue()
    assert "\\x1b[2J" in shown.getvalue()


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(lm, monkeypatch, capsys):
    shown = io.StringIO()
    out = Console(file=shown)
    monkeypatch.setattr(out, "print", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    history = chat.answer(lm, out, [], "w10 w20", 0, with_colours=False)
    assert [message.role for message in history] == ["user", "assistant"]
    assert history[1].content
    assert "stopped after" in capsys.readouterr().err
