"""Heads and policies that ship for models people know, each in a folder by its name; the models themselves do not ship."""

from pathlib import Path

PUBLISHED_DIR = Path(__file__).parent
POLICY = "policy.yaml"


DEMO_DRAFTERS = PUBLISHED_DIR / "demo"  # what the methods beside adadecode draft with on the embedded model
DEMO_DRAFT_MODEL, DEMO_MEDUSA = DEMO_DRAFTERS / "draft-model", DEMO_DRAFTERS / "medusa"


def published(name: str) -> Path | None:
    """The folder of the heads and the policy published as `name`; None where there are none."""
    return PUBLISHED_DIR / name if name in names() else None


def names() -> tuple[str, ...]:
    """What is published, such as `smollm2-135m-math`."""
    return tuple(sorted(policy.parent.name for policy in PUBLISHED_DIR.glob(f"*/{POLICY}")))
