"""The embedded default: a small trained model, its exit heads, its prompts and its policy."""

from pathlib import Path

from adadecode.published import DEMO_DRAFT_DIR

DEMO_DIR = Path(__file__).parent
MODEL_DIR = DEMO_DIR / "model"
HEADS_DIR = DEMO_DIR / "heads"
PROMPTS_DIR = DEMO_DIR / "prompts"
POLICY_FILE = DEMO_DIR / "policy.yaml"


def resolve_model(model: str) -> str:
    """The path or hub id that the name `model` stands for: `demo` is the embedded model, `demo-draft` drafts for it."""
    return {"demo": str(MODEL_DIR), "demo-draft": str(DEMO_DRAFT_DIR)}.get(model, model)
