"""Audit of an MTP head: find the input contract that its weights were trained for."""
