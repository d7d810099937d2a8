"""Fits `confidence_of` and `likelier` of the n-gram drafter to models' own outputs, and says how well they hold on others.

    python -m tests.efficiency.fit_ngrams FOLDER...

Each FOLDER holds `outputs/part-*.parquet`, as `adadecode train-heads` leaves them: prompts and greedy outputs as token ids.
The even outputs of all folders are fitted together, the odd ones of each are what is printed. For `likelier` a third makes
a store, the second third of all folders is fitted, and the last of each is what is printed.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import minimize

from adadecode.engine.ngram import (
    AGREED,
    MOST_LENGTH,
    MOST_STREAK,
    REPEATED_AGAINST,
    STORED_AGAINST,
    confidence_in,
    confidence_of,
    log_odds,
)
from adadecode.engine.suffixes import Suffixes
from adadecode.model.ngram_store import NgramStore
from adadecode.training.ngrams import build_nodes
from adadecode.training.outputs import GreedyOutput

MOST_CONTEXTS = 140_000


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


def pairs(output: GreedyOutput, store: NgramStore) -> list[tuple[float, float, bool, bool, bool]]:
    """For each token that both the sequence and `store` propose one for: the log-odds of the two, and who is right.

    First whether both propose the same, then whether the sequence is right, then whether the store is.
    """
    suffixes, found = Suffixes(), list[tuple[float, float, bool, bool, bool]]()
    text = [*output.prompt_ids, *output.output_ids]
    for idx, token_id in enumerate(text):
        match, stored = suffixes.continuation(suffixes.newest), store.successor(text[max(0, idx - store.longest) : idx])
        if idx > len(output.prompt_ids) and match is not None and stored is not None:
            said = match[1].token_id
            odds = log_odds(confidence_in(*match)), log_odds(stored[1])
            found.append((*odds, said == stored[0], said == token_id, stored[0] == token_id))
        suffixes.append(token_id)
    return found


def read(folder: Path) -> list[GreedyOutput]:
    """The outputs in `folder` with their prompts."""
    columns = ["prompt_token_ids", "output_token_ids"]
    tables = [pq.read_table(file, columns=columns) for file in sorted((folder / "outputs").glob("*.parquet"))]
    return [GreedyOutput(*row.values()) for table in tables for row in table.to_pylist()]


def features(rows: NDArray) -> NDArray:
    length, streak = np.minimum(rows[:, 0], MOST_LENGTH), np.minimum(rows[:, 1], MOST_STREAK)
    return np.stack([np.ones(len(rows)), np.log(length), np.log(streak), rows[:, 2]], axis=1)


def loss(probability: NDArray, is_right: NDArray) -> float:
    """The mean negative log-likelihood."""
    probability = np.clip(probability, 1e-6, 1.0 - 1e-6)
    return float(-(is_right * np.log(probability) + (1.0 - is_right) * np.log(1.0 - probability)).mean())


def sigmoid(x: NDArray) -> NDArray:
    return 1.0 / (1.0 + np.exp(-x))


def fit(x: NDArray, y: NDArray) -> NDArray:
    """The weights of a logistic regression of `y` on the features `x`."""
    start = np.zeros(x.shape[1])
    return minimize(lambda w: loss(sigmoid(x @ w), y) + 1e-4 * (w**2).sum(), start, method="BFGS").x


def fit_repeated(outputs: dict[Path, list[NDArray]]) -> None:
    """Prints the coefficients of `confidence_of`, and for each folder the loss of the fit and of what the drafter has."""
    fitted = np.concatenate([rows for of_folder in outputs.values() for rows in of_folder[::2]])
    x, y = features(fitted), fitted[:, 3]
    weights = fit(x, y)
    print("constant, log length, log streak, has changed:", np.round(weights, 2))
    now = np.vectorize(lambda length, streak, changed: confidence_of(int(length), int(streak), bool(changed)))
    for folder, of_folder in outputs.items():
        rows = np.concatenate(of_folder[1::2])
        x, y = features(rows), rows[:, 3]
        kept = now(np.minimum(rows[:, 0], MOST_LENGTH), np.minimum(rows[:, 1], MOST_STREAK), rows[:, 2])
        print(
            f"{folder}: {len(rows)} proposals, {y.mean():.1%} right; loss {loss(sigmoid(x @ weights), y):.3f} fitted, "
            f"{loss(kept, y):.3f} as it is, whose mean is {kept.mean():.1%}"
        )


def fit_likelier(pairs_of: dict[Path, list[NDArray]]) -> None:
    """Prints the weights of `likelier`, and for each folder the losses as they are fitted, are now, and are without it."""
    cases = (("agreed", AGREED, True, 3), ("repeated against", REPEATED_AGAINST, False, 3))
    for name, now, is_same, right in (*cases, ("stored against", STORED_AGAINST, False, 4)):
        parts = {folder: [rows[rows[:, 2] == is_same] for rows in thirds] for folder, thirds in pairs_of.items()}
        fitted = np.concatenate([to_fit for to_fit, _ in parts.values()])
        weights = fit(with_constant(fitted[:, :2]), fitted[:, right])
        print(f"{name}: constant, log-odds of the sequence's and of the store's:", np.round(weights, 2))
        for folder, (_, rows) in parts.items():
            x, y, alone = with_constant(rows[:, :2]), rows[:, right], rows[:, 0 if right == 3 else 1]
            losses = (loss(sigmoid(x @ weights), y), loss(sigmoid(x @ np.array(now)), y), loss(sigmoid(alone), y))
            print(
                f"  {folder}: {len(rows)}, {y.mean():.1%} right; loss {losses[0]:.3f} fitted, {losses[1]:.3f} as it is,",
                end="",
            )
            print(f" {losses[2]:.3f} of its own chance")


def with_constant(x: NDArray) -> NDArray:
    """The features `x` after a column of ones."""
    return np.concatenate([np.ones((len(x), 1)), x], axis=1)


def stored_chances(outputs: list[GreedyOutput], store: NgramStore) -> NDArray:
    """The log-odds of what `store` proposes for tokens of `outputs`, and whether that is right, `[n, 2]`."""
    found = list[tuple[float, bool]]()
    for prompt_ids, output_ids in outputs:
        text = [*prompt_ids, *output_ids]
        for idx in range(len(prompt_ids) + 1, len(text)):
            if (said := store.successor(text[max(0, idx - store.longest) : idx])) is not None:
                found.append((log_odds(said[1]), said[0] == text[idx]))
    return np.array(found, float)


def main(folders: list[Path]) -> None:
    """Prints what is fitted, and how it does on other outputs."""
    outputs = {folder: read(folder) for folder in folders}
    fit_repeated(
        {
            folder: [np.array(proposals(*output), float).reshape(-1, 4) for output in of_folder]
            for folder, of_folder in outputs.items()
        }
    )
    pairs_of: dict[Path, list[NDArray]] = {}
    for folder, of_folder in outputs.items():
        store = NgramStore(build_nodes(of_folder[::3], MOST_CONTEXTS))
        thirds = [[pair for output in of_folder[part::3] for pair in pairs(output, store)] for part in (1, 2)]
        pairs_of[folder] = [np.array(third, float).reshape(-1, 5) for third in thirds]
        rows = stored_chances(of_folder[1::3], store)
        x, y = with_constant(rows[:, :1]), rows[:, 1]
        print(f"{folder}: store alone {y.mean():.1%} right, its mean chance {sigmoid(rows[:, 0]).mean():.1%};", end="")
        print(" constant and weight of its log-odds, 0 and 1 where it holds as it is:", np.round(fit(x, y), 2))
    fit_likelier(pairs_of)


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
