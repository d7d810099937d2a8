"""Secrets that a user may have about, and a search of all that a run leaves, in whatever form."""

import base64
import gzip
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

# One in the environment for each kind of name, each with a value of its own.
VARIABLES = {
    name: f"planted-{secrets.token_hex(12)}"
    for name in (
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MY_API_KEY"),
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "SERVICE_PASSWORD"),
    )
}
IN_FILES = f"planted-{secrets.token_hex(12)}"
FILES = (
    *(
        ".env",
        ".env.local",
        ".envrc",
        ".netrc",
        "id.pem",
        "deep/server.key",
        "deep/id_rsa",
        ".git-credentials",
        ".pypirc",
    ),
    *(
        ".ssh/config",
        ".aws/credentials",
        ".kube/config",
        ".config/gcloud/access.db",
        ".git/config",
        ".huggingface/token",
        ".ray/auth_token",
        ".pgpass",
    ),
)
PACKED = re.compile(rb"H4sI[A-Za-z0-9+/=]{40,}")  # gzip in base64, as in a page


def plant_files(folder: Path) -> None:
    """Writes the secret of files into each of those that often hold one."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"token = {IN_FILES}\n")


def found_in(content: bytes, others: tuple[str, ...] = ()) -> list[str]:
    """Which secrets `content` holds, also where it is packed as in a page, or in base64."""
    contents = [content, *(gzip.decompress(base64.b64decode(packed)) for packed in PACKED.findall(content))]
    if content[:2] == b"\x1f\x8b":
        contents.append(gzip.decompress(content))
    values = [*VARIABLES.values(), IN_FILES, *others]
    forms = {value: (value.encode(), base64.b64encode(value.encode())[:-4]) for value in values}
    return [value for value, texts in forms.items() if any(text in one for one in contents for text in texts)]


def places_of_secrets(folder: Path, others: tuple[str, ...] = ()) -> Iterator[str]:
    """Every file below `folder` that holds a secret, in its name, its bytes or, of a Parquet file, rows and metadata."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        content = file.read_bytes() + str(file).encode()
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            content += repr((table.to_pylist(), table.schema.metadata)).encode()
        yield from (f"{file}: {value}" for value in found_in(content, others))
