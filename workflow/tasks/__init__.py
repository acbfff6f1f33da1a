"""The steps of the graph, one module each."""

from workflow.tasks.compare import Compare
from workflow.tasks.evaluate import EvaluateEnsemble
from workflow.tasks.export import ExportEnsemble
from workflow.tasks.features import ComputeFeatures
from workflow.tasks.fit import FitModel
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.growth import LearningCurve, TrainCurve
from workflow.tasks.inputs import ListInputs
from workflow.tasks.plots import PlotResults
from workflow.tasks.prune import Prune
from workflow.tasks.prune_features import PruneFeatures
from workflow.tasks.prune_networks import PruneNetworks
from workflow.tasks.rank import RankFeatures
from workflow.tasks.report import Report
from workflow.tasks.score import ScoreEvents
from workflow.tasks.select import SelectEvents
from workflow.tasks.simulate import SimulateEvents
from workflow.tasks.statistics import WriteStatistics
from workflow.tasks.train import TrainFolds
from workflow.tasks.tune import SearchHyperparameters, TrainTrials, TuneHyperparameters
from workflow.tasks.variations import SumVariations

__all__ = [
    "Compare",
    "ComputeFeatures",
    "EvaluateEnsemble",
    "ExportEnsemble",
    "FitModel",
    "LearningCurve",
    "ListInputs",
    "PlotResults",
    "PrepareFolds",
    "Prune",
    "PruneFeatures",
    "PruneNetworks",
    "RankFeatures",
    "Report",
    "ScoreEvents",
    "SearchHyperparameters",
    "SelectEvents",
    "SimulateEvents",
    "SumVariations",
    "TrainCurve",
    "TrainFolds",
    "TrainTrials",
    "TuneHyperparameters",
    "WriteStatistics",
]
