"""Heads and policies that ship for models people know, each in a folder by its name; those models do not ship.

And what the demo's rivals draft with: a smaller model, and Medusa heads.
"""

from pathlib import Path

PUBLISHED_DIR = Path(__file__).parent
POLICY = "policy.yaml"


DEMO_DRAFT_DIR = PUBLISHED_DIR / "demo-draft"  # a smaller model that drafts for the embedded one
DEMO_MEDUSA_DIR = PUBLISHED_DIR / "demo-medusa"  # its Medusa heads, a folder for each domain


def published(name: str) -> Path | None:
    """The folder of the heads and the policy published as `name`; None where there are none."""
    return PUBLISHED_DIR / name if name in names() else None


def names() -> tuple[str, ...]:
    """What is published, such as `smollm2-135m-math`."""
    return tuple(sorted(policy.parent.name for policy in PUBLISHED_DIR.glob(f"*/{POLICY}")))
