"""Generators for unseen domains: each source domain is held out from the anchor of its own tasks.

What `ltdi.anchor.crossfit` does with classes is done with domains here: the tasks of a domain start
from what the other domains tell about its classes, as those of the unseen domain will.
"""

from ltdi.crossdomain.anchors import (
    Trial,
    fit_domain_anchor,
    head_of,
    make_anchor,
    view_logits,
)
from ltdi.crossdomain.domains import Domain, split_domain, together
from ltdi.crossdomain.training import (
    DomainCollection,
    domain_folds,
    prepare_domains,
    train_domain_generator,
)

__all__ = [
    "Domain",
    "DomainCollection",
    "Trial",
    "domain_folds",
    "fit_domain_anchor",
    "head_of",
    "make_anchor",
    "prepare_domains",
    "split_domain",
    "together",
    "train_domain_generator",
    "view_logits",
]
