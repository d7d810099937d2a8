"""The peers: whatever continues token ids greedily, one class for each program and one row for each way to use it."""

import contextlib
import functools
import importlib
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from adadecode.engine.decode import decode
from adadecode.engine.generate import Request
from adadecode.language_model import load_configured
from adadecode.methods import METHODS
from adadecode.provenance import code_hash
from adadecode.settings import GenerateConfig, settings_of
from adadecode.version import __version__

NUM_LOOKED_UP = 10  # tokens that transformers' prompt lookup drafts, as its documentation has it
LLAMA_CPP_GREEDY = {
    "temperature": 0,
    "samplers": ["top_k"],
    "top_k": 1,
    "cache_prompt": False,
    "return_tokens": True,
}
START_S = 60.0  # for a llama-server to load its model
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
VANILLA: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Given:
    """What all peers are given alike: weights, what ends a sequence, threads, and the most positions that a prompt takes.

    `gguf` has files of the same weights by the name of their type. `drafting` are adadecode's settings of heads and policy,
    `llama_server` is a llama.cpp built for this processor.
    """

    model: str
    gguf: dict[str, Path]
    eos_token_ids: list[int]
    threads: int
    num_positions: int
    drafting: dict[str, str]
    llama_server: Path | None


class Continuation(NamedTuple):
    """The tokens after a prompt, one that ends the sequence included; the first `num_first` of them end the prefill."""

    output_token_ids: list[int]
    num_first: int
    prefill_s: float
    decode_s: float


class Peer(Protocol):
    """A program with the model loaded; `version` says which program it is, and how it was built."""

    version: str

    def __call__(self, prompt_ids: list[int], max_new_tokens: int) -> Continuation: ...

    def close(self) -> None:
        """Ends what it has started beside itself: most have started nothing."""


class AdaDecode(Peer):
    """This project's engine decoding by one of its methods."""

    def __init__(self, given: Given, method: str, drafting: Mapping[str, Any] = VANILLA) -> None:
        settings = {"model": given.model, "dtype": "bfloat16", "threads": given.threads}
        self.lm = load_configured(settings_of(GenerateConfig, settings, drafting))
        self.method = METHODS[method]
        self.version = (
            f"adadecode {__version__} {code_hash()}, {self.lm.model.kernels} kernels, torch {torch.__version__}"
        )

    def __call__(self, prompt_ids: list[int], max_new_tokens: int) -> Continuation:
        request = Request(prompt_ids, max_new_tokens)
        generation = decode(self.lm.model, self.method, request, self.lm.policy, self.lm.heads).generation
        return Continuation(list(generation.output_token_ids), 1, generation.ttft_s, generation.decode_s)


class Clock(BaseStreamer):
    """When `generate` has given how many tokens: it is told first of the prompt, then of those of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.steps.append((time.perf_counter(), value.numel()))

    def end(self) -> None: ...


class Transformers(Peer):
    """transformers' own `generate`; `options` are those of its GenerationConfig."""

    def __init__(self, given: Given, **options: Any) -> None:
        torch.set_num_threads(given.threads)
        disable_progress_bar()
        self.lm: Any = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16).eval()
        self.lm.generation_config = GenerationConfig()  # greedy: none of the model's own penalties
        eos = given.eos_token_ids
        self.options = {
            "do_sample": False,
            "eos_token_id": eos,
            "pad_token_id": eos[0],
            **options,
        }
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def __call__(self, prompt_ids: list[int], max_new_tokens: int) -> Continuation:
        inputs, clock = torch.tensor([prompt_ids]), Clock()
        mask, config = (
            torch.ones_like(inputs),
            GenerationConfig(max_new_tokens=max_new_tokens, **self.options),
        )
        began = time.perf_counter()
        with torch.inference_mode():
            found = self.lm.generate(inputs, attention_mask=mask, generation_config=config, streamer=clock)
        _, (first, num_first), *_ = clock.steps
        output_token_ids = found[0, len(prompt_ids) :].tolist()
        return Continuation(output_token_ids, num_first, first - began, clock.steps[-1][0] - first)


@dataclass(frozen=True)
class NgramSimple:
    """llama.cpp's n-gram speculation `ngram-simple`: what followed the newest `size_n` tokens before, `size_m` of them."""

    size_n: int
    size_m: int


