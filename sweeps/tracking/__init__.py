"""MLflow: opening stores, logging runs, saved views, links and retries.

The store, and so MLflow, is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from sweeps.tracking.mlflow_store import Store as Store

PUBLIC = {"Store": "mlflow_store"}

__all__ = list(PUBLIC)

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)
