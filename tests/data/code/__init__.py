"""Tests of the stages for source code."""
