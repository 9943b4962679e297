"""Figures of one run, or of several seeds of it, from the files the run left.

python tools/plot_run.py RUN [RUN ...] --out DIR     (needs the extra `plots`)

RUN is a workdir, or any folder with metrics.jsonl or curves.csv, and evaluation.json or
results.json where there is one. One run: dots are steps, the line is a running mean
over a tenth of them. Its band is that mean's 95% interval, as if steps were
independent. Several runs: the mean over runs, the band their range. Drawn is what the
files hold:

    training.png    losses, reward components and validation NDCG@10 over steps
    profiles.png    the profile quality panel over steps
    health.png      KL, entropy, length, unfinished share over steps
    evaluation.png  methods with 95% intervals, one panel a protocol
    cold_start.png  NDCG@10 over the length of the history
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # BLUE from this clone
from blue.evaluation.methods import method_of

# Okabe and Ito's palette, which colour-blind readers tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STAGE = "profiler"
# Panels of a figure: title, unit of the y axis, curve -> its name in the legend; a
# curve of another stage has that stage's name before a colon
TRAINING = (
    ("stage encoder", "contrastive loss, nats", {"encoder:policy/loss": ""}),
    ("stage warm_start", "loss, nats a token", {"warm_start:policy/loss": ""}),
    ("total reward", "weighted sum", {"reward/total": ""}),
    ("embedding reward", "log-likelihood, nats", {"reward/embedding": ""}),
    ("multiple choice", "share answered right", {"reward/choice": ""}),
    ("added costs", "reward", {
        "reward/unfinished": "unfinished", "reward/repetition": "repetition"}),
    ("validation users", "NDCG@10", {
        "eval/ndcg@10": "history + profile", "eval/profile_ndcg@10": "profile alone"}),
)  # fmt: skip
PROFILES = (
    ("made up", "share of mentions", {
        "profile/mention_hallucination": "not in the history"}),
    ("taken from the history", "share of words", {
        "profile/in_history": "in the history", "profile/copied": "in copied 4-grams"}),
    ("leaks (must be 0)", "share of profiles", {
        "profile/target_leak": "target in profile",
        "profile/history_leak": "target in history"}),
    ("alike", "share of 5-grams", {"profile/boilerplate": "of other users too"}),
    ("repetition", "share", {
        "profile/distinct_words": "distinct words",
        "profile/repeated_3grams": "repeated 3-grams",
        "profile/repeated_4grams": "repeated 4-grams"}),
    ("speculation", "share of sentences", {
        "profile/speculation_rate": "about the future"}),
    ("compression", "compressed / raw bytes", {"profile/compression": ""}),
    ("length", "words a profile", {
        "profile/words": "mean", "profile/words_p95": "95th percentile"}),
    ("mentions", "mentions a profile", {"profile/mentions": ""}),
)  # fmt: skip
HEALTH = (
    ("distance from the start", "KL, nats a token", {"policy/kl": ""}),
    ("entropy", "nats a token", {"policy/entropy": ""}),
    ("length", "tokens a profile", {
        "rollout/length_mean": "mean", "rollout/length_max": "longest"}),
    ("broken profiles", "share", {
        "rollout/truncated": "unfinished", "rollout/empty": "empty"}),
    ("gradient", "norm", {"optim/grad_norm": ""}),
    ("groups without a signal", "share", {"reward/frac_zero_std": ""}),
)  # fmt: skip
FIGURES = {"training": TRAINING, "profiles": PROFILES, "health": HEALTH}
METRIC = "ndcg@10"
MAX_METHODS = 7  # of the cold-start figure: as many as there are colours

Curve = tuple[np.ndarray, np.ndarray]  # steps, values


# --- reading


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or of the thinner curves.csv; numbers or None."""
    if (run / "metrics.jsonl").exists():
        with (run / "metrics.jsonl").open() as f:
            return [json.loads(line) for line in f]
    if not (run / "curves.csv").exists():
        raise SystemExit(f"{run}: there is neither metrics.jsonl nor curves.csv")
    with (run / "curves.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    number = lambda text: float(text) if text else None
    return [
        {k: v if k == "stage" else number(v) for k, v in row.items()}
        | {"step": int(row.get("step") or row["first_step"])}
        for row in rows
    ]


def read_result(run: Path) -> dict[str, Any] | None:
    """What the evaluation found, where there was one."""
    for name in ("evaluation.json", "results.json"):  # as experiments/ calls it
        if (run / name).exists():
            return json.loads((run / name).read_text())
    return None


def curve(rows: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """Steps done and values of one curve, where its stage has it."""
    stage, _, key = key.rpartition(":")
    points = [
        (row["step"] + 1, row[key])
        for row in rows
        if row["stage"] == (stage or STAGE) and row.get(key) is not None
    ]
    steps, values = np.array(points, float).reshape(-1, 2).T
    return steps, values


def running_mean(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Centred mean over `window` values, fewer at the ends, and half its 95% interval.

    1.96 standard errors; the values are taken as independent.
    """
    sums, squares = (np.concatenate([[0], np.cumsum(values**k)]) for k in (1, 2))
    at = np.arange(len(values))
    first = np.maximum(0, at - window // 2)
    last = np.minimum(len(values), at - window // 2 + window)
    n = last - first
    mean = (sums[last] - sums[first]) / n
    spread = np.maximum(0, (squares[last] - squares[first]) / n - mean**2)
    spread *= n / np.maximum(1, n - 1)
    return mean, 1.96 * np.sqrt(spread / n)


def seeds(curves: Sequence[Curve], window: int) -> tuple[np.ndarray, ...]:
    """Steps that all runs have, and the mean and range of their running means."""
    steps = curves[0][0]
    for other, _ in curves[1:]:
        steps = np.intersect1d(steps, other)
    smooth = [
        running_mean(values, window)[0][np.isin(own, steps)] for own, values in curves
    ]
    stacked = np.stack(smooth)
    return steps, stacked.mean(axis=0), stacked.min(axis=0), stacked.max(axis=0)


def chance(results: Sequence[Mapping[str, Any]]) -> float | None:
    """NDCG@10 of a random order in the first protocol; None when no run tells."""
    for result in results:
        for facts in result.get("protocols", {}).values():
            return facts.get("chance", {}).get(METRIC)
    return None


# --- drawing


def style(pyplot: Any) -> None:
    """One look for all figures."""
    pyplot.rcParams.update(
        {
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "figure.dpi": 120,
            "svg.hashsalt": "0",
        }
    )


def draw_curve(axis: Any, curves: Sequence[Curve], name: str, number: int) -> None:
    """One key: a running mean with its band, or the mean and range of several runs."""
    colour = COLOURS[number % len(COLOURS)]
    look = {"color": colour, "linestyle": STYLES[number % len(STYLES)]}
    sparse = max(len(steps) for steps, _ in curves) <= 40
    window = 1 if sparse else math.ceil(len(curves[0][0]) / 10)
    if sparse:
        look |= {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
    if len(curves) > 1:
        steps, mean, low, high = seeds(curves, window)
    else:
        ((steps, values),) = curves
        mean, half = running_mean(values, window)
        low, high = mean - half, mean + half
        if not sparse:
            axis.plot(steps, values, ".", color=colour, markersize=2, alpha=0.2)
    axis.plot(steps, mean, label=name or None, linewidth=1.5, **look)
    if not sparse or len(curves) > 1:
        axis.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)


def draw_steps(
    pyplot: Any, panels: Any, runs: Sequence[Sequence[Mapping]], line: float | None
) -> Any:
    """A figure of curves over steps; None when the runs hold none of them."""
    found = []
    for title, unit, keys in panels:
        curves = {key: [curve(rows, key) for rows in runs] for key in keys}
        kept = {k: c for k, c in curves.items() if all(len(s) for s, _ in c)}
        if kept:
            found.append((title, unit, keys, kept))
    if not found:
        return None
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.3 * columns, 2.5 * rows + 0.2), squeeze=False
    )
    for axis, (title, unit, keys, curves) in zip(axes.flat, found, strict=False):
        for number, (key, points) in enumerate(curves.items()):
            draw_curve(axis, points, keys[key], number)
        if unit == "NDCG@10" and line is not None:
            axis.axhline(line, color="0.4", linestyle=":", linewidth=1, label="chance")
        axis.set(title=title, ylabel=unit, xlabel="step")
        axis.set_xlim(left=0)
        if unit == "NDCG@10" or unit.startswith("share"):
            axis.set_ylim(0, max(0.05, axis.get_ylim()[1]))
        if any(keys[key] for key in curves) or (unit == "NDCG@10" and line is not None):
            axis.legend()
    for axis in axes.flat[len(found) :]:
        axis.remove()
    return figure


def draw_evaluation(pyplot: Any, results: Sequence[Mapping[str, Any]]) -> Any:
    """Methods with their intervals, one panel a protocol and one point a run."""
    protocols = list(results[0]["protocols"])
    methods = list(results[0]["methods"])
    figure, axes = pyplot.subplots(
        1,
        len(protocols),
        figsize=(max(6.0, 2.4 + 2.4 * len(protocols)), 0.9 + 0.24 * len(methods)),
        sharey=True,
        squeeze=False,
    )
    for axis, protocol in zip(axes.flat, protocols, strict=True):
        for number, result in enumerate(results):
            shift = 0.15 * (number - (len(results) - 1) / 2)
            for row, method in enumerate(methods):
                value = result["methods"].get(method, {}).get(protocol, {}).get(METRIC)
                if value is None:
                    continue
                by_model = method_of(method).profiler
                axis.errorbar(
                    value["mean"],
                    row + shift,
                    xerr=[
                        [value["mean"] - value["low"]],
                        [value["high"] - value["mean"]],
                    ],
                    fmt=MARKERS[number % len(MARKERS)],
                    color=COLOURS[0] if by_model else "0.35",
                    markersize=4,
                    linewidth=1.5,
                )
        line = results[0]["protocols"][protocol].get("chance", {}).get(METRIC)
        if line is not None:
            axis.axvline(line, color=COLOURS[1], linestyle=":")
        axis.set_title(protocol)
        axis.set_xlim(left=0)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("NDCG@10, 95% interval over users; dotted: chance", fontsize=9)
    return figure


def cold_start(result: Mapping[str, Any]) -> dict[str, dict[int, Mapping]]:
    """Method -> events known -> its interval, of a result with a cold-start curve."""
    curves: dict[str, dict[int, Mapping]] = {}
    for point in result.get("cold_start") or []:
        for method, values in point["methods"].items():
            curves.setdefault(method, {})[point["events"]] = values[METRIC]
    return curves


def draw_cold_start(pyplot: Any, curves: Sequence[Mapping], line: float | None) -> Any:
    """NDCG@10 over history length with intervals; with several runs, their range."""
    figure, axis = pyplot.subplots(figsize=(6.5, 3.8))
    for number, method in enumerate(list(curves[0])[:MAX_METHODS]):
        of_runs = [curve.get(method, {}) for curve in curves]
        lengths = sorted(set(of_runs[0]).intersection(*of_runs[1:]))
        points = [spread([run[length] for run in of_runs]) for length in lengths]
        if not points:
            continue
        means, lows, highs = np.array(points).T
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(
            lengths,
            means,
            label=method,
            color=colour,
            linestyle=STYLES[number % len(STYLES)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
        )
        axis.fill_between(lengths, lows, highs, color=colour, alpha=0.15, linewidth=0)
    if line is not None:
        axis.axhline(line, color="0.4", linestyle=":", linewidth=1, label="chance")
    ticks = sorted({length for points in curves[0].values() for length in points})
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.minorticks_off()
    axis.set_xlim(-0.15, 1.15 * max(1, *ticks))
    over = "users (95%)" if len(curves) == 1 else "runs (range)"
    axis.set(xlabel="newest events known", ylabel=f"NDCG@10, band over {over}")
    axis.set_ylim(bottom=0)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def spread(values: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """Mean, low and high of a point: of one run its interval, of several the range."""
    if len(values) == 1:
        return values[0]["mean"], values[0]["low"], values[0]["high"]
    means = [value["mean"] for value in values]
    return float(np.mean(means)), min(means), max(means)


def figures(pyplot: Any, runs: Sequence[Path]) -> dict[str, Any]:
    """Name -> figure, for all that the files of the runs hold."""
    rows = [read_rows(run) for run in runs]
    results = [found for run in runs if (found := read_result(run)) is not None]
    line = chance(results)
    found = {name: draw_steps(pyplot, p, rows, line) for name, p in FIGURES.items()}
    if results:
        found["evaluation"] = draw_evaluation(pyplot, results)
    if cold := [curves for result in results if (curves := cold_start(result))]:
        found["cold_start"] = draw_cold_start(pyplot, cold, line)
    return {name: figure for name, figure in found.items() if figure is not None}


def main(runs: Sequence[str], out: str) -> None:
    """Draws every figure the runs have the numbers for into the folder `out`."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("figures need matplotlib: pip install -e '.[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style(pyplot)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(pyplot, [Path(run) for run in runs]).items():
        figure.tight_layout()
        # no date and no version in the file: the same numbers, the same bytes
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
        pyplot.close(figure)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    main(arguments.runs, arguments.out)
