"""Recorded request streams of real services: when requests came, how long they were, which prefixes they shared."""

from kvtrove.plan.traces.reader import read_trace
from kvtrove.plan.traces.request import Trace, TraceRequest, TraceSummary, summarise

__all__ = ["Trace", "TraceRequest", "TraceSummary", "read_trace", "summarise"]
