"""The two servers of a certification: where they are, with what they are entered, and each asked what it is."""

import contextlib
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from adadecode.certify.asking import Served, look
from adadecode.certify.compare import BASELINE, CANDIDATE, SIDES
from adadecode.certify.endpoint import Address, Endpoint, address_of
from adadecode.settings import CertifyConfig


@dataclass(frozen=True)
class Access:
    """Where a server is and the API key it asks for: what holds secrets, and is stored and logged nowhere."""

    address: Address
    key: str | None = field(repr=False)


@dataclass(frozen=True)
class Servers:
    """The two sides, by name, how they are asked, and by whom."""

    sides: Mapping[str, Served]
    config: CertifyConfig
    worker_id: str
    stopping: threading.Event


def access_to(config: CertifyConfig, keys: Mapping[str, str]) -> dict[str, Access]:
    """The access to each side: its URL in `config`, its key in `keys`; raises UsageError for a URL that is none."""
    urls = {BASELINE: config.baseline, CANDIDATE: config.candidate}
    return {side: Access(address_of(f"--{side}", urls[side]), keys.get(side)) for side in SIDES}


@contextlib.contextmanager
def connected(
    config: CertifyConfig, access: Mapping[str, Access], worker_id: str, num_connections: int
) -> Generator[Servers]:
    """Both servers, each asked what it is; at the end what is in flight is ended. Raises UsageError."""
    models = {BASELINE: config.baseline_model, CANDIDATE: config.candidate_model}
    with contextlib.ExitStack() as opened:
        sides: dict[str, Served] = {}
        for side in SIDES:
            endpoint = Endpoint(
                access[side].address,
                access[side].key,
                timeout_s=config.timeout_s,
                deadline_s=config.deadline_s,
                connections=num_connections,
            )
            opened.callback(endpoint.close)
            sides[side] = look(endpoint, side, models[side], config.server)
        yield Servers(sides, config, worker_id, threading.Event())


def without_secrets(servers: Servers) -> CertifyConfig:
    """The settings with bare URLs and the models that were found: what may be stored."""
    found = {side: served.endpoint.address.url for side, served in servers.sides.items()}
    found |= {f"{side}_model": served.model for side, served in servers.sides.items()}
    return servers.config.model_copy(update=found)
