"""The report: a training's maps as one page, which any browser opens without a server."""

from gfi_lightning.recording.report.page import write_report

__all__ = ["write_report"]
