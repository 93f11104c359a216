"""Runs for people and programs elsewhere: a page, and MLflow."""
