"""Tests of the stage for long documents."""
