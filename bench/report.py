"""Results into a Markdown table and an SVG plot.

    python bench/report.py results.json --markdown docs/benchmarks-table.md --svg docs/benchmarks.svg

Reads what `python -m bench.pairs --json` and `pytest bench --benchmark-json` write, several at once if
need be.
Stands alone: it needs matplotlib for the plot and nothing for the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SMALL = 1 << 16  # below this an image is told in microseconds, above in bytes a second

NOISY = 0.2  # CPUs that others used: from here on it is said

TIMES = "\N{MULTIPLICATION SIGN}"
BLUE, GREY, INK, FAINT = "#1f6fb4", "#b9bec5", "#22272e", "#6b737d"


@dataclass(frozen=True)
class Figure:
    """One side of a row: the median time of a round."""

    seconds: float
    images: int
    total: int

    def __str__(self) -> str:
        if self.total < SMALL * self.images:
            return duration(self.seconds / self.images)
        rate = self.total / self.seconds / 1e9
        return f"{rate:.2f} GB/s" if rate < 10 else f"{rate:.1f} GB/s"


@dataclass
class Row:
    title: str
    base: Figure
    ours: Figure
    ratio: float
    low: float | None = None  # quartiles of the ratio, only where pairs were measured
    high: float | None = None
    cpu: float | None = None


@dataclass
class Cost:
    """What durability adds: fastfs beside itself."""

    title: str
    none: Figure
    costs: dict[str, Figure] = field(default_factory=dict)


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    paired: bool = False

    def named(self, store: str) -> str:
        version = self.versions.get(store, "")
        return f"{store} {version}" if version[:1].isdigit() else store

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.{2 if seconds < 0.01 else 0}f} ms"


def read_pairs(document: dict[str, Any], report: Report) -> None:
    here = document["machine"]
    report.note(f"{here['cpu']}, {here['cpus']} CPUs; {here['system']}; Python {here['python']}; {here['when']}.")
    speeds = ", ".join(f"{name} {speed:.2f}" for name, speed in here["hashlib_gbps"].items())
    report.note(f"One core of this machine hashes, by hashlib, in GB/s: {speeds}.")
    for case in document["cases"]:
        a, b = case["a_run"], case["b_run"]
        base, ours = (Figure(run["wall"]["median"], case["images"], case["bytes"]) for run in (a, b))
        report.versions |= {store_of(run["side"]): run["version"] for run in (a, b)}
        if store_of(a["side"]) == store_of(b["side"]) and a["durability"] == "none" != b["durability"]:
            title = case["title"].split(", durability")[0]
            report.costs.setdefault(title, Cost(title, base)).costs[b["durability"]] = ours
            continue
        report.paired = True
        ratio = case["ratio"]
        row = Row(case["title"], base, ours, ratio["median"], ratio["q1"], ratio["q3"])
        row.cpu = case["cpu_ratio"]["median"]
        report.rows.append(row)
        # The receivers of what is sent are other processes, too.
        if case["others"]["median"] > NOISY and not case["name"].startswith("send-"):
            report.note(f"{row.title}: something else kept {case['others']['median']:.1f} CPUs busy meanwhile.")


def read_pytest(document: dict[str, Any], report: Report) -> None:
    here, when = document["machine_info"], document["datetime"][:19]
    cpu, system = here.get("cpu", {}), f"{here['system']} {here['release']}"
    name, count = cpu.get("brand_raw", "?"), cpu.get("count", "?")
    report.note(f"{name}, {count} CPUs; {system}; Python {here['python_version']}; {when}.")
    groups: dict[str, dict[str, Figure]] = {}
    for entry in document["benchmarks"]:
        info = entry["extra_info"]
        figure = Figure(entry["stats"]["median"], info["images"], info["bytes"])
        groups.setdefault(entry["group"], {})[info["side"]] = figure
        report.versions[info["store"]] = info["version"]
    for title, sides in groups.items():
        base, ours = sides.get("glance_store"), sides.get("fastfs")
        if base and ours:
            report.rows.append(Row(title, base, ours, base.seconds / ours.seconds))
        priced = {side.partition(":")[2]: figure for side, figure in sides.items() if ":" in side}
        if ours and priced:
            report.costs[title] = Cost(title.split(", durability")[0], ours, priced)


def store_of(side: str) -> str:
    return side.partition(":")[0]


def read(paths: Sequence[Path]) -> Report:
    report = Report()
    for path in paths:
        document = json.loads(path.read_text(encoding="utf-8"))
        if str(document.get("format", "")).startswith("fastfs-pairs"):
            read_pairs(document, report)
        elif "benchmarks" in document:
            read_pytest(document, report)
        else:
            raise SystemExit(f"{path}: neither bench.pairs nor pytest-benchmark wrote this")
    return report


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ruler, *lines])


def markdown(report: Report) -> str:
    parts = []
    if report.paired:
        lines = []
        for row in report.rows:
            quartiles = f"{row.low:.2f} to {row.high:.2f}" if row.low and row.high else ""
            cpu = f"{row.cpu:.2f}" if row.cpu else ""
            lines.append([row.title, str(row.base), str(row.ours), f"**{row.ratio:.2f}**", quartiles, cpu])
        header = ["", "glance_store", "fastfs", f"{TIMES} wall", "quartiles", f"{TIMES} CPU"]
        parts.append(table(header, lines))
    elif report.rows:
        lines = [[r.title, str(r.base), str(r.ours), f"**{r.ratio:.2f}**"] for r in report.rows]
        parts.append(table(["", "glance_store", "fastfs", f"{TIMES} wall"], lines))
    if report.costs:
        header = ["What durability costs fastfs", "none", "file", "full", "batch"]
        lines = []
        for cost in report.costs.values():
            cells = [cost.title, duration(cost.none.seconds / cost.none.images)]
            for name in ("file", "full", "batch"):
                figure = cost.costs.get(name)
                cells.append(duration(figure.seconds / figure.images) if figure else "")
            lines.append(cells)
        parts.append(table(header, lines))
    stores = ", ".join(f"{store} {version}" for store, version in report.versions.items())
    parts.append("\n".join(f"- {note}" for note in [f"{stores}.", *report.notes]))
    return "\n\n".join(parts) + "\n"


def plot(report: Report, paths: Sequence[Path]) -> None:
    """One pair of bars a row, glance_store drawn as 1, so that rates and microseconds share an axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    mpl.rcParams.update({"svg.hashsalt": "fastfs", "font.family": "DejaVu Sans", "font.size": 10})
    rows = report.rows
    longest = max([1.0, *(row.high or row.ratio for row in rows)])
    figure, axes = plt.subplots(figsize=(9.6, 0.55 * len(rows) + 1.4), layout="constrained")
    thick = 0.34
    for n, row in enumerate(rows):
        axes.barh(n - thick / 2, 1.0, height=thick, color=GREY, linewidth=0)
        axes.barh(n + thick / 2, row.ratio, height=thick, color=BLUE, linewidth=0)
        end = row.ratio
        if row.low and row.high:
            axes.plot([row.low, row.high], [n + thick / 2] * 2, color=INK, linewidth=1.1, solid_capstyle="butt")
            end = max(end, row.high)
        beside: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
        small: dict[str, Any] = {"fontsize": 8.5, "color": FAINT}
        axes.annotate(str(row.base), (1.0, n - thick / 2), (6, 0), **beside, **small)
        bold = axes.annotate(
            f"{row.ratio:.2f}{TIMES}", (end, n + thick / 2), (6, 0), color=BLUE, fontweight="bold", **beside
        )
        axes.annotate(str(row.ours), (1, 0.5), (7, 0), xycoords=bold, **beside, **small)
    axes.set_yticks(range(len(rows)), [row.title for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.22)
    legend = "; bar: median of pairs, line: quartiles" if report.paired else ""
    axes.set_xlabel(f"times the speed of glance_store{legend}", color=FAINT, fontsize=9)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", colors=FAINT, labelsize=8.5)
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axvline(1.0, color=FAINT, linewidth=0.8)
    for edge in axes.spines.values():
        edge.set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, color=GREY), Rectangle((0, 0), 1, 1, color=BLUE)]
    figure.legend(
        handles,
        [report.named("glance_store"), report.named("fastfs")],
        loc="outside upper left",
        ncols=2,
        frameon=False,
    )
    for path in paths:
        extra: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 130}
        figure.savefig(path, facecolor="white", **extra)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the table there (default: to the terminal)")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args(argv)
    report = read(args.results)
    if args.markdown:
        args.markdown.write_text(markdown(report), encoding="utf-8")
    else:
        print(markdown(report), end="")
    if pictures := [path for path in (args.svg, args.png) if path]:
        plot(report, pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
