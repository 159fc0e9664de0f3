"""Rows of a benchmark as Markdown tables, with what they cost as a multiple of the proxy's in the same run."""

from typing import Any

COLUMNS = (
    "turns_s", "chunks_s", "p50_ms", "p99_ms", "turn_ms", "cpu_ms_per_turn_server", "cpu_ms_per_turn_db",
    "cpu_us_per_chunk", "cpu_us_per_token_server", "cpu_us_per_token_db", "ttft_p50_ms", "ttft_p99_ms", "total_p50_ms",
    "gap_p50_ms", "gap_p99_ms", "gap_max_ms", "rss_kb_per_stream", "cpu_ms_per_create_server", "page_ms",
    "page_cpu_ms", "list50_ms", "start_s", "cpu_s", "idle_rss_mb", "rss_mb", "failed", "short", "errors", "wrong",
    "lost", "others", "err",
)  # fmt: skip
COSTS = {
    "W1": ("cpu_ms_per_turn_server", "cpu_ms_per_turn_db"), "W2": ("cpu_us_per_chunk", "cpu_us_per_chunk_db"),
    "W2hold": ("cpu_us_per_token_server", "cpu_us_per_token_db"),
}  # fmt: skip
"""What is set against the proxy's in each workload: the server's part and the database's."""


def table(rows: list[dict[str, Any]]) -> str:
    """All figures, a table per workload."""
    lines = []
    for workload in sorted({row["w"] for row in rows} - {"W7"}):
        chosen = [row for row in rows if row["w"] == workload]
        cases = list(dict.fromkeys(row["case"] for row in chosen))
        chosen.sort(key=lambda row: cases.index(row["case"]))
        columns = [name for name in COLUMNS if any(row.get(name) not in (None, "") for row in chosen)]
        head = ["server", "case", *columns, *(["× proxy"] if workload in COSTS else [])]
        lines += ["", f"## {workload}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for row in chosen:
            cells = [row["target"], row["case"], *(_cell(row.get(name)) for name in columns)]
            if workload in COSTS:
                cells.append(_multiple(row, chosen, COSTS[workload]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def facts(rows: list[dict[str, Any]]) -> str:
    """W7 as a list, since it has words and hardly a figure."""
    lines = []
    for row in rows:
        if row["w"] == "W7":
            told = [f"- {name}: {_cell(value)}" for name, value in row.items() if name not in ("target", "w", "case")]
            lines += ["", f"## W7, {row['target']}", "", *told]
    return "\n".join(lines)


def _multiple(row: dict[str, Any], rows: list[dict[str, Any]], names: tuple[str, str]) -> str:
    own = sum(row.get(name) or 0 for name in names)
    proxy = next((other for other in rows if other["target"] == "proxy" and other["case"] == row["case"]), {})
    return f"{own / proxy[names[0]]:.1f}" if own and proxy.get(names[0]) else ""


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")