class LlamaCpp(Peer):
    """llama.cpp behind its own server and by its own clocks, from the wheel or as a llama-server that was built here."""

    def __init__(
        self,
        given: Given,
        weights: str,
        *,
        built: bool = False,
        ngrams: NgramSimple | None = None,
    ) -> None:
        self.server = (BuiltServer if built else WheelServer)(given, given.gguf[weights], ngrams)
        self.version = self.server.version

    def __call__(self, prompt_ids: list[int], max_new_tokens: int) -> Continuation:
        asked = {"prompt": prompt_ids, "n_predict": max_new_tokens, **LLAMA_CPP_GREEDY}
        answer = json.loads(fetch(f"{self.server.url}/completion", json.dumps(asked).encode()))
        timings = answer["timings"]
        assert timings["prompt_n"] == len(prompt_ids), timings  # no token added, none from a cache
        return Continuation(
            answer["tokens"],
            1,
            timings["prompt_ms"] / 1e3,
            timings["predicted_ms"] / 1e3,
        )

    def close(self) -> None:
        self.server.close()


class WheelServer:
    """The server in xllamacpp's wheel, within this process."""

    def __init__(self, given: Given, weights: Path, ngrams: NgramSimple | None) -> None:
        xllamacpp = importlib.import_module("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = (
            str(weights),
            given.num_positions,
            1,
        )
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
        params.fit_params, params.cache_ram_mib, params.verbosity = False, 0, 0
        if ngrams is not None:
            params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
            params.speculative.ngram_simple.size_n = ngrams.size_n
            params.speculative.ngram_simple.size_m = ngrams.size_m
        self._server = xllamacpp.Server(params)
        self.url = self._server.listening_address
        has = re.findall(r"(\w+) = 1", xllamacpp.get_system_info())
        self.version = f"xllamacpp {xllamacpp.__version__} ({', '.join(has)})"

    def close(self) -> None:
        del self._server


class BuiltServer:
    """A llama-server of the system, as a process beside this one."""

    def __init__(self, given: Given, weights: Path, ngrams: NgramSimple | None) -> None:
        assert given.llama_server is not None, given
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags: dict[str, object] = {
            "-m": weights,
            "-c": given.num_positions,
            "-np": 1,
            "--port": port,
        }
        flags |= {"-t": given.threads, "-tb": given.threads, "--host": "127.0.0.1"}
        if ngrams is not None:
            flags |= {"--spec-type": "ngram-simple"}
            flags |= {
                "--spec-ngram-simple-size-n": ngrams.size_n,
                "--spec-ngram-simple-size-m": ngrams.size_m,
            }
        command = [
            str(given.llama_server),
            *(str(word) for flag in flags.items() for word in flag),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while not is_ready(self.url):
            assert self._process.poll() is None, f"{command} ended with {self._process.returncode}"
            assert time.monotonic() < until, f"{command} does not answer"
            time.sleep(0.1)
        told = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True)
        self.version = f"llama-server {' '.join((told.stdout + told.stderr).split())}"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def is_ready(url: str) -> bool:
    """Whether the server at `url` has loaded its model."""
    try:
        return bool(fetch(f"{url}/health"))
    except urllib.error.URLError:
        return False


def fetch(url: str, body: bytes | None = None) -> bytes:
    """What the server of this machine at `url` answers to `body`."""
    with LOCAL.open(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
        return answer.read()


@dataclass(frozen=True)
class PeerRow:
    """A way to decode: what loads it, and the what it needs, each a field of Given that must not be empty."""

    load: Callable[[Given], Peer]
    needs: tuple[str, ...] = ()


def llama_cpp(weights: str, *needs: str, **how: Any) -> PeerRow:
    return PeerRow(functools.partial(LlamaCpp, weights=weights, **how), ("gguf", *needs))


NGRAMS = NgramSimple(6, 16)  # of 17 settings of five kinds the best on eight prompts that are not measured

PEERS = {
    "vanilla": PeerRow(functools.partial(AdaDecode, method="vanilla")),
    "ngrams": PeerRow(functools.partial(AdaDecode, method="adadecode", drafting={"ngram": 0.3})),
    "adadecode": PeerRow(lambda given: AdaDecode(given, "adadecode", given.drafting), ("drafting",)),
    "transformers": PeerRow(Transformers),
    "transformers-lookup": PeerRow(functools.partial(Transformers, prompt_lookup_num_tokens=NUM_LOOKED_UP)),
    "llama.cpp-bf16": llama_cpp("BF16"),
    "llama.cpp-bf16-ngrams": llama_cpp("BF16", ngrams=NGRAMS),
    "llama.cpp-q8_0": llama_cpp("Q8_0"),
    "built-bf16": llama_cpp("BF16", "llama_server", built=True),
    "built-bf16-ngrams": llama_cpp("BF16", "llama_server", built=True, ngrams=NGRAMS),
    "built-q8_0": llama_cpp("Q8_0", "llama_server", built=True),
}


def serve(name: str, given: Given, pipe: Connection) -> None:
    """Loads peer `name`, sends its version, and answers prompts until the other end of `pipe` is closed."""
    with (
        contextlib.closing(PEERS[name].load(given)) as peer,
        contextlib.suppress(EOFError),
    ):
        pipe.send(peer.version)
        while True:
            pipe.send(peer(*pipe.recv()))
