"""Backbones: frozen feature extractors, with the input transform that they were trained with."""

from ltdi.backbone.augment import Augmentation, augment, distort, mix
from ltdi.backbone.backbone import CONFIG, WEIGHTS, Backbone
from ltdi.backbone.cache import cached_backbone, cached_bank, cached_banks
from ltdi.backbone.classifier import ClassifierTraining, train_classifier_backbone
from ltdi.backbone.conv import ConvNet
from ltdi.backbone.features import FeatureMap, FeatureMapping
from ltdi.backbone.precision import autocast
from ltdi.backbone.pretrained import (
    efficientnet_lite_backbone,
    pretrained_backbone,
    timm_backbone,
    transformers_backbone,
)
from ltdi.backbone.resnet import ResNet12
from ltdi.backbone.training import ProtoTraining, leave_one_out_loss, train_backbone
from ltdi.backbone.transform import InputTransform

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Augmentation",
    "Backbone",
    "ClassifierTraining",
    "ConvNet",
    "FeatureMap",
    "FeatureMapping",
    "InputTransform",
    "ProtoTraining",
    "ResNet12",
    "augment",
    "autocast",
    "cached_backbone",
    "cached_bank",
    "cached_banks",
    "distort",
    "efficientnet_lite_backbone",
    "leave_one_out_loss",
    "mix",
    "pretrained_backbone",
    "timm_backbone",
    "train_backbone",
    "train_classifier_backbone",
    "transformers_backbone",
]
