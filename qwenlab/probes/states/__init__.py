"""Probes of the recurrent state of DeltaNet heads."""
