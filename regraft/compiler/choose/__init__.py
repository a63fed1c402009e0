"""Choosing forms by what they cost here: the machine's profile, estimates, measurements, decisions."""

from regraft.compiler.choose.amounts import parse_budget, parse_size
from regraft.compiler.choose.database import TuningDatabase, times_by_machine
from regraft.compiler.choose.decide import Choice, ChooseForms, Times, decide, within
from regraft.compiler.choose.machine import (
    MachineProfile,
    holds_here,
    load_profile,
    machine_name,
    measure_profile,
    store_profile,
)
from regraft.compiler.choose.model import WORTH_A_CUT, RooflineModel
from regraft.compiler.choose.placement import Kind, Layout, Picks, Prices
from regraft.compiler.choose.sections import Section
from regraft.compiler.choose.tune import Executors, Timetable, Tuner, measured
from regraft.timing import Measured

__all__ = [
    "WORTH_A_CUT",
    "Choice",
    "ChooseForms",
    "Executors",
    "Kind",
    "Layout",
    "MachineProfile",
    "Measured",
    "Picks",
    "Prices",
    "RooflineModel",
    "Section",
    "Times",
    "Timetable",
    "Tuner",
    "TuningDatabase",
    "decide",
    "holds_here",
    "load_profile",
    "machine_name",
    "measure_profile",
    "measured",
    "parse_budget",
    "parse_size",
    "store_profile",
    "times_by_machine",
    "within",
]
