"""Fits `confidence_of` of the n-gram drafter to a model's own outputs, and says how well it holds on others.

    python -m tests.efficiency.fit_ngrams FOLDER...

Each FOLDER holds `outputs/part-*.parquet`, as `adadecode train-heads` leaves them: prompts and greedy outputs as token ids.
The even outputs of all folders are fitted together, the odd ones of each are what is printed.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import minimize

from adadecode.engine.ngram import MOST_LENGTH, MOST_STREAK, confidence_of
from adadecode.engine.suffixes import Suffixes


def proposals(prompt_ids: list[int], output_ids: list[int]) -> list[tuple[int, int, bool, bool]]:
    """For each output token with a match: the match's length and streak, whether it has changed, whether it is right."""
    suffixes, found = Suffixes(), list[tuple[int, int, bool, bool]]()
    for token_id in prompt_ids:
        suffixes.append(token_id)
    for token_id in output_ids:
        match = suffixes.continuation(suffixes.newest)
        if match is not None:
            length, seen = match
            found.append((length, seen.streak, seen.has_changed, seen.token_id == token_id))
        suffixes.append(token_id)
    return found


def read(folder: Path) -> list[NDArray]:
    """The proposals of each output in `folder`, `[n, 4]`."""
    columns = ["prompt_token_ids", "output_token_ids"]
    tables = [pq.read_table(file, columns=columns) for file in sorted((folder / "outputs").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    return [np.array(proposals(row[columns[0]], row[columns[1]]), float).reshape(-1, 4) for row in rows]


def features(rows: NDArray) -> NDArray:
    length, streak = np.minimum(rows[:, 0], MOST_LENGTH), np.minimum(rows[:, 1], MOST_STREAK)
    return np.stack([np.ones(len(rows)), np.log(length), np.log(streak), rows[:, 2]], axis=1)


def loss(probability: NDArray, is_right: NDArray) -> float:
    """The mean negative log-likelihood."""
    probability = np.clip(probability, 1e-6, 1.0 - 1e-6)
    return float(-(is_right * np.log(probability) + (1.0 - is_right) * np.log(1.0 - probability)).mean())


def sigmoid(x: NDArray) -> NDArray:
    return 1.0 / (1.0 + np.exp(-x))


def main(folders: list[Path]) -> None:
    """Prints the coefficients, and for each folder the loss of the fit and of what the drafter has now."""
    outputs = {folder: read(folder) for folder in folders}
    fitted = np.concatenate([rows for of_folder in outputs.values() for rows in of_folder[::2]])
    x, y = features(fitted), fitted[:, 3]
    found = minimize(lambda w: loss(sigmoid(x @ w), y) + 1e-4 * (w**2).sum(), np.zeros(x.shape[1]), method="BFGS")
    print("constant, log length, log streak, has changed:", np.round(found.x, 2))
    now = np.vectorize(lambda length, streak, changed: confidence_of(int(length), int(streak), bool(changed)))
    for folder, of_folder in outputs.items():
        rows = np.concatenate(of_folder[1::2])
        x, y = features(rows), rows[:, 3]
        kept = now(np.minimum(rows[:, 0], MOST_LENGTH), np.minimum(rows[:, 1], MOST_STREAK), rows[:, 2])
        print(
            f"{folder}: {len(rows)} proposals, {y.mean():.1%} right; loss {loss(sigmoid(x @ found.x), y):.3f} fitted, "
            f"{loss(kept, y):.3f} as it is, whose mean is {kept.mean():.1%}"
        )


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
