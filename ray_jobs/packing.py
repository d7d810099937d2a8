"""The folder that is sent with a job: what of it, how much that is, and its archive.

Never sent are secrets by their usual names, version control, virtual environments, caches, run folders, what .gitignore or
.rayignore names, and what a link shows of another folder.
"""

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray._private.thirdparty.pathspec.pathspec import PathSpec

from adadecode.errors import UsageError
from adadecode.printable import on_one_line
from adadecode.settings.sending import LARGEST_MIB

MIB = 1 << 20
NUM_NAMED = 3
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # so that the same files are the same archive
# What often holds a secret, and what no job needs; patterns as in .gitignore, in small letters.
NEVER_SENT = (
    *(".git", ".venv/", "venv/", "__pycache__/", ".cache/", ".tox/", ".nox/", ".ipynb_checkpoints/", "node_modules/"),
    *(".env*", ".netrc", ".git-credentials", ".npmrc", ".pypirc", ".s3cfg", ".boto", ".vault-token", ".htpasswd"),
    *(".pgpass", ".ray/"),
    *(".ssh/", ".aws/", ".azure/", ".kube/", ".docker/", ".gnupg/", "**/.config/gcloud/", ".huggingface/"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.kdbx", "application_default_credentials.json"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "id_ecdsa_sk", "id_ed25519_sk"),
)
# A folder that holds one of these is what the right side says.
MARKS = {
    "run.json": "a run folder",
    "sweep.parquet": "a sweep's folder",
    "pyvenv.cfg": "a virtual environment",
    "conda-meta": "a virtual environment",
    "CACHEDIR.TAG": "a cache",
}
IGNORE_FILES = (".gitignore", ".rayignore")


@dataclass(frozen=True)
class Package:
    """The files of `folder` that are sent, by their names in it, with their sizes in bytes."""

    folder: Path
    sizes: dict[str, int]
    num_links: int  # that lead out of the folder, or to what is not sent

    def line(self) -> str:
        """What is sent, in a line."""
        num_files, links = len(self.sizes), f", without {self.num_links} links that lead out of it"
        return (
            f"working directory {self.folder}: {num_files} file{'s'[: num_files != 1]}, "
            f"{sum(self.sizes.values()) / MIB:.1f} MiB{links if self.num_links else ''}"
        )

    def check(self, most_mib: int) -> None:
        """Raises UsageError for more than `most_mib`, which names what is largest in it."""
        total = sum(self.sizes.values())
        if total <= most_mib * MIB:
            return
        of_entry = Counter[str]()
        for name, size in self.sizes.items():
            of_entry[name.partition("/")[0]] += size
        largest = ", ".join(f"{on_one_line(name)} ({n / MIB:.1f} MiB)" for name, n in of_entry.most_common(NUM_NAMED))
        remedy = f", or give --max-mib {-(-total // MIB)}" if total <= LARGEST_MIB * MIB else ""
        raise UsageError(
            f"--working-dir {str(self.folder)!r}: {total / MIB:.1f} MiB to send, and at most {most_mib} are (--max-mib): "
            f"the largest are {largest}; name in its .gitignore what the job does not need{remedy}"
        )

    def write(self, archive: Path) -> None:
        """Writes the files into a zip file, for its user alone, the same for the same files; raises UsageError."""
        private = os.open(archive, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(private, "wb") as file, zipfile.ZipFile(file, "w") as out:
            for name in sorted(self.sizes):
                path = self.folder / name
                entry = zipfile.ZipInfo(name, FIRST_DAY)
                entry.external_attr = (stat.S_IFREG | (path.stat().st_mode & 0o755)) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                try:
                    out.writestr(entry, path.read_bytes())
                except OSError as error:
                    raise UsageError(f"--working-dir: {str(path)!r} cannot be read ({error.strerror})") from error


def package_of(folder: Path) -> Package:
    """What of `folder` is sent; raises UsageError where it is no folder, or one that is never sent."""
    if not folder.is_dir():
        raise UsageError(f"--working-dir {str(folder)!r} is no folder: give the one that the job needs")
    if (kind := kind_of(folder)) is not None:
        raise UsageError(
            f"--working-dir {str(folder)!r} is {kind}, which is not sent: give the folder that the job needs"
        )
    folder = folder.resolve()
    never = PathSpec.from_lines("gitwildmatch", NEVER_SENT)
    links: list[Path] = []
    sizes = {
        path.relative_to(folder).as_posix(): size
        for path, size in _walk(folder, folder, never, _ignored_above(folder), links)
    }
    inside = [link for link in links if _leads_to_sent(link, folder, sizes)]
    sizes |= {link.relative_to(folder).as_posix(): link.stat().st_size for link in inside}
    return Package(folder, sizes, len(links) - len(inside))


def kind_of(folder: Path) -> str | None:
    """What `folder` is that is never sent; None of any other."""
    return next((kind for mark, kind in MARKS.items() if (folder / mark).exists()), None)


@dataclass(frozen=True)
class Ignored:
    """What the ignore files of one folder name in it and below it."""

    folder: Path
    patterns: PathSpec

    def has(self, path: Path, *, is_folder: bool) -> bool:
        """Whether `path`, which lies below the folder, is named."""
        return self.patterns.match_file(path.relative_to(self.folder).as_posix() + "/" * is_folder)


def _ignored_above(folder: Path) -> list[Ignored]:
    """What the ignore files of the folders above `folder` name, up to its repository's; none where it is in none."""
    root = next((above for above in (folder, *folder.parents) if (above / ".git").exists()), folder)
    return [_ignored_in(above) for above in folder.parents if above.is_relative_to(root)]


def _ignored_in(folder: Path) -> Ignored:
    """What the ignore files of `folder` name; raises UsageError where one cannot be read."""
    lines: list[str] = []
    for path in (folder / name for name in IGNORE_FILES):
        try:
            lines += path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        except (OSError, ValueError) as error:
            raise UsageError(f"--working-dir: {str(path)!r} cannot be read ({on_one_line(error)})") from error
    return Ignored(folder, PathSpec.from_lines("gitwildmatch", lines))


def _walk(
    top: Path, folder: Path, never: PathSpec, ignored: Sequence[Ignored], links: list[Path]
) -> Iterator[tuple[Path, int]]:
    """The files below `folder` that are sent, with their sizes; adds to `links` those links that might be."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"--working-dir: {str(folder)!r} cannot be read ({on_one_line(error)})") from error
    ignored = [*ignored, _ignored_in(folder)]
    for entry in entries:
        path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
        name = path.relative_to(top).as_posix().lower() + "/" * is_folder
        if never.match_file(name) or any(one.has(path, is_folder=is_folder) for one in ignored):
            continue
        if entry.is_symlink():
            links.append(path)
        elif is_folder and kind_of(path) is None:
            yield from _walk(top, path, never, ignored, links)
        elif entry.is_file(follow_symlinks=False):
            yield path, entry.stat(follow_symlinks=False).st_size


def _leads_to_sent(link: Path, folder: Path, sizes: dict[str, int]) -> bool:
    """Whether a link shows a file that is sent anyway."""
    target = link.resolve()
    return target.is_relative_to(folder) and target.relative_to(folder).as_posix() in sizes
