"""Traces through the real scheduler, block pool and prefix cache, on a virtual clock: everything but the model."""

from kvtrove.plan.simulate.results import RequestResult, SimulationResult
from kvtrove.plan.simulate.settings import SimulationSettings
from kvtrove.plan.simulate.simulator import simulate

__all__ = ["RequestResult", "SimulationResult", "SimulationSettings", "simulate"]
