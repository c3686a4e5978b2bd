"""Tests of `ltdi.backbone`."""
