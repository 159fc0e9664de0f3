"""The workloads of streams: the shared harness's W2, W2lat, W2hold and W7, and the price of the run log.

Everything runs beside the bare proxy in one go. The memory per stream includes the caches that the first streams of a
server fill (decision 0003 and `runs/contexts.py` bound them), so the row with the most streams tells most.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STREAMS = ("W2", "W2lat", "W2hold")
COLUMNS = (
    "chunks_s", "cpu_us_per_chunk", "ttft_p50_ms", "ttft_p99_ms", "total_p50_ms", "gap_p99_ms", "gap_max_ms",
    "complete", "failed", "short", "cpu_us_per_token_server", "rss_kb_per_stream", "others",
)  # fmt: skip


def crash(harness: Path, label: str, base: str, command: Sequence[str], model: str) -> list[dict[str, Any]]:
    """W7: kill -9 in the middle of a background run (one tool done, 80 tokens under way), restart, and look."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as out:
        words = [sys.executable, str(harness), "crash", "letta", "--label", label, "--base-url", base]
        words += ["--out", out.name, "--cmd", shlex.join(command), "--model", model]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return [json.loads(line) for line in out.read().splitlines()]


def told(rows: Sequence[dict[str, Any]]) -> str:
    """W7 as a list, since it has words and no figures."""
    lines = [f"\n## W7\n\n{row['target']}:\n" for row in rows]
    facts = [f"- {key}: {value}" for row in rows for key, value in row.items() if key not in ("target", "w", "case")]
    return "\n".join([*lines, *facts]) if rows else ""
