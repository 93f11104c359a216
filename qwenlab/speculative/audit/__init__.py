"""Audit of an MTP head: which wiring its weights were trained for."""
