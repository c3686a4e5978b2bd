"""Tests of `ltdi.data`."""
