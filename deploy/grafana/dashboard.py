"""Builds the Grafana dashboard; a test checks that the committed JSON is what this gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef

FILE = Path(__file__).with_name("onnx-audit.json")
WIDTH = 24
"""Columns of Grafana's grid."""
PER_LINE = 4
"""Most panels with curves beside each other."""
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True)
class Panel:
    """A panel: what it shows, in which unit, and its queries with their legends.

    Attributes:
        title: Its heading.
        unit: Grafana's name of the unit.
        queries: PromQL with the legend's template.
        help: What a reader should look for.
        single: Whether it shows the latest value alone.
        most: Largest value of the axis, where that is known.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    help: str
    single: bool = False
    most: float | None = None


@dataclass(frozen=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...] = field(default=())


def lines(row: Row) -> list[tuple[Panel, ...]]:
    """A row's panels by the line of the grid that they fill: as even as few lines allow."""
    panels = row.panels
    count = 1 if panels[0].single else math.ceil(len(panels) / PER_LINE)
    size = math.ceil(len(panels) / count)
    return [panels[first : first + size] for first in range(0, len(panels), size)]


def quantiles(metric: str, by: str, *shares: float) -> tuple[tuple[str, str], ...]:
    """Queries of quantiles of a histogram over half an hour: what it counts is rare."""
    labels = f"{by}, le" if by else "le"
    legend = f"{{{{{by}}}}} p" if by else "p"
    rates = f"sum by ({labels}) (rate({metric}_bucket[30m]))"
    return tuple(
        (f"histogram_quantile({share:g}, {rates})", f"{legend}{share * 100:g}") for share in shares
    )


def rate(metric: str, by: str) -> str:
    """The query of a counter's rate, summed by a label."""
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


ROWS = (
    Row(
        "Now",
        (
            Panel(
                "Workers",
                "none",
                (("onnx_audit:workers", ""),),
                "Processes that run shards.",
                single=True,
            ),
            Panel(
                "Slots in use",
                "percentunit",
                (("onnx_audit:slots_busy:ratio", ""),),
                "All in use and audits waiting: more workers are needed.",
                single=True,
                most=1,
            ),
            Panel(
                "Audits waiting",
                "none",
                (("onnx_audit:queue_depth", ""),),
                "Audits that no worker has taken yet.",
                single=True,
            ),
            Panel(
                "Oldest waits for",
                "s",
                (("onnx_audit:queue_oldest_seconds", ""),),
                "Age of the audit that waits longest.",
                single=True,
            ),
            Panel(
                "RPC faults",
                "percentunit",
                (("onnx_audit:rpc_faults:ratio_rate5m", ""),),
                "Share of the RPCs that end with a fault of the service.",
                single=True,
            ),
            Panel(
                "Last garbage collection",
                "s",
                (("onnx_audit:gc_age_seconds", ""),),
                "Time since the last one that ended well.",
                single=True,
            ),
        ),
    ),
    Row(
        "Audits",
        (
            Panel(
                "Audits by state",
                "none",
                (
                    (
                        "sum by (state) (max by (state, verdict)"
                        ' (onnx_audit_audits{state=~"queued|running|cancelling"}))',
                        "{{state}}",
                    ),
                ),
                "Those that have not ended.",
            ),
            Panel(
                "Audits ended",
                "cpm",
                (
                    (
                        "60 * sum by (state, verdict)"
                        " (rate(onnx_audit_audits_ended_total[$__rate_interval]))",
                        "{{state}} {{verdict}}",
                    ),
                ),
                "Per minute, by state and verdict.",
            ),
            Panel(
                "Time of audits",
                "s",
                quantiles("onnx_audit_audit_seconds", "state", 0.5, 0.95),
                "From the first shard to the end, over half an hour.",
            ),
            Panel(
                "Time in the queue",
                "s",
                quantiles("onnx_audit_queue_wait_seconds", "", 0.5, 0.95),
                "From the acceptance to the first shard, over half an hour.",
            ),
        ),
    ),
    Row(
        "Work",
        (
            Panel(
                "Gradient evaluations",
                "ops",
                (("onnx_audit:gradient_evaluations:rate1m", "{{auditor}}"),),
                "The attacks' speed.",
            ),
            Panel(
                "Time of shards",
                "s",
                quantiles("onnx_audit_shard_seconds", "auditor", 0.5, 0.9),
                "Loading the model included, over half an hour.",
            ),
            Panel(
                "Slots and waiting tasks",
                "none",
                (
                    ("sum(onnx_audit_worker_slots)", "slots"),
                    ("sum(onnx_audit_worker_slots_busy)", "busy"),
                    ("onnx_audit:tasks_waiting", "waiting for {{device}}"),
                ),
                "Tasks that wait for long above the number of slots: add workers.",
            ),
            Panel(
                "Parity difference",
                "none",
                quantiles("onnx_audit_parity_relative_difference", "", 0.5, 0.99),
                "Network against ONNX Runtime; audits fail beyond 1e-3.",
            ),
            Panel(
                "Failed tasks and runners that died",
                "cpm",
                (
                    (
                        "60 * sum by (reason)"
                        " (rate(onnx_audit_task_failures_total[$__rate_interval]))",
                        "{{reason}}",
                    ),
                    (
                        "60 * sum by (cause)"
                        " (rate(onnx_audit_runner_deaths_total[$__rate_interval]))",
                        "runner ended by {{cause}}",
                    ),
                ),
                "Per minute.",
            ),
            Panel(
                "Device memory",
                "percentunit",
                (("onnx_audit:device_memory:ratio", "{{instance}} {{device}}"),),
                "Share in use; absent without NVML.",
                most=1,
            ),
            Panel(
                "Device utilisation",
                "percentunit",
                (("onnx_audit_device_utilization_ratio", "{{instance}} {{device}}"),),
                "Share of the time in which a kernel ran.",
                most=1,
            ),
        ),
    ),
    Row(
        "API",
        (
            Panel(
                "RPCs",
                "reqps",
                (("sum by (method) (onnx_audit:rpcs:rate5m)", "{{method}}"),),
                "By method.",
            ),
            Panel(
                "RPCs that did not succeed",
                "reqps",
                (
                    (
                        'sum by (code) (rate(onnx_audit_rpcs_total{code!="OK"}[$__rate_interval]))',
                        "{{code}}",
                    ),
                ),
                "By status; INTERNAL and UNAVAILABLE are the service's own.",
            ),
            Panel(
                "Time of RPCs",
                "s",
                (("onnx_audit:rpc_seconds:p99_5m", "{{method}} p99"),),
                "Without watches and transfers.",
            ),
            Panel(
                "Watchers and uploads under way",
                "none",
                (
                    (
                        "sum by (method) (onnx_audit_rpcs_under_way"
                        '{method=~".*/(WatchAudit|Write)"})',
                        "{{method}}",
                    ),
                ),
                "Open streams.",
            ),
            Panel(
                "Uploads",
                "Bps",
                (("sum(rate(onnx_audit_uploaded_bytes_total[$__rate_interval]))", "received"),),
                "Bytes received.",
            ),
        ),
    ),
    Row(
        "Stores and processes",
        (
            Panel(
                "Store errors",
                "cps",
                (("onnx_audit:store_errors:rate5m", "{{store}}"),),
                "Of the database and the blob store.",
            ),
            Panel(
                "Free disk",
                "percentunit",
                (("onnx_audit:data_free:ratio", "{{instance}}"),),
                "Where the data folder lies.",
                most=1,
            ),
            Panel(
                "Freed by retention",
                "Bps",
                (("sum(rate(onnx_audit_gc_freed_bytes_total[$__rate_interval]))", "freed"),),
                "Bytes of blobs and unfinished uploads.",
            ),
            Panel(
                "Memory of processes",
                "bytes",
                (
                    (
                        'process_resident_memory_bytes{job=~"onnx-audit.*"}',
                        "{{instance}}",
                    ),
                ),
                "The parents alone, without their runners.",
            ),
            Panel(
                "CPU of processes",
                "percentunit",
                (
                    (
                        'rate(process_cpu_seconds_total{job=~"onnx-audit.*"}[$__rate_interval])',
                        "{{instance}}",
                    ),
                ),
                "Cores; the parents alone, without their runners.",
            ),
        ),
    ),
)


def queries() -> list[str]:
    """Every query of the dashboard."""
    return [expr for row in ROWS for panel in row.panels for expr, _ in panel.queries]


def build() -> str:
    """Returns the dashboard as JSON."""
    board = (
        dashboard.Dashboard("onnx-audit")
        .uid("onnx-audit")
        .description("Audits, their queue and workers, the API and the stores of onnx-audit.")
        .tags(["onnx-audit"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    )
    for row in ROWS:
        board = board.with_row(dashboard.Row(row.title))
        for panels in lines(row):
            width = WIDTH // len(panels)
            for panel in panels:
                build_panel = _single if panel.single else _series
                board = board.with_panel(build_panel(panel, width))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _targets(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + number))
        for number, (expr, legend) in enumerate(panel.queries)
    ]


def _single(panel: Panel, width: int) -> stat.Panel:
    built = (
        stat.Panel()
        .title(panel.title)
        .description(panel.help)
        .datasource(SOURCE)
        .unit(panel.unit)
        .height(4)
        .span(width)
    )
    for target in _targets(panel):
        built = built.with_target(target)
    return built


def _series(panel: Panel, width: int) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    built = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.help)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .fill_opacity(10)
        .legend(legend)
        .height(8)
        .span(width)
    )
    if panel.most is not None:
        built = built.max(panel.most)
    for target in _targets(panel):
        built = built.with_target(target)
    return built


if __name__ == "__main__":
    FILE.write_text(build())
